"""Sidecar: JSON beside pictures and tables of images, with what they do not hold."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.distilled import DistilledData, parse_distilled
from datadistill.utils.errors import DamagedFileError, reason_of, require
from datadistill.utils.files import check_file, read_json, write_json

NAME = "datadistill.json"
_MOST_BYTES = 1 << 28


def write_sidecar(distilled: DistilledData, folder: Path, **more: Any) -> None:
    """Batches, learning rates, soft labels and provenance; numbers are exact."""
    tensors = {
        name: tensor.tolist()
        for name, tensor in distilled.tensors().items()
        if name in ("batches", "learning_rates", "soft_labels")
    }
    write_json(folder / NAME, {"provenance": json.loads(distilled.header()), **tensors, **more})


def read_sidecar(folder: Path) -> dict[str, Any] | None:
    """The JSON, if there is any.

    Raises:
        DamagedFileError: it is no JSON object.
    """
    path = folder / NAME
    if not path.exists():
        return None
    check_file(path)
    require(path.stat().st_size <= _MOST_BYTES, f"{NAME} is too long")
    document = read_json(path)
    require(isinstance(document, dict), f"{NAME} is not a JSON object")
    return dict(document)


def restore(document: dict[str, Any], images: Float[Tensor, "n c h w"], labels: Int64[Tensor, "n"]) -> DistilledData:
    """Distilled data from images and their sidecar.

    Raises:
        DamagedFileError: it does not fit the images, or breaks the format.
    """
    tensors = {"images": images, "labels": labels}
    kinds = {"batches": torch.int64, "learning_rates": torch.float32, "soft_labels": torch.float32}
    try:
        for name, kind in kinds.items():
            if name in document:
                tensors[name] = torch.tensor(document[name], dtype=kind)
        header = json.dumps(document.get("provenance"))
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
        raise DamagedFileError(f"{NAME} is malformed: {reason_of(error)}") from error
    return parse_distilled(tensors, {"datadistill": header})
