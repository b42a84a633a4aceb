"""The pretrained kinds of initial weights, from problem to evaluation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.distillation.problem import make_problem
from datadistill.distillation.run_folder import RunFolder
from datadistill.engine import Weights, make_network
from datadistill.evaluation import accuracy_of
from datadistill.methods import DD, Problem
from datadistill.models import create_model
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

METHOD = DD(images="mean", batch=64, networks=2)


def problem(real: dd.RealData, weights: str, pool: dd.Pool | None, **changes: Any) -> Problem:
    options = {"model": "mlp", "scheme": "he", "ipc": 1, "seed": 0, "device": torch.device("cpu")} | changes
    return make_problem(real, weights=weights, pool=pool, **options)


def run(real: dd.RealData, weights: str, pool: dd.Pool | str | Path | None, **changes: Any) -> dd.Run:
    options = {"model": "mlp", "iterations": 10, "outer": dd.Outer(lr=0.03, eval_every=5), "device": "cpu"} | changes
    return dd.distill(real, METHOD, weights=weights, pool=pool, **options)


def remade(pool: dd.Pool, **facts: Any) -> dd.Pool:
    return dd.Pool(replace(pool.facts, **facts), pool.stacked)


def is_in(weights: Weights, networks: Any) -> bool:
    return any(all(torch.equal(w, other[n]) for n, w in weights.items()) for other in networks)


def test_distilling_draws_all_networks_but_the_reserved_ones(digits: dd.RealData, pool: dd.Pool) -> None:
    starts = problem(digits, "random-pretrained", pool).starts
    assert starts.fixed is None
    seen = {
        float(weights["layers.1.weight"][0, 0])
        for step in range(60)
        for weights in starts.sample(4, stream(0, "step", step))
    }
    assert seen == {float(pool.for_distilling[i]["layers.1.weight"][0, 0]) for i in range(25)}
    assert not any(float(pool.for_judging[i]["layers.1.weight"][0, 0]) in seen for i in range(10))


def test_a_run_never_touches_the_reserved_networks(digits: dd.RealData, pool: dd.Pool) -> None:
    stacked = {name: stack.clone() for name, stack in pool.stacked.items()}
    for stack in stacked.values():
        stack[-10:] = torch.nan
    blind = dd.Pool(pool.facts, stacked)
    for weights in ("random-pretrained", "fixed-pretrained"):
        found = [run(digits, weights, one).distilled.images for one in (pool, blind)]
        assert torch.equal(*found)


def test_evaluating_touches_only_the_reserved_networks(digits: dd.RealData, pool: dd.Pool) -> None:
    data = run(digits, "random-pretrained", pool).distilled
    score = dd.evaluate(data, digits, pool=pool)
    network = make_network(create_model("mlp", digits))
    expected = [accuracy_of(network, pool.for_judging[i], digits.test).correct for i in range(10)]
    assert score.nets == 10
    assert score.before.mean == pytest.approx(sum(expected) / 10)
    assert score.weights == f"random-pretrained (digits, pool {pool.digest[:8]})"
    three = dd.evaluate(data, digits, nets=3, pool=pool)
    assert three.nets == 3
    with pytest.raises(RequestError, match="nets is 11, but the pool has 10 networks for judging"):
        dd.evaluate(data, digits, nets=11, pool=pool)


def test_of_another_pool_all_networks_judge(digits: dd.RealData, pool: dd.Pool) -> None:
    data = run(digits, "random-pretrained", pool).distilled
    other = remade(pool, seed=1)
    assert dd.evaluate(data, digits, nets=35, pool=other).nets == 35
    assert dd.evaluate(data, digits, pool=other).nets == 20
    further = remade(pool, start=pool.digest)
    assert dd.evaluate(data, digits, pool=further).nets == 10, "networks trained further are no strangers"


def test_without_a_pool_the_sentence_names_the_one_that_was_used(digits: dd.RealData, pool: dd.Pool) -> None:
    data = run(digits, "random-pretrained", pool).distilled
    with pytest.raises(RequestError, match=rf"mlp, trained on digits, of pool {pool.digest[:8]}: give its file"):
        dd.evaluate(data, digits)
    assert dd.evaluate(data, digits, weights="random-init", nets=2).weights == "random-init (xavier)"
    with pytest.raises(RequestError, match="which take no pool"):
        dd.evaluate(data, digits, weights="random-init", pool=pool)


def test_fixed_pretrained_is_one_network_that_belongs_to_the_result(digits: dd.RealData, pool: dd.Pool) -> None:
    data = run(digits, "fixed-pretrained", pool).distilled
    mine = data.provenance.weights
    assert mine == {
        "kind": "fixed-pretrained",
        "scheme": "xavier",
        "pool": pool.digest,
        "source": "digits",
        "index": mine["index"],
    }
    assert data.initial_weights is not None
    assert is_in(data.initial_weights, [pool.for_distilling[mine["index"]]])
    network = make_network(create_model("mlp", digits))
    score = dd.evaluate(data, digits)
    assert score.nets == 1
    assert score.weights == "fixed-pretrained (digits)"
    assert score.before.mean == accuracy_of(network, data.initial_weights, digits.test).correct
    assert dd.evaluate(data, digits, pool=pool).accuracy == score.accuracy
    with pytest.raises(RequestError, match="which take no pool: leave it out"):
        dd.evaluate(data, digits, pool=remade(pool, seed=1))
    indices = {problem(digits, "fixed-pretrained", pool, seed=seed).provenance("", {}, {}).weights["index"]
               for seed in range(8)}  # fmt: skip
    assert len(indices) > 3
    assert max(indices) < 25


def test_a_module_that_comes_trained_needs_no_pool(digits: dd.RealData, tmp_path: Path) -> None:
    def trained() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            module[1].weight.copy_(torch.linspace(-0.5, 0.5, 640).view(10, 64))
            module[1].bias.zero_()
        return module

    data = run(digits, "fixed-pretrained", None, model=trained, iterations=100).distilled
    assert data.provenance.weights == {"kind": "fixed-pretrained"}
    assert data.initial_weights is not None
    assert is_in(data.initial_weights, [{f"1.{name}": w for name, w in trained()[1].named_parameters()}])
    data.save(tmp_path / "x.safetensors")
    score = dd.evaluate(dd.load_distilled(tmp_path / "x.safetensors"), digits, model=trained)
    assert score.weights == "fixed-pretrained (the module's own)"
    assert score.accuracy.ci95[0] > score.before.ci95[1]


def test_what_needs_a_pool_and_what_takes_none(digits: dd.RealData, pool: dd.Pool) -> None:
    with pytest.raises(RequestError, match="make one with `datadistill pretrain`"):
        problem(digits, "random-pretrained", None)
    with pytest.raises(RequestError, match="mlp has none of its own"):
        problem(digits, "fixed-pretrained", None)
    for kind in ("random-init", "fixed-init"):
        with pytest.raises(RequestError, match=f"{kind} draws its weights"):
            problem(digits, kind, pool)
    with pytest.raises(RequestError, match="takes 26 networks, but the pool has 25 for distilling"):
        dd.distill(
            digits, DD(batch=64, networks=26), model="mlp", weights="random-pretrained", pool=pool, iterations=1
        )  # fmt: skip


def test_matching_takes_one_network_of_a_pool_at_a_time(digits: dd.RealData, tmp_path: Path) -> None:
    training = dd.TrainRecipe(epochs=1, batch=256)
    small = dd.make_pool(digits, tmp_path / "pool", model="mlp", nets=3, reserved=1, training=training, device="cpu")
    for method in (dd.methods.DM(batch=8), dd.methods.DC(batch=8)):
        run = dd.distill(digits, method, model="mlp", weights="random-pretrained", pool=small, iterations=2)
        assert run.distilled.provenance.weights["kind"] == "random-pretrained"


def test_a_pool_that_does_not_fit_is_refused(digits: dd.RealData, mnist: dd.RealData, pool: dd.Pool) -> None:
    fewer = replace(digits, classes=digits.classes[:9])
    wider = dd.Pool(pool.facts, {**pool.stacked, "layers.1.bias": torch.zeros(35, 7).half()})
    for real, one, model, sentence in (
        (mnist, pool, "mlp", r"images are \(1, 8, 8\), but those of mnist are \(1, 28, 28\)"),
        (fewer, pool, "mlp", "10 classes apart, but digits has 9"),
        (digits, pool, "ConvNetD1W4", "holds networks mlp, but the network here is convnetd1w4"),
        (digits, wider, "mlp", "weights do not fit mlp"),
    ):
        for kind in ("random-pretrained", "fixed-pretrained"):
            with pytest.raises(RequestError, match=sentence):
                problem(real, kind, one, model=model)


def test_adaptation_from_another_dataset(digits: dd.RealData, pool: dd.Pool) -> None:
    """Networks that know the digits adapt to digits that are named otherwise and seen as negatives."""

    def shifted(split: Any) -> Any:
        return replace(split, images=-split.images, labels=(split.labels + 1) % 10)

    target = replace(
        digits,
        name="negatives",
        train=shifted(digits.train),
        held_out=shifted(digits.held_out),
        test=shifted(digits.test),
    )
    options = {"outer": dd.Outer(lr=0.03, betas=(0.5, 0.99), schedule="cosine", eval_every=25), "iterations": 150}
    data = run(target, "random-pretrained", pool, **options).distilled
    assert data.provenance.dataset == "negatives"
    assert data.provenance.weights["source"] == "digits"
    score = dd.evaluate(data, target, pool=pool)
    assert score.before.mean < 0.2
    assert score.accuracy.ci95[0] > 0.5


def test_baselines_start_from_the_pool_too(digits: dd.RealData, pool: dd.Pool) -> None:
    data = RandomReal().run(problem(digits, "random-pretrained", pool))[0]
    assert data.provenance.weights["pool"] == pool.digest
    assert dd.evaluate(data, digits, pool=pool).nets == 10


def test_a_resumed_run_refuses_another_pool(digits: dd.RealData, pool: dd.Pool, tmp_path: Path) -> None:
    assert pool.path is not None
    whole = run(digits, "random-pretrained", str(pool.path), out=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["pool"], config["pool_digest"]) == (str(pool.path), pool.digest)
    other = remade(pool, seed=1)
    with pytest.raises(RequestError, match="pool_digest is"):
        run(digits, "random-pretrained", other, out=tmp_path / "run", resume=True)
    moved = tmp_path / "elsewhere.safetensors"
    pool.save(moved)
    again = run(digits, "random-pretrained", moved, out=tmp_path / "run", resume=True)
    assert torch.equal(whole.distilled.images, again.distilled.images)


def test_settings_from_before_there_were_pools_are_read(digits: dd.RealData, tmp_path: Path) -> None:
    run(digits, "random-init", None, out=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("pool") is None
    assert config.pop("pool_digest") is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert RunFolder(tmp_path).settings().asked["pool"] is None
    run(digits, "random-init", None, out=tmp_path, resume=True)
