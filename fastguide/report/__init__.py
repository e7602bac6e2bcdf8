"""Comparing methods, and pictures of results. Pictures need matplotlib; nothing else does."""

from __future__ import annotations

from fastguide.report.compare import assess, compare, match_rows
from fastguide.report.designs import CLASSIC, DEMO, METHODS, Comparison, Designs, Settings
from fastguide.report.environment import environment, machine
from fastguide.report.files import designs_record, write_designs, write_json
from fastguide.report.single import plot
from fastguide.report.style import check_pictures
from fastguide.report.summary import findings, summary_text
from fastguide.report.tables import designs_text, text_table
from fastguide.report.write import write

__all__ = [
    "CLASSIC",
    "DEMO",
    "METHODS",
    "Comparison",
    "Designs",
    "Settings",
    "assess",
    "check_pictures",
    "compare",
    "designs_record",
    "designs_text",
    "environment",
    "findings",
    "machine",
    "match_rows",
    "plot",
    "summary_text",
    "text_table",
    "write",
    "write_designs",
    "write_json",
]
