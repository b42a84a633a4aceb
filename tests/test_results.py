"""docs/results.md and gallery/README.md are what `python docs/make_results.py` writes."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from datadistill.experiments.recipes import recipes
from datadistill.experiments.recipes.measured import load_measured

PAGES: dict[Path, str] = runpy.run_path(str(ROOT / "docs" / "make_results.py"))["pages"]()
PRINTED: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / "printed.json").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_what_the_command_writes(page: Path) -> None:
    assert page.read_text() == PAGES[page], "python docs/make_results.py writes it anew"


def test_nothing_that_was_recorded_is_left_out() -> None:
    text = PAGES[ROOT / "docs" / "results.md"]
    names = {name for name, found in load_measured().items() if not found.is_stale(recipes().get(name))}
    assert {name for name in names if f"`datadistill reproduce {name}`" in text or f"`{name}`" in text} == names
    assert [entry for entry in PRINTED if entry["accuracy"] not in text or entry["command"] not in text] == []


def test_every_set_has_its_picture() -> None:
    text = PAGES[ROOT / "gallery" / "README.md"]
    sets = [path.parent.name for path in (ROOT / "gallery").glob("*/distilled.safetensors")]
    assert len(sets) > 30
    assert [name for name in sets if f"]({name}/sheet.png)" not in text or f"({name}/README.md)" not in text] == []
