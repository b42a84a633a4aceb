"""Run folders, sets and pools of strangers: whatever they name, nothing runs, is fetched or is read."""

import copy
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import safetensors.torch
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import datadistill as dd
from datadistill.cli.main import main
from datadistill.experiments.recipes import parse_recipe
from datadistill.utils.errors import RequestError
from datadistill.utils.files import read_tensors

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nf = None\n"
HOSTILE = ("evil.py:f", "evil:f", "./evil.py:f", "hf:evil/evil", "timm:evil", "../outside", "photos.npz", "svhn")
RUN = ["--dataset", "digits", "--model", "mlp", "--method", "dc", "--matched-on", "mlp", "--iterations", "1"]
COMMANDS = {
    "resume": ["distill", "--resume", "--out", "run", "--nets", "1"],
    "evaluate": ["evaluate", "run", "--nets", "1"],
    "compare": ["compare", "run", "--nets", "1"],
    "audit": ["audit", "run", "--nets", "1", "--train-epochs", "1"],
    "rank": ["rank", "run", "--nets", "1", "--epochs", "1", "--full-epochs", "1"],
    "export": ["export", "run", "--to", "npz", "--out", "out.npz"],
    "show": ["show", "run", "--out", "sheet.png"],
    "plan": ["plan", *RUN[:-2], "--batch", "8"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A run's settings, and what its set says and holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("made"))
        patch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
        assert main(["distill", *RUN, "--batch", "8", "--nets", "1", "--out", "run"]) == 0
        tensors, metadata = read_tensors(Path("run/distilled.safetensors"))
        return json.loads(Path("run/config.json").read_text()), json.loads(metadata["datadistill"]), tensors


@pytest.fixture(autouse=True)
def _among_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with code in it, where whatever would fetch something leaves a mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("datadistill.data.download.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("DATADISTILL_DATA", raising=False)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    for name in ("evil.py", "timm.py"):
        Path(name).write_text(EVIL)

    def fetch(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "ran").touch()
        raise OSError("fetched")

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    monkeypatch.setattr(urllib.request, "urlopen", fetch)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has texts."""
    if isinstance(document, str):
        yield path
    elif isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(value, (*path, key))


def changed(document: Any, where: list[tuple[Any, ...]], text: str) -> Any:
    found = copy.deepcopy(document)
    for *path, last in where:
        place = found
        for key in path:
            place = place[key]
        place[last] = text
    return found


def write(config: dict[str, Any], header: dict[str, Any], tensors: dict[str, Any]) -> None:
    Path("run").mkdir(exist_ok=True)
    Path("run/config.json").write_text(json.dumps(config))
    Path("run/distilled.safetensors").write_bytes(safetensors.torch.save(tensors, {"datadistill": json.dumps(header)}))
    for name in ("out.npz", "sheet.png"):
        Path(name).unlink(missing_ok=True)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_in_every_field_run_nothing(
    name: str, made: tuple[dict[str, Any], ...], capsys: pytest.CaptureFixture[str]
) -> None:
    config, header, tensors = made
    hostile = changed(header, [*places(header)], name)
    for command, words in COMMANDS.items():
        write(changed(config, [*places(config)], name), hostile, tensors)
        code = main(words)
        assert not Path("ran").exists(), command
        assert code in (0, 1, 2)
        if command == "resume":
            assert code != 0
            assert name in capsys.readouterr().err


def test_every_field_alone_runs_nothing(made: tuple[dict[str, Any], ...], capsys: pytest.CaptureFixture[str]) -> None:
    config, header, tensors = made
    used = [place for place in places(config) if place[0] not in ("versions", "recipe", "kernels")]
    assert ("method", "matched_on") in used
    for place in used:
        write(changed(config, [place], "evil.py:f"), header, tensors)
        assert main(COMMANDS["resume"]) in (1, 2), place
        assert "evil.py:f" in capsys.readouterr().err
        assert not Path("ran").exists(), place


@pytest.mark.fuzz
@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_names_in_some_fields_run_nothing(made: tuple[dict[str, Any], ...], data: st.DataObject) -> None:
    config, header, tensors = made
    name, command = data.draw(st.sampled_from(HOSTILE)), data.draw(st.sampled_from([*COMMANDS]))
    some = [data.draw(st.lists(st.sampled_from([*places(one)]), max_size=3)) for one in (config, header)]
    write(changed(config, some[0], name), changed(header, some[1], name), tensors)
    assert main(COMMANDS[command]) in (0, 1, 2)
    assert not Path("ran").exists()


def test_a_run_goes_on_once_the_user_says_the_same(
    made: tuple[dict[str, Any], ...], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.py").write_text("from datadistill.models.mlp import MLP\n\n\ndef f(**facts):\n    return MLP(**facts)\n")
    words = [word if word != "mlp" else "net.py:f" for word in RUN]
    assert main(["distill", *words, "--batch", "8", "--nets", "1", "--out", "run"]) == 0
    capsys.readouterr()
    assert main(COMMANDS["resume"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("say --model net.py:f --matched-on net.py:f to use them\n")
    assert main([*COMMANDS["resume"], "--model", "net.py:f"]) == 2
    assert (
        "run/config.json names the network net.py:f, which is code: say --matched-on net.py:f"
        in capsys.readouterr().err
    )
    assert main([*COMMANDS["resume"], "--model", "net.py:f", "--matched-on", "net.py:f"]) == 0


def test_a_pool_names_no_code(pool: dd.Pool, capsys: pytest.CaptureFixture[str]) -> None:
    replace(pool, facts=replace(pool.facts, model="evil.py:f", dataset="hf:evil/evil")).save("pool.safetensors")
    words = ["--dataset", "digits", "--epochs", "1", "--out", "new.safetensors"]
    assert main(["pretrain", "--from", "pool.safetensors", *words]) == 2
    said = "pool.safetensors names the network evil.py:f, which is code: say --model evil.py:f to use it"
    assert said in capsys.readouterr().err
    assert main(["plan", *RUN[:4], "--weights", "random-pretrained", "--pool", "pool.safetensors"]) == 2
    assert not Path("ran").exists()


def test_a_recipe_names_no_code() -> None:
    plain = {
        "line": "one",
        "run": {"dataset": "digits", "model": "mlp", "weights": "random-init", "iterations": 1},
        "method": {"name": "dc"},
        "outer": {},
        "expect": {"accuracy": [0.0, 1.0]},
    }
    assert parse_recipe("mine", plain).name == "mine"
    for group, name, value in (
        ("run", "model", "evil.py:f"),
        ("run", "dataset", "hf:evil/evil"),
        ("method", "matched_on", "evil.py:f"),
        ("full", "method", {"matched_on": "evil.py:f"}),
        ("sweep", "points", [{"label": "a", "method": {"matched_on": "evil.py:f"}}, {"label": "b"}]),
    ):
        document = {**plain, group: {**plain.get(group, {}), name: value}}
        with pytest.raises(RequestError, match=r"recipe mine names the (network|dataset) \S*evil"):
            parse_recipe("mine", document)
