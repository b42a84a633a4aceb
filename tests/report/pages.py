"""Sets and run folders that pages are made of."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from conftest import ROOT

import datadistill as dd
from datadistill.distillation.history import remember
from datadistill.distilled import FILE_NAME
from datadistill.utils.runtime import stream

HOSTILE = "</script><img src=x onerror=alert(1)>\"'`{{7*7}}\u202e\x1b[2J<!--"
"""What somebody may call a class."""


def hostile(data: dd.DistilledData) -> dd.DistilledData:
    mine = replace(
        data.provenance,
        dataset=HOSTILE,
        classes=tuple(f"{HOSTILE}{k}" for k in range(10)),
        model=HOSTILE,
        recipe=HOSTILE,
        method={"name": HOSTILE, HOSTILE: HOSTILE, "attack": {"class": HOSTILE, "taken_for": HOSTILE}},
        weights=data.provenance.weights | {"kind": HOSTILE},
        versions={HOSTILE: HOSTILE},
        cost={"seconds": HOSTILE, "outer_steps": HOSTILE, "device": HOSTILE},
        scores=[{"split": HOSTILE, "accuracy": HOSTILE}],
    )
    return replace(data, provenance=mine)


def large(data: dd.DistilledData) -> dd.DistilledData:
    """A thousand images of 32x32 in colour that compress badly."""
    provenance = replace(data.provenance, normalization=dd.data.Normalization((0.5,) * 3, (0.25,) * 3))
    images, labels = torch.randn(1000, 3, 32, 32, generator=stream(0)), torch.arange(1000) % 10
    batches = torch.arange(1000).view(1, 1000)
    return replace(data, images=images, labels=labels, soft_labels=None, batches=batches, provenance=provenance)


def write_run(
    data: dd.DistilledData, folder: Path, looks: int, config: Path = ROOT / "gallery" / "mnist-fixed-10"
) -> None:
    """A run folder with the data and its moments and metrics."""
    data.save(folder / FILE_NAME)
    (folder / "config.json").write_bytes((ROOT / "gallery" / "mnist-fixed-10" / "config.json").read_bytes())
    lines = []
    for look in range(1, looks + 1):
        entry = {"step": 10 * look, "outer_loss": 2 / look, "held_out_accuracy": 1 - 0.9 / look, "held_out_loss": 1.0}
        lines.append(json.dumps(entry | {"rate": 0.01, "learning_rates": [0.02, 1.0 / look, 3.0]}))
        if look > looks - 30:
            remember(folder, 10 * look, replace(data, images=data.images / look))
    (folder / "metrics.jsonl").write_text(
        "\n".join([*lines, '{"step": 1e999}', "nonsense", '{"step": 4, "rate": "x"}'])
    )
