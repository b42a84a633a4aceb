"""What a run takes for granted of a network is asked once: put right and said where it can be, else one sentence."""

import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datadistill as dd
from datadistill.engine import Network, network_for
from datadistill.engine.differentiability import require_differentiable
from datadistill.engine.features import headless
from datadistill.models import draw_weights
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

CPU = torch.device("cpu")


def network(model: Any, real: dd.RealData, **options: Any) -> Network:
    return network_for(model, real, CPU, **options)


def weights_of(network: Network) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in network.module.named_parameters()}


def body(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10), *layers)


class Then(nn.Module):
    """A network, and a function of what it answers."""

    def __init__(self, after: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body()
        self.after = after

    def forward(self, images: Tensor) -> Any:
        return self.after(self.body(images))


@pytest.mark.parametrize(
    ("after", "end"),
    [
        (nn.Softmax(1), "softmax"),
        (lambda scores: F.softmax(scores, 1), "softmax"),
        (lambda scores: scores.exp() / scores.exp().sum(1, keepdim=True), "softmax"),
        (nn.Sigmoid(), "sigmoid"),
        (torch.sigmoid, "sigmoid"),
    ],
)
def test_shares_are_taken_for_what_they_are(after: Callable[..., Any], end: str, digits: dd.RealData) -> None:
    ended, bare = network(lambda: Then(after), digits), network(lambda: Then(nn.Identity()), digits)
    assert [f"ends in a {end}" in remark for remark in ended.remarks] == [True]
    assert bare.remarks == ()
    images = digits.train.images[:3]
    scores, expected = (each.logits(weights_of(bare), images) for each in (ended, bare))
    assert torch.allclose(scores.log_softmax(1), expected.log_softmax(1), atol=1e-4)
    if end == "softmax":
        assert torch.allclose(
            ended.plain.loss(weights_of(bare), images, digits.train.labels[:3]),
            bare.loss(weights_of(bare), images, digits.train.labels[:3]),
            atol=1e-4,
        )


def test_a_softmax_inside_of_a_network_stays(digits: dd.RealData) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.last, self.shares = nn.Linear(64, 8), nn.Linear(8, 10), nn.Softmax(1)

        def forward(self, images: Tensor) -> Tensor:
            return self.shares(self.last(self.shares(self.gate(images.flatten(1)))))  # type: ignore[no-any-return]

    images, ours = digits.train.images[:3], network(Gated, digits)
    module = Gated()
    module.load_state_dict(weights_of(ours))
    assert torch.allclose(ours.logits(weights_of(ours), images).softmax(1), module(images), atol=1e-5)


def test_features_are_what_the_last_linear_layer_is_given(digits: dd.RealData) -> None:
    images = digits.train.images[:3]
    for end in ([], [nn.Softmax(1)]):
        ours = network(lambda end=end: body(*end), digits)
        features = headless(ours, images[:1]).logits(weights_of(ours), images)
        assert torch.allclose(features, ours.module[:3](images))
    ours = network(lambda: Then(lambda scores: 2 * scores.softmax(1)), digits)
    features = headless(ours, images[:1]).logits(weights_of(ours), images)
    assert torch.allclose(features, ours.module.body[:3](images))


def partly_frozen() -> nn.Sequential:
    module = body()
    module[1].requires_grad_(False)
    return module


@pytest.mark.parametrize("weights", ["fixed-init", "random-init"])
def test_frozen_layers_stay_as_they_are(weights: str, digits: dd.RealData) -> None:
    module = partly_frozen()
    said: list[str] = []

    class Listening:
        def update(self, status: Any) -> None: ...

        def say(self, text: str) -> None:
            said.append(text)

    method = dd.methods.DD(steps=1, epochs=2, batch=32, networks=1)
    run = dd.distill(digits, method, model=module, weights=weights, iterations=2, device="cpu", reporter=Listening())
    assert said[0] == "weight 1.weight, 1.bias stays as it is: requires_grad is False"
    problem_network = network(module, digits)
    assert list(weights_of(problem_network)) == ["3.weight", "3.bias"]
    assert torch.equal(problem_network.constants["1.weight"], module[1].weight)
    if weights == "fixed-init":  # the file holds all of the network, and is what judges it
        start = run.distilled.initial_weights
        assert start is not None
        module.load_state_dict(start)
        other = partly_frozen()
        expected, found = (dd.evaluate(run.distilled, digits, model=each).accuracy for each in (module, other))
        assert expected == found
        with torch.no_grad():
            for t, rate in enumerate(run.distilled.learning_rates.tolist()):
                with torch.enable_grad():
                    batch = run.distilled.batches[t % len(run.distilled.batches)]
                    loss = F.cross_entropy(module(run.distilled.images[batch]), run.distilled.labels[batch])
                last = list(module[3].parameters())
                for weight, g in zip(last, torch.autograd.grad(loss, last), strict=True):
                    weight -= rate * g
            by_hand = (module(digits.test.images).argmax(1) == digits.test.labels).float().mean()
        assert found.mean == pytest.approx(float(by_hand))


def test_frozen_layers_of_a_pool_stay_as_they_are(digits: dd.RealData, tmp_path: Any) -> None:
    pool = dd.make_pool(digits, tmp_path / "p.safetensors", model=partly_frozen, nets=2, reserved=1, device="cpu")
    assert set(pool.networks[0]) == {"3.weight", "3.bias"}
    method = dd.methods.DD(steps=1, epochs=1, batch=32, networks=1)
    options = {"model": partly_frozen, "weights": "random-pretrained", "pool": pool}
    run = dd.distill(digits, method, iterations=1, device="cpu", **options)
    assert dd.evaluate(run.distilled, digits, model=partly_frozen, pool=pool).nets == 1


def test_nothing_to_train_is_one_sentence(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=r"nothing to train.*requires_grad is False"):
        network(lambda: body().requires_grad_(False), digits)
    with pytest.raises(RequestError, match="no weights"):
        network(lambda: Plain(lambda images: images.flatten(1)[:, :10]), digits)


def test_a_weight_that_nobody_uses_stays_as_it_is(digits: dd.RealData) -> None:
    class Idle(Then):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.idle = nn.Parameter(torch.ones(3))

    ours = network(Idle, digits)
    assert ours.remarks == ("weight idle stays as it is: the scores do not depend on it",)
    assert ours.frozen == ("idle",)
    require_differentiable(ours, digits.train.images[:1], 10)


class Scores(NamedTuple):
    scores: Tensor
    further: Tensor


class TwoHeads(nn.Module):
    """As torchvision's GoogLeNet answers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.further = nn.Linear(64, 10), nn.Dropout(), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Any:
        images = images.flatten(1)
        if self.training:
            return Scores(self.body(self.drop(images)), self.further(images))
        return self.body(self.drop(images))


def test_further_heads_are_left_out(digits: dd.RealData) -> None:
    ours = network(TwoHeads, digits)
    assert "answers with a Scores" in ours.remarks[0]
    assert ours.frozen == ("further.weight", "further.bias")
    assert ours.draws  # dropout is in training


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "torchvision:googlenet"])
def test_networks_of_the_real_libraries(name: str) -> None:
    pytest.importorskip(name.partition(":")[0], reason="it comes with the extra vision")
    real = dd.load("mnist-rgb")
    require_differentiable(network(name, real), real.train.images[:1], 10)


def listed(keep: Callable[[nn.Module], Any]) -> type[nn.Module]:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = keep(nn.Linear(64, 16))
            self.last = nn.Linear(16, 10)

        def forward(self, images: Tensor) -> Tensor:
            layer = self.layers() if callable(self.layers) else next(iter(self.layers))
            layer = self.layers[layer] if isinstance(layer, str) else layer
            return self.last(F.silu(layer(images.flatten(1))))  # type: ignore[no-any-return]

    return Listed


@pytest.mark.parametrize(
    ("keep", "place"),
    [
        (lambda layer: [layer], " (layers)"),
        (lambda layer: {"one": layer}, " (layers)"),
        (lambda layer: lambda: layer, ""),  # in a closure: seen all the same, but nowhere to be named
    ],
    ids=["list", "dict", "closure"],
)
def test_weights_that_pytorch_does_not_see(keep: Any, place: str, digits: dd.RealData) -> None:
    with pytest.raises(RequestError) as error:
        network(listed(keep), digits)
    assert f"weights that PyTorch does not see{place}, so" in str(error.value)
    assert "nn.ModuleList" in str(error.value)


@pytest.mark.skipif(os.environ.get("DATADISTILL_SHAPES") == "1", reason="that check draws random numbers itself")
@pytest.mark.parametrize(
    "draw",
    [lambda: torch.randn(64), lambda: torch.from_numpy(np.random.randn(64)).float(), lambda: random.random()],  # noqa: NPY002
    ids=["torch", "numpy", "random"],
)
def test_what_a_constructor_draws_must_be_registered(draw: Callable[[], Any], digits: dd.RealData) -> None:
    class Scaled(nn.Module):
        def __init__(self, register: bool) -> None:
            super().__init__()
            self.body, scale = body(), draw()
            if register:
                self.register_buffer("scale", torch.as_tensor(scale))
            else:
                self.scale = scale

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images.flatten(1) * self.scale)  # type: ignore[no-any-return]

    with pytest.raises(RequestError, match=r"answers differently each time it is built.*register_buffer"):
        network(lambda: Scaled(register=False), digits)
    one, other = (network(lambda: Scaled(register=True), digits) for _ in range(2))
    assert torch.equal(one.module.get_buffer("scale"), other.module.get_buffer("scale"))
    state = random.getstate(), torch.get_rng_state()
    network(lambda: Scaled(register=True), digits)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: body().half(), r"weight 1\.weight is of type float16.*\.float\(\)"),
        (lambda: body().double(), r"weight 1\.weight is of type float64.*\.float\(\)"),
        (lambda: as_complex(), r"type complex64.*\.float\(\).*real and imaginary"),
        (lambda: torch.jit.script(body()), "compiled by torch.jit"),
        (lambda: nn.Sequential(torch.jit.trace(body(), torch.zeros(2, 1, 8, 8))), "layer 0 is compiled by torch.jit"),
        (lambda: body().to("meta"), "device meta"),
        (lambda: Then(lambda scores: scores.to(torch.complex64)), "numbers of type complex64"),
        (lambda: Then(lambda scores: scores.round()), "cannot be trained.*no slope"),
        (lambda: body(nn.RReLU(0.1, 0.9)), r"layer 4 \(RReLU\) answers the same images differently"),
        (lambda: body(nn.Unflatten(1, (2, 5)), nn.LSTM(5, 5, 2, dropout=0.5), Last()),
         r"layer 5 \(LSTM\).*dropout to 0"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_what_cannot_work_is_one_sentence(model: Any, sentence: str, digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=sentence) as error:
        network(model, digits)
    assert "\n" not in str(error.value)


class Plain(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)


def as_complex() -> nn.Module:
    module = body()
    module[3].weight = nn.Parameter(module[3].weight.detach() * 1j)
    return module


class Last(nn.Module):
    def forward(self, answer: tuple[Tensor, Any]) -> Tensor:
        return answer[0].flatten(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_only_spreads_or_compiles_a_network_is_taken_off(digits: dd.RealData) -> None:
    for model in (
        lambda: nn.DataParallel(body()),
        lambda: torch.compile(body()),
        lambda: nn.DataParallel(nn.DataParallel(body())),
    ):
        assert list(weights_of(network(model, digits))) == ["1.weight", "1.bias", "3.weight", "3.bias"]


def test_lazy_layers_take_their_shapes(digits: dd.RealData) -> None:
    ours = network(
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)), digits
    )
    assert weights_of(ours)["3.weight"].shape == (10, 144)


def batch_normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_batch_norm_needs_no_flag(digits: dd.RealData) -> None:
    ours = network(batch_normalised, digits)
    assert ours.batch_norm == "batch"
    assert ours.remarks[0].startswith("batch normalisation (2) uses each batch's own statistics")
    assert ours.couples_images
    chosen = network(batch_normalised, digits, batch_norm="frozen")
    assert (chosen.batch_norm, chosen.remarks) == ("frozen", ())
    with pytest.raises(RequestError, match="keeps running statistics"):
        network(batch_normalised, digits, batch_norm="refused")
    module = batch_normalised()
    module(digits.train.images[:9])  # statistics of somebody's training: which are meant is asked
    with pytest.raises(RequestError, match=r"choose --batch-norm batch .* or frozen"):
        network(module, digits)
    ours = network(module.eval(), digits)
    assert ours.batch_norm == "refused"
    assert not ours.couples_images
    assert network("mlp", digits).batch_norm == "refused"


def test_a_batch_of_one_image(digits: dd.RealData) -> None:
    one = digits.train.images[:1]
    ours = network(batch_normalised, digits)
    with pytest.raises(RequestError, match=r"does not take a batch of one image .*--ipc"):
        ours.logits(weights_of(ours), one)
    squeezed = network(lambda: Then(torch.squeeze), digits)
    assert squeezed.logits(weights_of(squeezed), one).shape == (1, 10)
    picky = network(lambda: Then(lambda scores: scores.view(len(scores) // 2 * 2, 10)), digits)
    with pytest.raises(RequestError, match=r"does not take a batch of one image .*any number"):
        picky.logits(weights_of(picky), one)


class Attending(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.p = nn.Conv2d(1, 16, 2, 2)
        self.e = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
        self.o = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.o(self.e(self.p(images).flatten(2).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("hvp", ["reverse", "forward", "difference"])
def test_a_transformer_can_be_differentiated_twice(hvp: str, digits: dd.RealData) -> None:
    ours, images = network(lambda: Attending(0.1), digits), digits.train.images[:2]
    require_differentiable(ours, images[:1], 10, hvp)
    weights, noisy = weights_of(ours), ours.logits
    assert not torch.allclose(noisy(weights, images), noisy(weights, images, noise=dd.engine.functional.Noise(0)))
    module = Attending(0.1).eval()
    module.load_state_dict(weights)
    assert torch.allclose(ours.logits(weights, images), module(images), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": True}, {"scale": 0.3}, {"enable_gqa": True}])
def test_attention_is_that_of_pytorch(options: dict[str, Any], digits: dd.RealData) -> None:
    options = dict(options)
    if options.pop("mask", False):
        options["attn_mask"] = torch.rand(4, 4, generator=stream(0)) > 0.3
        options["attn_mask"].fill_diagonal_(True)

    def attend(scores: Tensor) -> Tensor:
        query = scores[:, :8].reshape(-1, 2, 4, 1) + torch.arange(3.0)
        pair = query[:, :1] if "enable_gqa" in options else query
        seen = F.scaled_dot_product_attention(query, pair.sin(), pair.cos(), **options)
        return torch.cat([seen.flatten(1)[:, :8], scores[:, 8:]], 1)

    ours = network(lambda: Then(attend), digits)
    module = Then(attend)
    module.load_state_dict(weights_of(ours))
    images = digits.train.images[:3]
    assert ours.watched
    assert torch.allclose(ours.logits(weights_of(ours), images), module(images), atol=1e-5)
    require_differentiable(ours, images[:1], 10)


def test_dropout_by_a_function_can_be_repeated(digits: dd.RealData) -> None:
    ours = network(lambda: Then(lambda scores: F.dropout(scores, 0.5)), digits)
    assert ours.draws


def test_draws_leave_frozen_layers_alone(digits: dd.RealData) -> None:
    ours = network(partly_frozen, digits)
    before = ours.constants
    drawn = draw_weights(ours.module, "he", stream(0))
    assert set(drawn) == {"3.weight", "3.bias"}
    assert all(torch.equal(before[name], weight) for name, weight in ours.constants.items())
