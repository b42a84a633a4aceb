"""JSON as dataclasses: what fits is read as it was written, what does not is one sentence."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.schema import as_hinted, from_json, of_format, read_header, to_json


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.name == "wrong":
            raise RequestError("a name is wrong,\nbut must be right")


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    rate: float
    count: int | list[int]
    pair: tuple[int, int] = (1, 2)
    kind: Literal["adam", "sgd"] = "adam"
    note: str | None = None
    is_done: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    part: Part | None = None


LEAST: dict[str, Any] = {"parts": [], "rate": 0.5, "count": 1}


@pytest.mark.parametrize(
    "whole",
    [
        Whole([], 0.5, 1),
        Whole(
            [Part("a", (1, 2)), Part("b")], 3, [1, 2], (3, 4), "sgd", "x", True, {"a": "b"}, {"a": [None]}, Part("c")
        ),
    ],
)
def test_round_trip(whole: Whole) -> None:
    assert from_json(Whole, to_json(asdict(whole))) == whole


def test_a_whole_number_stays_one_where_any_number_is_asked_for() -> None:
    assert json.dumps(from_json(Whole, LEAST | {"rate": 1}).rate) == "1"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": "x"}, "'rate' is 'x', but must be a number"),
        ({"rate": True}, "'rate' is True, but must be a number"),
        ({"rate": float("nan")}, "'rate' is nan, but must be a number"),
        ({"rate": 10**400}, "'rate' is 1000.*0, but must be a number"),
        ({"count": 1.0}, "'count' is 1.0, but must be a whole number or a list, each a whole number"),
        ({"count": [True]}, "'count' is .True., but must be a whole number or a list, each a whole number"),
        ({"pair": [1]}, "'pair' is .1., but must be a list of 2, each a whole number"),
        ({"kind": "rms"}, "'kind' is 'rms', but must be adam or sgd"),
        ({"note": 1}, "'note' is 1, but must be text or null"),
        ({"is_done": 1}, "'is_done' is 1, but must be true or false"),
        ({"versions": {"a": 1}}, "'versions' is .*, but must be an object"),
        ({"parts": {}}, "'parts' is .*, but must be a list, each an object"),
        ({"parts": [{}]}, "'name' is missing"),
        ({"parts": [{"name": "wrong"}]}, "a name is wrong, but must be right"),
        ({"part": {"name": "a", "b\n": 1}}, r"'b\\n' is unknown"),
        ({"x" * 99: 1}, "'x+...x+' is unknown"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DamagedFileError, match=f"^{sentence}$"):
        from_json(Whole, LEAST | change)
    with pytest.raises(RequestError, match=f"^{sentence}$"):
        from_json(Whole, LEAST | change, RequestError)


def test_some_fields_alone() -> None:
    @dataclass
    class Asked:
        ipc: float | Sequence[int] | Path | None
        seed: int

    assert as_hinted(Asked, {"ipc": [1, 2], "more": 1}) == {"ipc": [1, 2]}
    with pytest.raises(DamagedFileError, match=r"^'ipc' is .'x'., but must be a number or a list, each a whole number"):
        as_hinted(Asked, {"ipc": ["x"]})


def test_what_may_be_missing() -> None:
    whole = json.loads(json.dumps(asdict(Whole([], 0.5, 1))))
    for name in ("parts", "note"):
        less = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(DamagedFileError, match=f"^'{name}' is missing$"):
            from_json(Whole, less, optional=["part"])
    del whole["part"]
    assert from_json(Whole, whole, optional=["part"]) == Whole([], 0.5, 1)
    with pytest.raises(DamagedFileError, match="not a JSON object"):
        from_json(Whole, [])


def test_formats() -> None:
    assert of_format({"format": 1, "a": 2}, 1) == {"a": 2}
    assert read_header({"key": '{"format": 1}'}, "key", 1) == {}
    for text, sentence in (("[1]", "not a JSON object"), ("{}", "has format None, not 1"), ("[" * 9999, "not JSON")):
        with pytest.raises(DamagedFileError, match=sentence):
            read_header({"key": text}, "key", 1)
    with pytest.raises(DamagedFileError, match="the metadata key 'key' is missing"):
        read_header({}, "key", 1)
