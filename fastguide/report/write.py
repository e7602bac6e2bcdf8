"""Everything a comparison leaves on disk."""

from __future__ import annotations

import io
from pathlib import Path

from fastguide.report.designs import Comparison
from fastguide.report.files import comparison_record, write_designs, write_json
from fastguide.report.page import build_page
from fastguide.report.pictures import draw
from fastguide.result import make_directory


def write(comparison: Comparison, directory: str | Path) -> Path:
    """Write report.html, its pictures as PNG, designs.fasta, designs.csv and summary.json.

    Returns:
        report.html.
    Raises:
        ArgumentError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed; the designs and figures are written.
    """
    path = make_directory(directory, "directory")
    write_designs(path, comparison.designs)
    write_json(path / "summary.json", comparison_record(comparison))
    images = {}
    for name, figure in draw(comparison).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images[name] = buffer.getvalue()
        (path / f"{name}.png").write_bytes(images[name])
    page = path / "report.html"
    page.write_text(build_page(comparison, images), encoding="utf-8")
    return page
