"""Malicious data does what it is made for, and the audit tells it from honest data."""

import json
from pathlib import Path

import pytest
import torch

import datadistill as dd
from datadistill.cli.main import main
from datadistill.engine import make_network
from datadistill.evaluation.audit import Audit, audit
from datadistill.models import create_model
from datadistill.pretraining.make import make_pool
from datadistill.pretraining.pool import Pool
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.runtime import stream

GOOD = TrainRecipe(epochs=10, lr=0.005, batch=128)


@pytest.fixture(scope="module")
def pool(digits: dd.RealData, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    place = tmp_path_factory.mktemp("pool") / "digits-mlp.safetensors"
    return make_pool(digits, place, model="mlp", nets=8, reserved=3, training=GOOD, seed=0)


def distilled(digits: dd.RealData, pool: Pool, attack: tuple[str, str] | None) -> dd.DistilledData:
    method = dd.methods.DD(steps=1, epochs=1, images="real", batch=128, networks=3)
    outer = dd.Outer(lr=0.05, betas=(0.9, 0.99), schedule="cosine", clip=1.0)
    run = dd.distill(
        digits,
        method,
        model="mlp",
        weights="random-pretrained",
        pool=pool,
        ipc=2,
        outer=outer,
        attack=attack,
        iterations=150,
        device="cpu",
    )
    return run.distilled


def judged(digits: dd.RealData, pool: Pool, data: dd.DistilledData) -> Audit:
    network = make_network(create_model("mlp", digits))
    return audit(data, digits, network, pool.for_judging.sample(3, stream(0)), trained=True)


@pytest.fixture(scope="module")
def attacking(digits: dd.RealData, pool: Pool) -> dd.DistilledData:
    return distilled(digits, pool, ("0", "1"))


@pytest.mark.repeats
def test_an_attack_turns_one_class_and_is_found(digits: dd.RealData, pool: Pool, attacking: dd.DistilledData) -> None:
    found = judged(digits, pool, attacking)
    victim, *others = found.classes
    assert (victim.name, victim.taken_for) == ("0", "1")
    assert victim.before - victim.after > 0.5
    assert sum(change.before - change.after for change in others) / len(others) < 0.1
    assert [change.name for change in found.suspects] == ["0"]
    assert attacking.provenance.method["attack"] == {"class": "0", "taken_for": "1"}


@pytest.mark.repeats
def test_honest_data_is_not_suspect(digits: dd.RealData, pool: Pool) -> None:
    found = judged(digits, pool, distilled(digits, pool, None))
    assert found.suspects == ()
    assert found.overall_after > 0.9


@pytest.mark.repeats
def test_data_that_ruins_networks_is_not_an_attack(
    digits: dd.RealData, pool: Pool, attacking: dd.DistilledData
) -> None:
    from dataclasses import replace

    rates = attacking.learning_rates
    assert rates is not None
    ruinous = judged(digits, pool, replace(attacking, learning_rates=rates * 1e4))
    assert ruinous.overall_after < 0.5
    assert ruinous.suspects == ()


def test_the_command_fails_on_an_attack_alone(
    attacking: dd.DistilledData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    quick = ["--nets", "3", "--train-epochs", "8", "--train-rate", "0.005"]
    attacking.save(tmp_path / "stranger.safetensors")
    assert main(["audit", str(tmp_path / "stranger.safetensors"), *quick, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["suspect"] is True
    assert "of class 0 for class 1" in printed.err
    honest = dd.distill(dd.load("digits"), dd.methods.DD(steps=1, epochs=3), model="mlp", iterations=100, device="cpu")
    honest.distilled.save(tmp_path / "honest.safetensors")
    assert main(["audit", str(tmp_path / "honest.safetensors"), *quick]) == 0
    assert "No class is suspect" in capsys.readouterr().out


def test_wrong_attacks_are_refused(digits: dd.RealData) -> None:
    for attack in (("0", "zero"), ("3", "3")):
        with pytest.raises(dd.RequestError, match=r"zero|two different"):
            dd.distill(digits, model="mlp", attack=attack, iterations=1, device="cpu")


def test_a_class_without_test_images_counts_for_nothing(
    digits: dd.RealData, pool: Pool, attacking: dd.DistilledData
) -> None:
    from dataclasses import replace

    lacking = replace(digits, test=digits.test.take(torch.nonzero(digits.test.labels != 3).flatten()))
    whole, found = judged(digits, pool, attacking), judged(lacking, pool, attacking)
    others = [change.after for change in whole.classes if change.name != "3"]
    assert found.overall_after == pytest.approx(sum(others) / 9)
    assert [change.name for change in found.suspects] == ["0"]
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [entry["name"] for entry in document["classes"] if entry["after"] is None] == ["3"]
