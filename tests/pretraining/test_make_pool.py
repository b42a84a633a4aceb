"""Making pools: repeatable, resumable to the bit, honest about rounding, and careful with files."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import datadistill as dd
from datadistill.engine import Network, make_network
from datadistill.evaluation import accuracy_of
from datadistill.models import create_model
from datadistill.utils.errors import Interrupted, RequestError
from datadistill.utils.files import digest_of, read_tensors, write_tensors

TRAINING = dd.TrainRecipe(epochs=2, batch=128)


def make(real: dd.RealData, out: Path, **changes: Any) -> dd.Pool:
    options = {"model": "mlp", "nets": 5, "reserved": 2, "training": TRAINING, "device": "cpu"} | changes
    return dd.make_pool(real, out, **options)


def dies_at(number: int) -> Callable[[], None]:
    done: list[None] = []

    def count() -> None:
        done.append(None)
        if len(done) == number:
            raise Killed

    return count


class Killed(Exception):
    pass


def test_networks_learn_and_accuracies_are_those_of_the_rounded_weights(digits: dd.RealData, tmp_path: Path) -> None:
    pool = make(digits, tmp_path / "p.safetensors", training=dd.TrainRecipe(epochs=6, batch=64), test=True)
    network = make_network(create_model("mlp", digits))
    for split, accuracies in ((digits.held_out, pool.facts.accuracies), (digits.test, pool.facts.test)):
        found = [accuracy_of(network, pool.networks[i], split).correct for i in range(5)]
        assert tuple(found) == accuracies
        assert min(found) > 0.85
    assert max(abs(a - b) for a, b in zip(pool.facts.accuracies, pool.facts.unrounded, strict=True)) < 0.02
    first = pool.networks[0]
    assert all(not torch.equal(first[name], pool.networks[1][name]) for name in first)
    assert pool.facts.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_networks_of_another_pool_are_trained_further(digits: dd.RealData, tmp_path: Path) -> None:
    half = make(digits, tmp_path / "half", training=dd.TrainRecipe(epochs=1, batch=64))
    options = {"model": "mlp", "start": half, "training": dd.TrainRecipe(epochs=4, batch=64), "device": "cpu"}
    tuned = dd.make_pool(digits, tmp_path / "tuned", **options)
    assert (len(tuned), tuned.facts.reserved, tuned.facts.start) == (5, 2, half.digest)
    assert min(tuned.facts.accuracies) > max(half.facts.accuracies)
    assert dd.load_pool(tmp_path / "tuned").digest == tuned.digest
    same = dd.make_pool(digits, tmp_path / "same", **options | {"training": dd.TrainRecipe(epochs=0)})
    assert all(torch.equal(same.stacked[name], half.stacked[name]) for name in half.stacked)
    drawn = make(digits, tmp_path / "drawn", training=dd.TrainRecipe(epochs=0))
    assert not any(torch.equal(same.stacked[name], drawn.stacked[name]) for name in drawn.stacked if "weight" in name)


def test_further_training_can_be_interrupted(digits: dd.RealData, tmp_path: Path) -> None:
    make(digits, tmp_path / "half")
    options = {"model": "mlp", "start": tmp_path / "half", "training": TRAINING, "device": "cpu"}
    whole = dd.make_pool(digits, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        dd.make_pool(digits, tmp_path / "parts", count=dies_at(5), **options)
    assert dd.make_pool(digits, tmp_path / "parts", resume=True, **options).digest == whole.digest
    other = make(digits, tmp_path / "other", seed=1)
    with pytest.raises(Killed):
        dd.make_pool(digits, tmp_path / "mixed", count=dies_at(5), **options)
    with pytest.raises(RequestError, match="have start "):
        dd.make_pool(digits, tmp_path / "mixed", resume=True, **options | {"start": other})
    with pytest.raises(RequestError, match=r"have start \w+, but not given is asked for"):
        make(digits, tmp_path / "mixed", resume=True)


def test_a_pool_to_start_from_must_fit(digits: dd.RealData, tmp_path: Path) -> None:
    half = make(digits, tmp_path / "half")
    with pytest.raises(RequestError, match="has 5 networks and reserves 2, which stays so"):
        make(digits, tmp_path / "out", start=half, nets=4)
    with pytest.raises(RequestError, match="the network here is convnetd1w16"):
        dd.make_pool(digits, tmp_path / "out", start=half, model="convnetD1W16", device="cpu")


def test_same_seed_same_bits(digits: dd.RealData, tmp_path: Path) -> None:
    first = make(digits, tmp_path / "a")
    assert make(digits, tmp_path / "b").digest == first.digest
    assert make(digits, tmp_path / "c", seed=1).digest != first.digest
    torch.set_num_threads(2)
    assert make(digits, tmp_path / "d").digest == first.digest


def test_a_network_does_not_depend_on_those_beside_it(digits: dd.RealData, tmp_path: Path) -> None:
    few, many = make(digits, tmp_path / "a", nets=3), make(digits, tmp_path / "b", nets=6)
    assert all(torch.equal(few.stacked[name], many.stacked[name][:3]) for name in few.stacked)


def test_weights_are_drawn_while_no_other_thread_calls_the_module(
    digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datadistill.pretraining import make as making

    made: list[Network] = []
    draw, make_one = making.draw_weights, Network.with_operations

    def remember(*arguments: Any) -> Network:
        made.append(make_one(*arguments))
        return made[-1]

    def watched(*arguments: Any) -> Any:
        assert made[-1].alone.locked()
        return draw(*arguments)

    monkeypatch.setattr(Network, "with_operations", remember)
    monkeypatch.setattr(making, "draw_weights", watched)
    assert len(make(digits, tmp_path / "p")) == 5


@pytest.mark.parametrize("threads", [1, 2])
def test_resumed_is_uninterrupted(digits: dd.RealData, tmp_path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    whole = make(digits, tmp_path / "whole")
    counted: list[None] = []
    for number in (1, 4, 8):
        with pytest.raises(Killed):
            make(digits, tmp_path / "cut", resume=True, count=dies_at(number))
        assert not (tmp_path / "cut").exists()
    said: list[str] = []
    pool = make(digits, tmp_path / "cut", resume=True, say=said.append, count=lambda: counted.append(None))
    assert pool.digest == whole.digest
    assert any("networks are there already" in text for text in said)
    assert len(counted) == 5 * TRAINING.epochs
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}


@pytest.mark.parametrize("change", [lambda weight: weight[:-1], lambda weight: weight.half(), lambda w: w * torch.nan])
def test_a_part_of_another_network_is_trained_again(change: Any, digits: dd.RealData, tmp_path: Path) -> None:
    whole = make(digits, tmp_path / "whole")
    with pytest.raises(Killed):
        make(digits, tmp_path / "cut", count=dies_at(5))
    part = sorted((tmp_path / "cut.parts").glob("network-*"))[0]
    tensors, metadata = read_tensors(part)
    tensors = {name: change(weight) for name, weight in tensors.items()}
    write_tensors(part, tensors, metadata | {"sha256": digest_of(tensors, metadata["seconds"])})
    assert make(digits, tmp_path / "cut", resume=True).digest == whole.digest


def test_a_damaged_part_is_trained_again(digits: dd.RealData, tmp_path: Path) -> None:
    whole = make(digits, tmp_path / "whole")
    with pytest.raises(Killed):
        make(digits, tmp_path / "cut", count=dies_at(5))
    parts = sorted((tmp_path / "cut.parts").glob("network-*"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    altered = bytearray(parts[1].read_bytes())
    altered[-3] ^= 1
    parts[1].write_bytes(altered)
    said: list[str] = []
    assert make(digits, tmp_path / "cut", resume=True, say=said.append).digest == whole.digest
    assert sum("is trained again" in text for text in said) == 2


def test_other_settings_are_refused(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make(digits, tmp_path / "p", count=dies_at(5))
    with pytest.raises(RequestError, match="add --resume"):
        make(digits, tmp_path / "p")
    for changes, sentence in (
        ({"seed": 1}, "have seed 0, but 1"),
        ({"nets": 6}, "have nets 5, but 6"),
        ({"training": dd.TrainRecipe(epochs=3, batch=64)}, "have training"),
        ({"scheme": "he"}, "have scheme xavier, but he"),
    ):
        with pytest.raises(RequestError, match=sentence):
            make(digits, tmp_path / "p", resume=True, **changes)
    assert len(make(digits, tmp_path / "p", resume=True)) == 5


def test_nothing_is_overwritten(digits: dd.RealData, tmp_path: Path) -> None:
    first = make(digits, tmp_path / "p")
    with pytest.raises(RequestError, match="is there already"):
        make(digits, tmp_path / "p")
    with pytest.raises(RequestError, match="is there already"):
        make(digits, tmp_path / "p", resume=True, seed=1)
    said: list[str] = []
    assert make(digits, tmp_path / "p", resume=True, say=said.append).digest == first.digest
    assert "is finished already" in said[-1]
    (tmp_path / "q.parts").mkdir()
    (tmp_path / "q.parts" / "mine.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RequestError, match="something else than networks"):
            make(digits, tmp_path / "q", resume=resume)


def test_ctrl_c_keeps_what_is_finished(digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threading.current_thread() is threading.main_thread()
    done: list[None] = []

    def count() -> None:
        done.append(None)
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"finished are kept in .*p\.parts"):
        make(digits, tmp_path / "p", count=count)
    assert len(list((tmp_path / "p.parts").glob("network-*"))) == 2


def test_one_process_at_a_time(digits: dd.RealData, tmp_path: Path) -> None:
    refused: list[str] = []

    def count() -> None:
        if not refused:
            with pytest.raises(RequestError, match=r"another process is running in .*p\.parts") as caught:
                make(digits, tmp_path / "p", resume=True)
            refused.append(str(caught.value))

    assert make(digits, tmp_path / "p", count=count).digest == make(digits, tmp_path / "q").digest
    assert len(refused) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"p", "q"}


def test_parts_that_are_removed_end_it(digits: dd.RealData, tmp_path: Path) -> None:
    done: list[None] = []

    def count() -> None:
        done.append(None)
        if len(done) == 3:
            shutil.rmtree(tmp_path / "p.parts")

    with pytest.raises(dd.DatadistillError, match=r"p\.parts was removed while it was written to"):
        make(digits, tmp_path / "p", count=count)
    assert not list(tmp_path.iterdir())


def test_a_size_over_the_cap_is_refused_before_anything_is_written(digits: dd.RealData, tmp_path: Path) -> None:
    said: list[str] = []
    weights = sum(weight.numel() for weight in create_model("mlp", digits).parameters())
    with pytest.raises(RequestError, match=r"2000 networks take .* but 0\.1 GB are allowed"):
        make(digits, tmp_path / "p", nets=2000, max_gb=0.1)
    assert not list(tmp_path.iterdir())
    make(digits, tmp_path / "p", say=said.append, training=dd.TrainRecipe(epochs=0))
    assert said == [f"5 networks take {5 * 2 * weights / 1e6:.1f} MB, and {5 * 4 * weights / 1e6:.1f} MB more while "
                    "they are trained."]  # fmt: skip
    assert (tmp_path / "p").stat().st_size == pytest.approx(5 * 2 * weights, rel=0.05)


def test_training_that_diverges_is_one_sentence(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(dd.DatadistillError, match="are not finite: give a lower --rate"):
        make(digits, tmp_path / "p", training=dd.TrainRecipe(epochs=3, lr=1e30))


def test_the_test_split_is_for_its_own_accuracies_only(digits: dd.RealData, tmp_path: Path) -> None:
    from dataclasses import replace

    blind = replace(digits, test=replace(digits.test, images=torch.full_like(digits.test.images, torch.nan)))
    assert make(digits, tmp_path / "a").digest == make(blind, tmp_path / "b").digest
    assert make(digits, tmp_path / "c", test=True).digest == make(digits, tmp_path / "d").digest


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_running_statistics_need_a_policy(digits: dd.RealData, tmp_path: Path) -> None:
    for policy, sentence in (("refused", "running statistics"), ("frozen", "no running statistics are kept here")):
        with pytest.raises(RequestError, match=sentence):
            make(digits, tmp_path / "p", model=with_batch_norm, batch_norm=policy)
    pool = make(digits, tmp_path / "p", model=with_batch_norm, batch_norm="batch")
    options = {"model": with_batch_norm, "weights": "random-pretrained", "pool": pool, "iterations": 2, "device": "cpu"}
    with pytest.raises(RequestError, match="choose --batch-norm batch"):
        dd.distill(digits, dd.methods.DD(networks=2, batch=64), batch_norm="frozen", **options)
    run = dd.distill(digits, dd.methods.DD(networks=2, batch=64), batch_norm="batch", **options)
    assert dd.evaluate(run.distilled, digits, model=with_batch_norm, pool=pool).nets == 2


def test_dropout_draws_from_the_networks_own_generator(digits: dd.RealData, tmp_path: Path) -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 10))

    torch.manual_seed(1)
    first = make(digits, tmp_path / "a", model=dropping)
    torch.manual_seed(2)
    torch.set_num_threads(2)
    assert make(digits, tmp_path / "b", model=dropping).digest == first.digest


def test_the_folder_says_what_it_is(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make(digits, tmp_path / "p", count=dies_at(3))
    config = json.loads((tmp_path / "p.parts" / "config.json").read_text())
    assert (config["dataset"], config["model"], config["nets"], config["device"]) == ("digits", "mlp", 5, "cpu")


def test_parts_that_are_a_link_are_refused(digits: dd.RealData, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "pool.parts").symlink_to(tmp_path / "mine")
    with pytest.raises(dd.RequestError, match=r"pool\.parts is a link"):
        dd.make_pool(digits, tmp_path / "pool", model="mlp", nets=2, reserved=1, resume=True)
    assert not any((tmp_path / "mine").iterdir())
