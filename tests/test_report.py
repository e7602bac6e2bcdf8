"""The files and pictures of a comparison, and the picture of one result."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny_task
import torch
from PIL import Image

import fastguide as fg
from fastguide import report
from fastguide.errors import ArgumentError, MissingExtraError

UNCLOSED = {"meta", "img", "br", "link"}
PICTURES = {"rewards", "naturalness", "steps", "diversity", "logos", "cost"}


@pytest.fixture(scope="module")
def comparison() -> report.Comparison:
    settings = report.Settings(
        alphas=(0.0, 0.5),
        num_samples=6,
        num_candidates=3,
        num_steps=6,
        num_reference=20,
        num_masks=4,
    )
    return report.compare(tiny_task.task(), settings, progress=False)


@pytest.fixture(scope="module")
def folder(comparison: report.Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    assert report.write(comparison, path) == path / "report.html"
    return path


class Page(HTMLParser):
    """Every tag, attribute and text of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in UNCLOSED:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_every_file_is_there(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "report.html",
        "designs.fasta",
        "designs.csv",
        "summary.json",
        *(f"{name}.png" for name in PICTURES),
    }


def test_page_is_well_formed_and_self_contained(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == len(PICTURES)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "srcset", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", text)
    assert any(
        tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in page.tags
    )
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_page_shows_every_method_and_finding(folder, comparison):
    texts = Page((folder / "report.html").read_text(encoding="utf-8")).texts
    for made in comparison.designs:
        assert made.label in texts
    for line in report.findings(comparison):
        assert line in texts
    assert "Alpha" in texts


def test_page_escapes_what_a_card_says(comparison):
    from fastguide.report.page import build_page

    card = {"data": {"publication": "<script>alert(1)</script>"}}
    text = build_page(dataclasses.replace(comparison, card=card), {})
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_pictures_are_png(folder):
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as image:
            assert image.format == "PNG"
            assert image.width == 960
            assert 500 < image.height < 2000
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 5, "nothing is drawn"
        assert (pixels[:, -1] > 250).all(), "something reaches the right edge"
        assert (pixels[:, 0] > 250).all(), "something reaches the left edge"


def test_csv_round_trip(folder, comparison):
    with (folder / "designs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(made.sequences) for made in comparison.designs)
    for made in comparison.designs:
        mine = [row for row in rows if row["method"] == made.key]
        assert [row["sequence"] for row in mine] == made.sequences
        for column, values in (
            ("guiding_reward", made.guide),
            ("judging_reward", made.judge),
            ("elbo_nats", made.bound),
        ):
            assert [float(row[column]) for row in mine] == values.tolist()
    assert len({row["design"] for row in rows}) == len(rows)


def test_fasta(folder, comparison):
    lines = (folder / "designs.fasta").read_text().splitlines()
    heads, sequences = lines[::2], lines[1::2]
    assert sequences == [text for made in comparison.designs for text in made.sequences]
    assert all(
        re.fullmatch(r">\S+ guiding_reward=\S+ judging_reward=\S+ elbo_nats=\S+", h) for h in heads
    )
    assert len({head.split()[0] for head in heads}) == len(heads)


def test_summary(folder, comparison):
    found = json.loads((folder / "summary.json").read_text())
    assert found["settings"]["seed"] == 0
    assert found["settings"]["alphas"] == [0.0, 0.5]
    assert found["findings"] == report.findings(comparison)
    assert [one["method"] for one in found["methods"]] == [m.label for m in comparison.designs]
    assert found["methods"][0]["denoiser_rows"] == comparison.designs[0].result.cost.denoiser_rows
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["fastguide"] == fg.__version__
    assert found["seconds"]["wall"] > 0


def test_json_has_no_nan(tmp_path):
    report.write_json(
        tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": {1: 2}}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"1": 2},
    }


def test_table_text(comparison):
    lines = report.summary_text(comparison).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("---"))
    assert lines[start - 1].split() == [
        *(
            "method",
            "reward",
            "reward",
            "bound",
            "natural",
            "designs",
            "distance",
            "rows",
            "seconds",
        )
    ]
    for made, line in zip(comparison.designs, lines[start + 1 :], strict=False):
        assert line.startswith(made.label)
        assert f"{made.result.cost.denoiser_rows:,}" in line
        assert f"{made.judge.mean():.2f} ± " in line
    assert len({len(line) for line in lines[start - 1 : start + 1]}) == 1


def test_table_aligns_and_breaks_headings():
    rows = [["name", "a long heading"], ["x", "1"], ["longer", "22"]]
    assert report.text_table(rows, width=8) == (
        "         a long\nname    heading\n------  -------\nx             1\nlonger       22"
    )


def test_same_comparison_same_figures(comparison):
    again = report.compare(tiny_task.task(), comparison.settings, progress=False)

    def untimed(figures):
        return [
            {k: v for k, v in one.items() if k != "seconds" and not k.startswith("overhead")}
            for one in figures
        ]

    assert untimed(again.figures()) == untimed(comparison.figures())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[report.Comparison, Path]:
    """Methods under a budget, written down."""
    settings = report.Settings(
        methods=("unguided", "best_of_n", "svdd", "smc", "beam_search"),
        alphas=(0.5,),
        num_samples=6,
        num_steps=6,
        num_reference=12,
        num_masks=4,
        rows_per_design=24,
    )
    found = report.compare(tiny_task.task(), settings, progress=False)
    path = tmp_path_factory.mktemp("many")
    report.write(found, path)
    return found, path


def test_report_of_many_methods(many):
    found, path = many
    page = Page((path / "report.html").read_text(encoding="utf-8"))
    names = {attributes["id"] for tag, attributes in page.tags if tag == "figure"}
    assert names == PICTURES | {"ess"}
    for text in (
        "Quantiles of the rewards",
        "SMC: weighted",
        "SMC: drawn",
        "Settings",
        "Per design",
    ):
        assert text in page.texts
    shown = next(text for text in page.texts if "resampler=systematic" in text)
    assert f"num_particles={found.designs[-1].result.settings['num_particles']}" in shown
    assert "alpha=0.5" in shown
    for line in report.findings(found):
        assert line in page.texts
    for name in names:
        with Image.open(path / f"{name}.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert (pixels[:, [0, -1]] > 250).all(), "something reaches an edge"


def test_summary_of_many_methods(many):
    found, path = many
    record = json.loads((path / "summary.json").read_text())
    assert record["settings"]["rows_per_design"] == 24
    for one, made in zip(record["methods"], found.designs, strict=True):
        assert one["fit"]["spent"] == made.result.cost.denoiser_rows / 6
        assert one["settings"] == json.loads(json.dumps(made.result.settings))
        quantiles = np.quantile(made.judge, (0.05, 0.25, 0.5, 0.75, 0.95))
        assert list(one["judging_reward_quantiles"].values()) == pytest.approx(list(quantiles))
        assert 0 < one["overhead_share"] < 1
    weighed = [one["key"] for one in record["methods"] if "weighted_particles" in one]
    assert weighed == ["smc_alpha_0.5"]


def panels(result):
    return [axes.get_title(loc="left") for axes in report.plot(result).axes]


def test_plot_shows_what_a_result_has():
    task = tiny_task.task()
    options = {"num_steps": 6, "progress": False}
    guided = fg.SVDD(task.diffusion, task.reward, num_candidates=3, alpha=0.5).sample(8, **options)
    titles = panels(guided)
    assert titles[0] == "Value along the steps"
    assert titles[1].startswith("Rewards of 8 samples, median ")
    assert titles[2].startswith(f"Cost: {guided.cost.denoiser_rows:,} of ")
    assert len(panels(fg.BestOfN(task.diffusion, task.reward, 3).sample(8, **options))) == 2
    assert len(panels(fg.Unguided(task.diffusion).sample(8, **options))) == 1
    assert len(panels(fg.Unguided(task.diffusion).sample(0, **options))) == 1


def test_plot_of_a_loaded_result(tmp_path):
    task = tiny_task.task()
    made = fg.SVDD(task.diffusion, task.reward, num_candidates=3).sample(
        4, num_steps=4, progress=False
    )
    made.save(tmp_path)
    report.plot(fg.Result.load(tmp_path)).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_missing_matplotlib_names_the_extra(monkeypatch, comparison, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "fastguide\[plot\]"'):
        report.plot(comparison.designs[0].result)
    with pytest.raises(MissingExtraError, match="pictures need matplotlib"):
        report.write(comparison, tmp_path)
    assert (tmp_path / "designs.csv").exists()


def test_unwritable_folder(comparison, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match=r"directory='.*file/x' cannot be written"):
        report.write(comparison, tmp_path / "file" / "x")
