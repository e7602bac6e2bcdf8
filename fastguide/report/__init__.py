"""Comparing methods, and pictures of results. Pictures need matplotlib; nothing else does."""

from __future__ import annotations

from fastguide.report.compare import assess, compare, match_rows
from fastguide.report.designs import CLASSIC, DEMO, METHODS, Comparison, Designs, Settings
from fastguide.report.environment import environment, machine
from fastguide.report.files import designs_record, write_designs, write_json
from fastguide.report.gallery import (
    Gallery,
    GallerySettings,
    Pictures,
    PictureTask,
    picture_rewards,
)
from fastguide.report.gallery_pictures import grid_png
from fastguide.report.gallery_runs import assess_pictures, compare_pictures
from fastguide.report.gallery_text import gallery_findings, gallery_text
from fastguide.report.gallery_write import pictures_text, write_gallery, write_pictures
from fastguide.report.single import plot
from fastguide.report.style import check_pictures
from fastguide.report.summary import findings, summary_text
from fastguide.report.tables import designs_text, text_table
from fastguide.report.tuning import TUNERS, TUNINGS, Tuning, TuningSettings, tune
from fastguide.report.tuning_text import tuning_findings, tuning_text
from fastguide.report.tuning_write import write_tuning
from fastguide.report.write import write

__all__ = [
    "CLASSIC",
    "DEMO",
    "METHODS",
    "TUNERS",
    "TUNINGS",
    "Comparison",
    "Designs",
    "Gallery",
    "GallerySettings",
    "PictureTask",
    "Pictures",
    "Settings",
    "Tuning",
    "TuningSettings",
    "assess",
    "assess_pictures",
    "check_pictures",
    "compare",
    "compare_pictures",
    "designs_record",
    "designs_text",
    "environment",
    "findings",
    "gallery_findings",
    "gallery_text",
    "grid_png",
    "machine",
    "match_rows",
    "picture_rewards",
    "pictures_text",
    "plot",
    "summary_text",
    "text_table",
    "tune",
    "tuning_findings",
    "tuning_text",
    "write",
    "write_designs",
    "write_gallery",
    "write_json",
    "write_pictures",
    "write_tuning",
]
