"""Photographs of solar cells, from the package `elpv-dataset`."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datadistill.data.labelled import Labelled
from datadistill.data.real import RealData, from_pixels, set_apart
from datadistill.utils.errors import RequestError, how_to_install

CLASSES = ("functional", "defective")
_EDGE, _TEST_SHARE, _DEFECTIVE = 64, 5, 0.5


def solar_cells(data_root: Path | None = None) -> RealData:
    """Electroluminescence photographs of 2,624 solar cells (Buerhop-Lutz et al. 2018), grey, here 64x64 pixels.

    A cell counts as defective where the experts' probability of a defect is at least a half: 821 are, 1,803 are not.
    The set has no official split: a stratified fifth, always the same, is the test split.

    Args:
        data_root: not used; the photographs are inside the package `elpv-dataset`.

    Raises:
        RequestError: that package is not installed.
    """
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise RequestError(f"solar-cells is in the package elpv-dataset: {how_to_install('elpv-dataset')}") from error
    photographs, probabilities, _ = load_dataset()
    grey = torch.from_numpy(np.asarray(photographs, dtype=np.float32))[:, None]
    shrunk = F.interpolate(grey, (_EDGE, _EDGE), mode="bilinear", antialias=True, align_corners=False)
    pixels = shrunk.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    whole = Labelled(pixels, torch.from_numpy(probabilities >= _DEFECTIVE).long())
    return from_pixels("solar-cells", *set_apart(whole, len(pixels) // _TEST_SHARE, seed=1), CLASSES)
