# `make demo` and `make test` need python3 (3.11 to 3.13) and its pip; everything goes into .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --python $(PY) --disable-pip-version-check install --quiet --constraint $(VENV)/constraints.txt

# Two workers, each on one core. What they and programs that they start have compiled is kept. Tests that share what one
# of them made stay in one worker.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadgroup --durations=10
TESTS ?=
INPUTS ?= 1000
SEED ?= 0

.PHONY: demo test lint types fast slow fuzz shapes docs format clean

demo: $(VENV)/.package
	$(VENV)/bin/datadistill distill

test: lint types fast

lint: $(VENV)/.developer
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.developer
	$(PY) -m mypy

fast: $(VENV)/.developer
	$(PYTEST) -m "not slow" $(TESTS)

# Long by nature, or long forms of tests that `fast` has short; damaged files by the hundred.
slow: $(VENV)/.developer
	DATADISTILL_FUZZ=1 $(PYTEST) -m "slow or fuzz" $(TESTS)

# As many damaged files as asked: `make fuzz INPUTS=10000 SEED=1` prints what they did that they must not, as JSON.
fuzz: $(VENV)/.developer
	PYTHONPATH=tests $(PY) -m fuzzing --inputs $(INPUTS) --seed $(SEED)

# Every call of the package is checked against the types and array shapes of its signature, but in tests that make the
# same calls many times, as most of the contract's do.
shapes: $(VENV)/.developer
	DATADISTILL_SHAPES=1 $(PYTEST) -m "not slow and not fuzz and not repeats" -k "not contract or another_seed or gradient or three_classes" \
		tests/contract tests/data tests/engine tests/evaluation tests/formats tests/methods tests/models tests/training

# The documentation as a site, in site/; a warning is an error.
docs: $(VENV)/.developer
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

format: $(VENV)/.developer
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV)

# A PYTHON that was asked for and is another than the one of .venv makes it anew.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) -V),$(shell $(PY) -V 2>/dev/null))
.PHONY: $(VENV)/constraints.txt
CLEAR := --clear
endif
endif

# A PyTorch that python3 has already is used as it is: the new environment sees its folder, and its pin is left out.
$(VENV)/constraints.txt: constraints.txt
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv $(CLEAR) --without-pip $(VENV)
	@cp constraints.txt $@
	@if $(PYTHON) -c "import torch" 2>/dev/null; then \
		$(PYTHON) -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)" \
			> "$$($(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))")/existing-torch.pth"; \
		sed '/^torch==/d' constraints.txt > $@; \
	fi

$(VENV)/.package: pyproject.toml $(VENV)/constraints.txt
	@echo "installing datadistill (some minutes the first time: PyTorch is large) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.developer: pyproject.toml $(VENV)/constraints.txt
	@echo "installing datadistill and its tools (some minutes the first time: PyTorch is large) ..."
	@$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.package
