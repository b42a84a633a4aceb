"""Sheets, curves and cards."""

from datadistill.report.card import conclude
from datadistill.report.sheet import save_sheet

__all__ = ["conclude", "save_sheet"]
