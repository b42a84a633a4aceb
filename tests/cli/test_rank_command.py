"""`rank`: the scores of DD-Ranking and DC-BENCH from networks that are trained here."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.cli.main import main
from datadistill.distillation.problem import make_problem
from datadistill.training.carried import TAKES_LEARNED, inner_of
from datadistill.training.recipe import DC

QUICK = ["--nets", "2", "--sets", "2", "--epochs", "4", "--augment", "crop", "--full-epochs", "2"]


@pytest.fixture
def data(digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dd.DistilledData:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 2)
    cpu = torch.device("cpu")
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="default", ipc=5, seed=3, device=cpu)
    found = RandomReal(recipe=replace(DC, epochs=4)).run(problem)[0]
    found.save("set.safetensors")
    return found


def test_scores_are_made_of_the_parts(data: dd.DistilledData, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "set.safetensors", *QUICK, "--transfer", "ConvNetD1W16", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    parts = {name: part["accuracy"]["mean"] for name, part in document["parts"].items()}
    scores = document["scores"]
    alpha = 0.5 * (parts["syn_own"] - parts["random_own"]) - 0.5 * (parts["real_hard"] - parts["syn_hard"])
    lowest, highest = math.exp(-1), math.e
    assert scores["LRS, label robust score"] == pytest.approx((math.exp(alpha) - lowest) / (highest - lowest))
    assert scores["average over augmentations"] == pytest.approx((parts["syn_plain"] + parts["syn_augmented"]) / 2)
    assert scores["average over transfer"] == parts["transfer_ConvNetD1W16"]
    assert document["parts"]["syn_own"]["settings"] == inner_of(replace(DC, epochs=4))
    assert document["parts"]["syn_augmented"]["settings"] == inner_of(replace(DC, epochs=4, augment="crop"))
    assert document["parts"]["real_hard"]["settings"]["epochs"] == 2
    assert document["parts"]["real_hard"]["model"] == "mlp"
    assert document["parts"]["random_plain"]["nets"] == 2


def test_soft_labels_count_in_the_own_protocol_alone(
    data: dd.DistilledData, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = torch.eye(10)[(data.labels + 1) % 10]
    replace(data, soft_labels=wrong).save("soft.safetensors")
    assert main(["rank", "soft.safetensors", *QUICK, "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert parts["syn_hard"]["accuracy"] == parts["syn_plain"]["accuracy"] != parts["syn_own"]["accuracy"]


def test_a_learned_rate_is_for_the_distilled_images_alone(
    data: dd.DistilledData, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = data.provenance.inner | {TAKES_LEARNED: True}
    learned = replace(data.provenance, inner=inner)
    replace(data, learning_rates=torch.tensor([0.0007]), provenance=learned).save("learned.safetensors")
    assert main(["rank", "learned.safetensors", *QUICK, "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    rates = {name: part["settings"]["rate"] for name, part in parts.items()}
    for name, rate in rates.items():
        assert rate == pytest.approx(0.0007 if name.startswith("syn") else 0.01)


def test_data_with_steps_of_its_own(data: dd.DistilledData, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "digits", "--model", "mlp", "--steps", "1", "--epochs", "1", "--iterations", "2"]
    assert main(["distill", *words, "--nets", "1", "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["rank", "run", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "random images, by as many steps" in out
    assert "the full dataset, 2 epochs" in out
    assert "ARS" in out


def test_wrong_requests(data: dd.DistilledData, capsys: pytest.CaptureFixture[str]) -> None:
    one = data.labels == 0
    only = replace(data, images=data.images[one], labels=data.labels[one], batches=torch.arange(int(one.sum()))[None])
    only.save("one.safetensors")
    for words, sentence in (
        (["set.safetensors", "--augment", "none"], "needs an augmentation"),
        (["set.safetensors", "--augment", "turn"], "augmentation"),
        (["one.safetensors"], "no image of some classes"),
        (["set.safetensors", "--transfer", "ConvNetD1W16,MLP"], "the network of the set itself"),
        (["set.safetensors", "--transfer", "ConvNetD1W16,lenett"], "lenett"),
    ):
        assert main(["rank", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert sentence in captured.err
