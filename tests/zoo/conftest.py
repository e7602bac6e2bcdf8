"""The shipped task, a small table to train on, and the public measurements where they are found."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import pytest

import fastguide.zoo
from fastguide.zoo import Task, utr_data


@pytest.fixture(scope="session")
def task() -> Task:
    """The shipped `utr` task."""
    return fastguide.zoo.load("utr")


@pytest.fixture(scope="session")
def measurements() -> utr_data.Measurements:
    """The public measurements, split; skips without FASTGUIDE_DATA."""
    folder = os.environ.get("FASTGUIDE_DATA")
    if not folder:
        pytest.skip("FASTGUIDE_DATA names no folder with utr_mrl.csv.gz; see docs/data.md")
    path = Path(folder) / "utr_mrl.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} does not exist; see docs/data.md")
    return utr_data.read(path)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 invented rows in which adenines raise the load."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("table") / "toy.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seq", "rl", "library"])
        for row in range(600):
            sequence = "".join(draw.choice("ACGT") for _ in range(utr_data.LENGTH))
            load = 2 + sequence.count("A") / 4 + draw.gauss(0, 0.2)
            writer.writerow([sequence, load, utr_data.LIBRARIES[row % 2]])
    return path
