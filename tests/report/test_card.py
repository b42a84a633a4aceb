"""Whatever strangers call things, a card shows it as text, on its line, in its cell."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import datadistill as dd
from datadistill.report.card import make_card, markdown

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "[click](https://nowhere.invalid)",
    "![x](https://nowhere.invalid/x.png)",
    "https://nowhere.invalid",
    "www.nowhere.invalid",
    "a | b | c",
    "one\n# two\n\n    rm -rf ~",
    "\x1b[31mred",
    "\u202egnp.exe",
    "`code` and ``more``",
    "**bold** _thin_ ~~gone~~ $math$",
    "&lt;b&gt;",
)
OBEYED = re.compile(
    r"<img|(?<!\\)\]\(http|(?<!\\)https?://|www\.|(?<!\\)\*\*bold|(?<![\w\\])_|(?<!\\)~~|(?<!\\)\$|&lt;b"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_text(text: str) -> None:
    shown = markdown(text)
    assert shown.isprintable()
    assert not OBEYED.search(shown)
    assert shown.count("|") == shown.count("\\|")


def test_plain_words_stay_as_they_are() -> None:
    for text in (
        "color_crop_cutout",
        "dc: 300 epochs, rate 0.01",
        "lenet",
        "fixed-init (xavier-uniform)",
        "2.11.0+cpu",
    ):
        assert markdown(text) == text


@pytest.fixture(scope="module")
def made(digits: dd.RealData) -> tuple[dd.DistilledData, dd.evaluation.Score]:
    data = dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled
    return data, dd.evaluate(data, digits)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_is_a_card(text: str, made: tuple[dd.DistilledData, dd.evaluation.Score], pool: dd.Pool) -> None:
    data, score = made
    mine = data.provenance
    mine = replace(
        mine,
        dataset=text,
        model=text,
        method={**mine.method, "name": text, "attack": {"class": text, "taken_for": text}},
        weights={**mine.weights, "kind": "random-pretrained", "source": text},
        cost={**mine.cost, "device": text},
        versions={"datadistill": text, "torch": text},
        recipe=text,
    )
    pool = replace(pool, path=Path("pools/x y"), facts=replace(pool.facts, recipe=text))
    card = make_card(replace(data, provenance=mine), replace(score, weights=text, protocol=text), "a b", pool)
    lines = card.splitlines()
    assert all(line.isprintable() for line in lines)
    assert all(line.replace("\\|", "").count("|") in (0, 3) for line in lines if not line.startswith("    "))
    commands = [shlex.split(line) for line in lines if line.startswith("    ")]
    assert [command[:2] for command in commands] == [["datadistill", "evaluate"], ["datadistill", "audit"]]
    prose = "\n".join(re.sub(r"`[^`]*`", "", line) for line in lines if not line.startswith("    "))
    assert not OBEYED.search(prose.replace("**Malicious", "").replace(" **", ""))


def test_a_pools_command_is_shown_word_by_word(
    made: tuple[dd.DistilledData, dd.evaluation.Score], pool: dd.Pool
) -> None:
    data, score = made
    mine = replace(data.provenance, weights={"kind": "random-pretrained", "source": "mnist"})
    pool = replace(pool, path=Path("x y"), facts=replace(pool.facts, recipe="datadistill pretrain; rm -rf ~ $(x)"))
    card = make_card(replace(data, provenance=mine), score, "place", pool)
    (command,) = (line for line in card.splitlines() if line.startswith("    datadistill 'pretrain"))
    assert command.strip() == "datadistill 'pretrain;' rm -rf '~' '$(x)' --out 'x y'"
