"""The pure optimisers against PyTorch's own."""

import pytest
import torch

from datadistill.engine import SGD, Adam, AdamW, Optimizer
from datadistill.utils.runtime import stream


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (SGD(), lambda p: torch.optim.SGD(p, 0.1)),
        (SGD(0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (SGD(0.9, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
        (Adam((0.5, 0.99)), lambda p: torch.optim.Adam(p, 0.1, betas=(0.5, 0.99))),
        (Adam(weight_decay=0.01), lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01)),
        (
            AdamW((0.5, 0.99), weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.1, betas=(0.5, 0.99), weight_decay=0.1),
        ),
    ],
    ids=["sgd", "momentum", "decay", "adam", "adam-decay", "adamw"],
)
def test_same_path_as_torch(mine: Optimizer, theirs: type[torch.optim.Optimizer]) -> None:
    draw = stream(0)
    parameter = torch.nn.Parameter(torch.randn(5, generator=draw, dtype=torch.float64))
    weights = {"w": parameter.detach().clone()}
    state, reference = mine.init(weights), theirs([parameter])
    for step in range(20):
        gradient = torch.randn(5, generator=draw, dtype=torch.float64)
        parameter.grad = gradient.clone()
        reference.step()
        weights, state = mine.update(weights, {"w": gradient}, state, 0.1, step)
        assert torch.allclose(weights["w"], parameter, rtol=1e-10)
