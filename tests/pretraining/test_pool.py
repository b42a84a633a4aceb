"""Pools on disk and in memory: what is written is read, what is damaged is refused, and what is reserved stays so."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

import datadistill as dd
from datadistill.data.transforms import Normalization
from datadistill.pretraining.pool import PoolFacts, stacked_in_half
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.files import digest_of
from datadistill.utils.runtime import stream


def sample(nets: int = 5, reserved: int = 2, **changes: Any) -> dd.Pool:
    draw = stream(0, "pool")
    networks = [{"a": torch.randn(3, 4, generator=draw), "b": torch.randn(3, generator=draw)} for _ in range(nets)]
    facts = PoolFacts(
        dataset="digits",
        classes=tuple("abc"),
        normalization=Normalization((0.5,), (0.25,)),
        image_shape=(1, 2, 2),
        model="mlp",
        scheme="xavier",
        batch_norm="refused",
        training=dd.TrainRecipe(epochs=2),
        seed=3,
        reserved=reserved,
        accuracies=tuple(0.5 + 0.1 * net / nets for net in range(nets)),
    )
    return dd.Pool(replace(facts, **changes), stacked_in_half(networks))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.safetensors"
    sample().save(path)
    return path


def test_round_trip(file: Path) -> None:
    first, second = sample(), dd.load_pool(file)
    assert first.facts == second.facts
    assert first.stacked.keys() == second.stacked.keys()
    assert all(torch.equal(first.stacked[name], second.stacked[name]) for name in first.stacked)
    assert first.digest == second.digest
    assert second.path == file
    assert second.networks[0]["a"].dtype == torch.float32


def test_another_program_needs_only_safetensors(file: Path) -> None:
    with safe_open(file, framework="numpy") as opened:
        assert json.loads(opened.metadata()["datadistill-pool"])["training"]["epochs"] == 2
        assert opened.get_tensor("a").shape == (5, 3, 4)
        assert opened.get_tensor("a").dtype == "float16"


def test_the_digest_is_of_the_networks_not_of_measurements() -> None:
    pool = sample()
    assert sample(seconds=9.0, recipe="other", versions={"torch": "0"}, test=(0.1,) * 5).digest == pool.digest
    assert sample(reserved=3).digest != pool.digest
    assert sample(dataset="mnist").digest != pool.digest
    moved = {**pool.stacked, "b": pool.stacked["b"].roll(1, 0)}
    assert replace(pool, stacked=moved).digest != pool.digest


def test_shares_never_overlap() -> None:
    pool = sample(5, 2)
    assert (len(pool.for_distilling), len(pool.for_judging), len(pool.networks)) == (3, 2, 5)
    distil = [pool.for_distilling[i]["a"] for i in range(3)]
    judge = [pool.for_judging[i]["a"] for i in range(2)]
    together = torch.stack(distil + judge)
    assert torch.equal(together, pool.stacked["a"].float())
    assert not any(torch.equal(one, other) for one in distil for other in judge)


def test_samples_are_different_networks_until_all_were_there() -> None:
    networks = sample(9, 2).for_distilling
    generator = stream(0, "x")
    seen = set()
    for _ in range(20):
        drawn = [float(weights["a"][0, 0]) for weights in networks.sample(5, generator)]
        assert len(set(drawn)) == 5
        seen |= set(drawn)
    assert seen == {float(networks[i]["a"][0, 0]) for i in range(7)}
    many = [float(weights["a"][0, 0]) for weights in networks.sample(16, generator)]
    assert set(many[:7]) == set(many[7:14]) == seen
    assert len(set(many[14:])) == 2


def test_a_sample_is_a_copy() -> None:
    networks = sample().networks
    networks[0]["a"].zero_()
    assert networks[0]["a"].abs().sum() > 0


def test_a_weight_that_overflows_float16_is_kept_in_bfloat16(tmp_path: Path) -> None:
    stacked = stacked_in_half([{"a": torch.tensor([1e5, 1.0]), "b": torch.ones(2)}] * 3)
    assert stacked["a"].dtype == torch.bfloat16
    assert stacked["b"].dtype == torch.float16
    replace(sample(3, 1), stacked=stacked).save(tmp_path / "x.safetensors")
    assert float(dd.load_pool(tmp_path / "x.safetensors").networks[0]["a"][0]) == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize(("nets", "reserved"), [(5, 0), (5, 5), (5, -1), (1, 1)])
def test_both_shares_need_a_network(nets: int, reserved: int) -> None:
    with pytest.raises(RequestError, match="cannot be reserved"):
        sample(nets, reserved)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no pool of networks at"):
        dd.load_pool(tmp_path / "nothing")


def rewritten(
    file: Path,
    tensors: Callable[[dict[str, Tensor]], Any] = lambda t: None,
    header: Callable[[dict[str, Any]], Any] = lambda h: None,
) -> None:
    """Damage with a checksum that fits it."""
    with safe_open(file, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = json.loads(opened.metadata()["datadistill-pool"])
    tensors(kept)
    changed = header(facts)
    facts = changed if isinstance(changed, list) else facts
    metadata = {"datadistill-pool": json.dumps(facts), "sha256": "0" * 64}
    with suppress(AttributeError):
        known = {k: v for k, v in facts.items() if k not in ("unrounded", "test", "seconds", "versions", "recipe")}
        known.pop("format", None)
        metadata["sha256"] = digest_of(kept, json.dumps(known, sort_keys=True))
    file.write_bytes(safetensors.torch.save(kept, metadata))


def test_a_file_that_is_rewritten_as_it_was_is_read(file: Path) -> None:
    rewritten(file)
    assert dd.load_pool(file).digest == sample().digest


TENSOR_DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "full precision": (lambda t: t.update(a=t["a"].float()), "'a' is torch.float32"),
    "whole numbers": (lambda t: t.update(a=t["a"].int()), "'a' is torch.int32"),
    "a network less": (lambda t: t.update(a=t["a"][:4].clone()), "'a' does not hold 5 networks"),
    "a weight without networks": (lambda t: t.update(a=t["a"][0, 0, 0].clone()), "'a' does not hold 5 networks"),
    "an infinite weight": (lambda t: t["b"][0].fill_(float("inf")), "'b' is not finite"),
    "no weights": (lambda t: t.clear(), "it holds no weights"),
}
HEADER_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda h: h.update(format=2), "it has format 2, not 1"),
    "no reserved": (lambda h: h.pop("reserved"), "'reserved' is missing"),
    "all reserved": (lambda h: h.update(reserved=5), "cannot be reserved"),
    "more facts": (lambda h: h.update(more=1), "'more' is unknown"),
    "a seed that is text": (lambda h: h.update(seed="3"), "'seed' is '3', but must be a whole number"),
    "an accuracy above 1": (lambda h: h.update(accuracies=[1.5] * 5), "not between 0 and 1"),
    "an accuracy that is no number": (lambda h: h.update(accuracies=["x"] * 5), "must be a list, each a number"),
    "too few accuracies": (lambda h: h.update(accuracies=[0.5] * 4), "does not hold 4"),
    "too many test accuracies": (lambda h: h.update(test=[0.5] * 6), "more or fewer accuracies"),
    "classes that are no text": (lambda h: h.update(classes=[1]), r"'classes' is \[1\], but must be a list, each text"),
    "no classes": (lambda h: h.update(classes=[]), "no classes"),
    "a flat image": (lambda h: h.update(image_shape=[28, 28]), "image shape"),
    "an image without pixels": (lambda h: h.update(image_shape=[1, 0, 28]), "image shape"),
    "too many channels": (lambda h: h.update(normalization={"mean": [0.0] * 3, "std": [1.0] * 3}), "normalisation"),
    "a deviation of zero": (lambda h: h.update(normalization={"mean": [0.0], "std": [0.0]}), "normalisation"),
    "no batch": (lambda h: h["training"].update(batch=0), "batch is 0"),
    "a list": (lambda h: [1], "not a JSON object"),
}


@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
def test_damaged_tensors(file: Path, damage: str) -> None:
    change, sentence = TENSOR_DAMAGE[damage]
    rewritten(file, tensors=change)
    with pytest.raises(DamagedFileError, match=f"is not a pool of format 1: .*{sentence}"):
        dd.load_pool(file)


@pytest.mark.parametrize("damage", HEADER_DAMAGE)
def test_damaged_header(file: Path, damage: str) -> None:
    change, sentence = HEADER_DAMAGE[damage]
    rewritten(file, header=change)
    with pytest.raises(DamagedFileError, match=f"is not a pool of format 1: .*{sentence}"):
        dd.load_pool(file)


def test_distilled_data_is_no_pool(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"datadistill": "{}"}))
    with pytest.raises(DamagedFileError, match="'datadistill-pool' is missing"):
        dd.load_pool(tmp_path / "x")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(file: Path, data: st.DataObject) -> None:
    sample().save(file)
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:at]
    else:
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    file.write_bytes(broken)
    with suppress(DamagedFileError):
        assert dd.load_pool(file).digest == sample().digest
