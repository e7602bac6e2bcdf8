"""Comparing methods, and pictures of results. Pictures need matplotlib; nothing else does."""

from __future__ import annotations

from fastguide.report.compare import assess, compare, match_rows
from fastguide.report.designs import METHODS, Comparison, Designs, Settings
from fastguide.report.environment import environment
from fastguide.report.files import write_designs, write_json
from fastguide.report.single import plot
from fastguide.report.style import check_pictures
from fastguide.report.tables import findings, summary_text, text_table
from fastguide.report.write import write

__all__ = [
    "METHODS",
    "Comparison",
    "Designs",
    "Settings",
    "assess",
    "check_pictures",
    "compare",
    "environment",
    "findings",
    "match_rows",
    "plot",
    "summary_text",
    "text_table",
    "write",
    "write_designs",
    "write_json",
]
