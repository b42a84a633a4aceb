"""Expert trajectories: repeatable, resumable to the bit, read one epoch at a time, and refused where damaged."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import datadistill as dd
from datadistill.engine import make_network
from datadistill.evaluation import accuracy_of
from datadistill.models import create_model, draw_weights
from datadistill.pretraining.trajectories import FACTS_NAME, expert_path
from datadistill.training.fit import fit
from datadistill.utils.errors import DamagedFileError, DatadistillError, Interrupted, RequestError
from datadistill.utils.runtime import stream

TRAINING = dd.TrainRecipe(3, 0.05, 64, "sgd", schedule="constant", augment="crop_scale")


def make(real: dd.RealData, out: Path, **changes: Any) -> dd.Trajectories:
    options = {"model": "mlp", "experts": 3, "training": TRAINING, "device": "cpu"} | changes
    return dd.make_trajectories(real, out, **options)


class Killed(Exception):
    pass


def dies_at(number: int) -> Callable[[], None]:
    done: list[None] = []

    def count() -> None:
        done.append(None)
        if len(done) == number:
            raise Killed

    return count


def test_weights_are_those_of_training_after_each_epoch(digits: dd.RealData, tmp_path: Path) -> None:
    found = make(digits, tmp_path / "t")
    network = make_network(create_model("mlp", digits))
    start = draw_weights(network.module, "default", stream(0, "expert", 1, "start"))
    by_epoch: list[dict[str, torch.Tensor]] = []
    fit(network, start, digits.train, TRAINING, stream(0, "expert", 1, "order"), keep=by_epoch.append)
    assert len(by_epoch) == 4
    for epoch, weights in enumerate(by_epoch):
        kept = found.experts[1].weights(epoch)
        assert kept.keys() == weights.keys()
        assert all(torch.equal(kept[name], weight.half().float()) for name, weight in weights.items())
    assert not any(torch.equal(weight, by_epoch[3][name]) for name, weight in by_epoch[0].items())
    last = found.experts[1].weights(3)
    assert accuracy_of(network, last, digits.held_out).correct == found.facts.accuracies[1]
    assert (found.epochs, len(found), found.facts.dataset) == (3, 3, "digits")
    names = sorted(path.name for path in found.folder.iterdir() if path.name != ".lock")
    assert names == [*(f"expert-0000{i}.safetensors" for i in range(3)),
                                                                   FACTS_NAME]  # fmt: skip


def test_weights_that_overflow_float16_are_kept_in_bfloat16(tmp_path: Path) -> None:
    from datadistill.pretraining.trajectories import read_expert, write_expert

    epochs = [{"a": torch.full((2,), 10.0**power)} for power in (1, 6)]
    write_expert(tmp_path / "x", epochs, 0.5, 1.0)
    expert = read_expert(tmp_path / "x", 1)
    assert expert.shapes == {"a": (2,)}
    assert float(expert.weights(1)["a"][0]) == pytest.approx(1e6, rel=0.01)


def test_same_seed_same_digest(digits: dd.RealData, tmp_path: Path) -> None:
    first = make(digits, tmp_path / "a")
    torch.set_num_threads(2)
    assert make(digits, tmp_path / "b", command="other").digest == first.digest
    assert make(digits, tmp_path / "c", seed=1).digest != first.digest
    more = make(digits, tmp_path / "d", experts=4)
    assert more.facts.digests[:3] == first.facts.digests
    assert more.digest != first.digest


@pytest.mark.parametrize("threads", [1, 2])
def test_resumed_is_uninterrupted(digits: dd.RealData, tmp_path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    whole, said, counted = make(digits, tmp_path / "whole"), list[str](), list[None]()
    for number in (1, 5, 8):
        with pytest.raises(Killed):
            make(digits, tmp_path / "cut", resume=True, count=dies_at(number))
        with pytest.raises(RequestError, match="no expert trajectories in"):
            dd.load_trajectories(tmp_path / "cut")
    options = {"resume": True, "say": said.append, "count": lambda: counted.append(None)}
    assert make(digits, tmp_path / "cut", **options).digest == whole.digest
    assert any("experts are there already" in text for text in said)
    assert len(counted) == 9
    assert make(digits, tmp_path / "cut", **options).digest == whole.digest
    assert "finished already" in said[-1]


def test_a_damaged_expert_is_trained_again(digits: dd.RealData, tmp_path: Path) -> None:
    whole, said = make(digits, tmp_path / "whole"), list[str]()
    with pytest.raises(Killed):
        make(digits, tmp_path / "cut", count=dies_at(8))
    path = expert_path(tmp_path / "cut", 0)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert make(digits, tmp_path / "cut", resume=True, say=said.append).digest == whole.digest
    assert any("expert 1 is trained again" in text and "checksum of epoch" in text for text in said)


def test_other_settings_and_other_files_are_refused(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make(digits, tmp_path / "cut", count=dies_at(5))
    with pytest.raises(RequestError, match="add --resume to keep them"):
        make(digits, tmp_path / "cut")
    with pytest.raises(RequestError, match="have seed 0, but 1 is asked for"):
        make(digits, tmp_path / "cut", seed=1, resume=True)
    with pytest.raises(RequestError, match="have experts 3, but 4 is asked for"):
        make(digits, tmp_path / "cut", experts=4, resume=True)
    make(digits, tmp_path / "done")
    for changes in ({}, {"resume": True, "seed": 1}):
        with pytest.raises(RequestError, match="is there already"):
            make(digits, tmp_path / "done", **changes)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="something else than experts"):
        make(digits, tmp_path / "mine")


def test_ctrl_c_keeps_what_is_finished(digits: dd.RealData, tmp_path: Path) -> None:
    done: list[None] = []

    def count() -> None:
        done.append(None)
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="experts that are finished are kept in"):
        make(digits, tmp_path / "t", count=count)
    assert [path.name for path in (tmp_path / "t").glob("expert-*")] == ["expert-00000.safetensors"]


def test_a_size_over_the_cap_is_refused_before_anything_is_written(digits: dd.RealData, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RequestError, match=r"of 5000 experts take .* but 0\.1 GB are allowed"):
        make(digits, tmp_path / "t", experts=5000, max_gb=0.1)
    assert not list(tmp_path.iterdir())
    found = make(digits, tmp_path / "t", say=said.append)
    size = sum(expert.path.stat().st_size for expert in found.experts)
    assert said == ["3 experts, 4 times each, take 0.6 MB."]
    assert size == pytest.approx(0.6e6, rel=0.1)


def test_what_cannot_be_recorded_is_one_sentence(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(DatadistillError, match="expert 1 are not finite: give a lower --rate"):
        make(digits, tmp_path / "t", training=replace(TRAINING, lr=1e30))
    for changes in ({"experts": 0}, {"training": dd.TrainRecipe(epochs=0)}):
        with pytest.raises(RequestError, match="are no trajectories"):
            make(digits, tmp_path / "u", **changes)
    with pytest.raises(RequestError, match="no running statistics are kept here"):
        make(digits, tmp_path / "u", batch_norm="frozen")


def test_the_test_split_is_never_seen(digits: dd.RealData, tmp_path: Path) -> None:
    blind = replace(digits, test=replace(digits.test, images=torch.full_like(digits.test.images, torch.nan)))
    assert make(digits, tmp_path / "a").digest == make(blind, tmp_path / "b").digest


@pytest.fixture
def copied(trajectories: dd.Trajectories, tmp_path: Path) -> Path:
    shutil.copytree(trajectories.folder, tmp_path / "copied")
    return tmp_path / "copied"


def test_only_the_epoch_that_is_asked_for_is_read(copied: Path, trajectories: dd.Trajectories) -> None:
    """Damage in one epoch is met there, and nowhere else."""
    path = expert_path(copied, 0)
    with safe_open(path, framework="pt") as file:
        name, shape = next((n, file.get_slice(n).get_shape()) for n in file.keys())  # noqa: SIM118
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    begins = json.loads(content[8 : 8 + header])[name]["data_offsets"][0]
    of_one_epoch = 2 * torch.tensor(shape[1:]).prod().item()
    at = 8 + header + begins + 3 * int(of_one_epoch)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    damaged = dd.load_trajectories(copied).experts[0]
    for epoch in (0, 1, 2, 4):
        intact = trajectories.experts[0].weights(epoch)
        assert all(torch.equal(weight, intact[n]) for n, weight in damaged.weights(epoch).items())
    with pytest.raises(DamagedFileError, match="checksum of epoch 3 differs"):
        damaged.weights(3)


def test_experts_of_other_trajectories_are_refused(copied: Path) -> None:
    first, second = expert_path(copied, 0), expert_path(copied, 1)
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedFileError, match="its checksums differ"):
        dd.load_trajectories(copied)
    first.unlink()
    with pytest.raises(DatadistillError, match="No such file"):
        dd.load_trajectories(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"classes": []},
        {"classes": [1]},
        {"image_shape": [8, 8]},
        {"image_shape": [1, 0, 8]},
        {"normalization": {"mean": [0.1]}},
        {"normalization": {"mean": [0.1], "std": [0.0]}},
        {"normalization": {"mean": [10**400], "std": [1]}},
        {"training": {"epochs": -1}},
        {"training": {"epochs": 10**9}},
        {"training": {"spin": 1}},
        {"digests": []},
        {"digests": [1]},
        {"accuracies": [2.0] * 4},
        {"accuracies": ["x"] * 4},
        {"seed": "x"},
        {"model": None},
    ],
)
def test_malformed_facts_are_refused(copied: Path, change: dict[str, Any]) -> None:
    document = json.loads((copied / FACTS_NAME).read_text())
    (copied / FACTS_NAME).write_text(json.dumps(document | change))
    with pytest.raises(DamagedFileError):
        dd.load_trajectories(copied)


FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.fuzz
@settings(FUZZ, max_examples=examples(300))
@given(data=st.data())
def test_damage_is_one_sentence(data: st.DataObject, copied: Path, trajectories: dd.Trajectories) -> None:
    name = data.draw(st.sampled_from([FACTS_NAME, "expert-00001.safetensors"]))
    whole = (trajectories.folder / name).read_bytes()
    few = min(len(whole), 3000)  # the header, where damage is most varied
    at = data.draw(st.integers(0, few - 1) | st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "zero"]))
    changed = {
        "cut": whole[:at],
        "flip": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "insert": whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at:],
        "zero": whole[:at] + bytes(min(20, len(whole) - at)) + whole[at + 20 :],
    }[kind]
    (copied / name).write_bytes(changed)
    said = ""
    try:
        found = dd.load_trajectories(copied)
        for epoch in range(found.epochs + 1):
            intact = trajectories.experts[1].weights(epoch)
            assert all(torch.equal(weight, intact[n]) for n, weight in found.experts[1].weights(epoch).items())
    except DatadistillError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
    (copied / name).write_bytes(whole)
