"""Baselines: distilled data that nobody optimised, judged like any other."""

from datadistill.baselines.random_real import BASELINES, random_real

__all__ = ["BASELINES", "random_real"]
