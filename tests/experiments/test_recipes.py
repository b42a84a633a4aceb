"""Recipes: what is shipped is well formed, and what is not is refused."""

import datetime
import json
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from datadistill.data import DATASETS
from datadistill.experiments.recipes import Recipe, parse_recipe, recipes
from datadistill.experiments.recipes.measured import Measured, load_measured, record_measured
from datadistill.methods import DD
from datadistill.utils.errors import DamagedFileError, RequestError

FILES = sorted((ROOT / "datadistill" / "experiments" / "recipes").glob("*.toml"))
PUBLISHED = {0.129, 0.938, 0.088, 0.54, 0.795, 0.081, 0.368, 0.012, 0.675, 0.039, 0.927, 0.014, 0.96, 0.92}
"""Figures that were read in a source: the papers' pages by Wang et al. and by Sucholutsky and Schonlau."""

PUBLISHED |= {
    0.463,
    0.008,
    0.653,
    0.007,
    0.001,
    0.002,
    0.003,
    0.004,
    0.005,
    0.006,
    0.26,
    0.283,
    0.288,
    0.449,
    0.489,
    0.521,
    0.705,
    0.706,
    0.823,
    0.846,
    0.887,
    0.917,
    0.974,
    0.978,
}
"""The same of DC, DSA, DM and MTT: their authors' own table."""


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_whole(file: Path) -> None:
    recipe = recipes().get(file.stem)
    for point in recipe.points:
        assert DATASETS.get(recipe.config(point).dataset)
    assert {value for key, value in recipe.paper.items() if key != "source"} <= PUBLISHED
    assert recipe.line
    assert json.loads(json.dumps(recipe.paper)) == recipe.paper


def test_every_experiment_is_there() -> None:
    assert recipes().names() == sorted(file.stem for file in FILES)
    assert len(FILES) >= 16


def test_recipes_share_pools() -> None:
    pools = [recipe.pool for recipe in recipes() if recipe.pool is not None]
    assert len({pool.file_name for pool in pools}) == len(set(pools)) == 4


def small() -> dict[str, Any]:
    text = """
        line = "a small one"
        baselines = ["random"]
        run = { dataset = "digits", model = "mlp", weights = "random-init", iterations = 10 }
        method = { name = "dd", steps = 2 }
        outer = { betas = [0.9, 0.99] }
        expect = { accuracy = [0.5, 1.0], nets = 3 }
    """
    return tomllib.loads(text.replace("\n        ", "\n"))


def test_the_full_form_is_what_the_small_one_says() -> None:
    data = small()
    put("full.run.iterations", 500)(data)
    put("full.expect.accuracy", [0.9, 1.0])(data)
    recipe = parse_recipe("small", data)
    full = recipe.in_full()
    assert (full.run["iterations"], recipe.run["iterations"]) == (500, 10)
    assert full.run["dataset"] == "digits"
    assert full.expect == replace(recipe.expect, accuracy=(0.9, 1.0))
    assert recipe.digest == parse_recipe("small", small()).digest != full.digest
    assert (recipe.command, full.command) == ("datadistill reproduce small", "datadistill reproduce small --full")
    with pytest.raises(RequestError, match="leave out --full"):
        full.in_full()


POOL = {"dataset": "digits", "model": "mlp", "nets": 4, "reserved": 2, "epochs": 1}


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        for part in parts:
            data = data.setdefault(part, {})
        data[last] = value

    return change


