"""One config of a run: its fields are the keywords, the flags, the keys of recipes and what config.json has."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

import datadistill as dd
from datadistill.cli.config import config_given
from datadistill.cli.main import make_parser
from datadistill.data.options import Options
from datadistill.distillation.config import IN_RUN, RunConfig
from datadistill.distillation.run_folder import RunFolder
from datadistill.distillation.settings import parse_settings
from datadistill.methods import DD, MTT

SMALL = RunConfig(
    method=DD(images="mean", batch=64), model="mlp", iterations=4, outer=dd.Outer(lr=0.03, eval_every=2), device="cpu"
)

ADDED = """
import sys, json, importlib.abc, importlib.machinery, importlib.util
from pathlib import Path

NAME = "datadistill.distillation.config"
ADDED = {
    b"    seed: int = 0": b'    note_of_mine: str = "none yet"\\n',
    b"        seed: of all": b"        note_of_mine: what I think.\\n",
}

class Adding(importlib.machinery.SourceFileLoader):
    def get_data(self, path):
        source = super().get_data(path)
        if path.endswith(".py"):
            for before, more in ADDED.items():
                assert before in source
                source = source.replace(before, more + before)
        return source
    def path_stats(self, path):
        raise OSError  # no kept bytecode

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == NAME:
            file = str(Path(path[0]) / "config.py")
            return importlib.util.spec_from_file_location(name, file, loader=Adding(name, file))

sys.meta_path.insert(0, Finder())

import datadistill as dd
from datadistill.cli.config import config_given
from datadistill.cli.main import make_parser
from datadistill.distillation.config import RunConfig
from datadistill.experiments.recipes import parse_recipe, recipes

for command in ("distill", "plan", "check"):
    parser, commands = make_parser(command)
    assert "what I think (default: none yet)" in " ".join(commands[command].format_help().split())
    given = parser.parse_args([command, "--note-of-mine", "good"])
    assert config_given(given, RunConfig()).note_of_mine == "good"
recipe = parse_recipe("mine", {
    "line": "mine",
    "run": {"note_of_mine": "fair", "iterations": 2, "weights": "random-init"},
    "method": {"name": "dd"},
    "outer": {},
    "expect": {"accuracy": [0.0, 1.0]},
})
assert recipe.config().note_of_mine == "fair"
assert recipes().get("mnist-fixed-10").config().note_of_mine == "none yet"
assert "note_of_mine: what I think" in dd.distill.__doc__
real, method = dd.load("digits"), dd.methods.DD(batch=64)
dd.distill(real, method, model="mlp", iterations=1, note_of_mine="poor", out="run", device="cpu")
assert json.loads(Path("run/config.json").read_text())["note_of_mine"] == "poor"
try:
    dd.distill(real, method, model="mlp", iterations=1, out="run", resume=True, device="cpu")
except dd.RequestError as error:
    assert "note_of_mine is poor there and none yet here" in str(error)
else:
    raise AssertionError
"""


def test_a_new_option_is_one_field(tmp_path: Path) -> None:
    """A field is added to the source as it is read; flags, recipes, keywords and config.json have it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ADDED], check=True, cwd=tmp_path, env=environment)


def test_the_signature_and_the_docstring_have_every_option() -> None:
    parameters = inspect.signature(dd.distill).parameters
    options = {entry.name for entry in fields(RunConfig)} - {"dataset", "data"}
    assert options <= parameters.keys()
    assert parameters.keys() - options == {"real", "config", "out", "resume", "command", "reporter"}
    assert parameters["batch_norm"].default == "auto"
    for name in options:
        assert f"{name}: " in (dd.distill.__doc__ or "")


def test_an_option_that_there_is_not_is_refused_with_the_nearest(digits: dd.RealData) -> None:
    with pytest.raises(TypeError, match=r"no option 'iteratons'; did you mean iterations\?"):
        dd.distill(digits, iteratons=3)
    with pytest.raises(TypeError, match=r"a dataset has no option 'sise'; did you mean size\?"):
        dd.load("digits", sise=8)
    with pytest.raises(TypeError, match=r"a pool has no option 'net'; did you mean nets\?"):
        dd.make_pool(dd.load("digits"), "pool", net=3)
    with pytest.raises(TypeError, match=r"no option 'dataset'"):
        dd.distill(digits, dataset="mnist")


def test_keywords_are_put_on_top_of_a_config(digits: dd.RealData, tmp_path: Path) -> None:
    whole = dd.distill(digits, config=replace(SMALL, seed=3), out=tmp_path)
    found = RunFolder(tmp_path).settings().config(tmp_path)
    assert found == replace(SMALL, seed=3, dataset="digits", ipc=1, batch_norm="refused")
    spelled = dd.distill(digits, SMALL.method, config=replace(SMALL, method=MTT()), seed=3)
    assert torch.equal(whole.distilled.images, spelled.distilled.images)
    assert torch.equal(dd.distill(digits, config=found).distilled.images, whole.distilled.images)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, method=MTT(student_steps=3), attack=("0", "1"), ipc=[1] * 10, budget=3.0),
        replace(SMALL, data=Options(zca=True), engine=dd.Engine(memory=2.0), outer=dd.Outer(betas=(0.1, 0.2))),
    ],
    ids=["small", "another method", "other groups"],
)
def test_json_is_the_config(config: RunConfig) -> None:
    document = json.loads(json.dumps(config.as_json()))
    groups: dict[str, Any] = {name: document.pop(name) for name in ("method", "outer", "engine")}
    assert RunConfig().changed({"run": document, **groups}) == config
    assert document.keys() <= set(IN_RUN)


def test_older_names_of_options_are_read() -> None:
    """Flags, recipes and run folders may have the names that options had before."""
    old = ["--outer-rate", "0.5", "--outer-eval-every", "7", "--kink-width", "0.2", "--product", "reverse"]
    new = ["--outer-lr", "0.5", "--outer-eval-every", "7", "--surrogate-width", "0.2", "--hvp", "reverse"]
    parser, _ = make_parser("distill")
    asked = [config_given(parser.parse_args(["distill", *flags]), RunConfig()) for flags in (old, new)]
    groups = {"outer": {"rate": 0.5, "eval_every": 7}, "method": {"kink_width": 0.2}, "engine": {"product": "reverse"}}
    asked.append(RunConfig().changed(groups))
    document = json.loads(json.dumps(asked[0].as_json() | {"versions": {}, "threads": 1, "recipe": "", "ipc": 1}))
    present = {"rate": "lr", "eval_every": "eval_every", "kink_width": "surrogate_width", "product": "hvp"}
    for group, names in groups.items():
        for name in names:
            document[group][name] = document[group].pop(present[name])
    assert "lr" not in document["outer"]
    asked.append(replace(parse_settings(document | {"format": 1}).config(Path()), ipc=None))
    for config in asked:
        assert (config.outer.lr, config.outer.eval_every) == (0.5, 7)
        assert (vars(config.method)["surrogate_width"], config.engine.hvp) == (0.2, "reverse")
