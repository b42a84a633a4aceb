"""Names of devices."""

from typing import Any

import pytest
import torch

from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import resolve_device


def test_a_device_with_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert resolve_device("CUDA:1") == torch.device("cuda:1")
    assert resolve_device(torch.device("cuda", 0)) == torch.device("cuda:0")
    assert current == [1, 0]
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    for name in ("cuda:2", "cuda:", "cuda:x", "cuda:-1", "cuda:1:1", "cuda:\u00b2"):
        with pytest.raises(RequestError, match=r"there is no device 'cuda:.*the last one here is cuda:1"):
            resolve_device(name)


@pytest.mark.parametrize("device", ["cpu:1", "cpu:", torch.device("meta"), torch.device("cuda"), "cuda:0", None, 3, ""])
def test_no_device_here(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="device"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["auto", "cpu", "CPU:0", torch.device("cpu")])
def test_the_processor(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(device) == torch.device("cpu")