WRONG = {
    "key of \\[file\\] 'nets'": put("nets", 3),
    "key of \\[run\\] 'itertions'.* did you mean iterations": put("run.itertions", 3),
    "'stesp'": put("method.stesp", 3),
    "type date is not": put("paper.after", datetime.date(2026, 1, 1)),
    "unknown method": put("method.name", "ddd"),
    "'ratee'": put("outer.ratee", 3),
    "chunk is -1": put("engine.chunk", -1),
    "key of \\[expect\\] 'accurracy'": put("expect.accurracy", [0, 1]),
    "must be a range": put("expect.accuracy", [0.9, 0.5]),
    "nets is 0": put("expect.nets", 0),
    "key of \\[full\\] 'engine'": put("full.engine", {}),
    "'stesp'.*": put("full.method.stesp", 3),
    "names no range": put("expect", {}),
    "key of \\[paper\\] 'afterwards'": put("paper.afterwards", 0.9),
    "unknown baseline": put("baselines", ["rnadom"]),
    "unknown initialisation scheme": put("run.scheme", "xavir"),
    "no iterations": put("run.iterations", None),
    "does not go with its \\[pool\\]": put("pool", POOL),
    "key of \\[pool\\] 'epoch'": put("pool", {**POOL, "epoch": 1}),
    "take an attack": put("expect.others_fall_at_most", 0.1),
    "takes a \\[sweep\\]": put("expect.gain_at_least", 0.1),
    "at least 2": put("sweep", {"axis": "x", "points": [{"label": "1"}]}),
    "told apart": put("sweep", {"axis": "x", "points": [{"label": "a b"}, {"label": "A-b"}]}),
    "key of \\[sweep.points\\] 'metod'": put("sweep", {"axis": "x", "points": [{"label": "1", "metod": {}}] * 2}),
    "neither baselines": put("sweep", {"axis": "x", "points": [{"label": "1"}, {"label": "2"}]}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_recipe_is_refused(sentence: str) -> None:
    data = small()
    assert parse_recipe("small", data).expect.nets == 3
    WRONG[sentence](data)
    with pytest.raises(RequestError, match=sentence):
        parse_recipe("small", data)


def test_too_few_networks_for_judging() -> None:
    data = small() | {"pool": POOL}
    data["run"]["weights"] = "random-pretrained"
    with pytest.raises(RequestError, match="2 for judging"):
        parse_recipe("small", data)


def test_a_point_changes_what_it_names() -> None:
    data = small() | {"baselines": [], "expect": {"gain_at_least": 0.0}}
    data["sweep"] = {"axis": "steps", "points": [{"label": "1", "method": {"steps": 1}}, {"label": "2"}]}
    recipe = parse_recipe("small", data)
    first, second = map(recipe.config, recipe.points)
    assert (first.method, second.method) == (DD(steps=1), DD(steps=2))
    assert replace(first, method=second.method) == second


def test_the_digest_is_of_what_is_run() -> None:
    recipe = parse_recipe("small", small())
    assert replace(recipe, line="other words", paper={"source": "me", "after": 0.9}).digest == recipe.digest
    assert replace(recipe, expect=replace(recipe.expect, accuracy=(0.6, 1.0))).digest == recipe.digest
    for change in (
        {"baselines": ()},
        {"outer": {}},
        {"method": {"name": "dd"}},
        {"expect": replace(recipe.expect, nets=4)},
    ):
        assert replace(recipe, **change).digest != recipe.digest


def entry(recipe: Recipe) -> Measured:
    return Measured(
        digest=recipe.digest,
        what="accuracy",
        value=0.7,
        std=0.02,
        nets=3,
        seconds=12.0,
        seed=0,
        device="cpu",
        threads=2,
        date="2026-01-31",
        versions={"torch": "2"},
        details=[{"name": "these images"}],
    )


def test_measured_values_are_kept(tmp_path: Path) -> None:
    recipe, path = parse_recipe("small", small()), tmp_path / "measured.json"
    assert load_measured(path) == {}
    record_measured("small", entry(recipe), path)
    record_measured("other", replace(entry(recipe), value=0.1), path)
    record_measured("small", replace(entry(recipe), value=0.8), path)
    found = load_measured(path)
    assert list(found) == ["other", "small"]
    assert found["small"] == replace(entry(recipe), value=0.8)
    assert not found["small"].is_stale(recipe)
    assert found["small"].is_stale(replace(recipe, method={"name": "dd"}))


@pytest.mark.parametrize("field", ["value", "std", "versions", "details", "digest"])
def test_measured_values_of_other_types_are_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    record_measured("small", entry(parse_recipe("small", small())), path)
    document = json.loads(path.read_text())
    document["small"][field] = [1]
    path.write_text(json.dumps(document))
    with pytest.raises(DamagedFileError, match=f"damaged.*'{field}' is|damaged.*must be"):
        load_measured(path)


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [1], {"a": 1}, float("nan"), 10**400, [["a"]]])
@pytest.mark.parametrize(
    "place", ["expect", "run", "method", "outer", "baselines", "paper", "pool", "sweep", "experts", "expect.accuracy",
              "run.iterations", "run.ipc", "method.steps", "outer.betas", "full", "line", "at_most"],
)  # fmt: skip
def test_a_recipe_of_other_types_is_ours_to_refuse(place: str, value: Any) -> None:
    data = small()
    put(place, value)(data)
    with suppress(RequestError):
        str(parse_recipe("small", data).digest)


@pytest.mark.parametrize("text", ["{", "[]", '{"small": {"value": 1}}', '{"small": 1}'])
def test_damaged_measured_values_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match="damaged"):
        load_measured(path)
