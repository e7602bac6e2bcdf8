"""Comparisons on pictures: what is run, what the figures are, what is said and written."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_pictures
import torch
from PIL import Image
from test_report import Page

import fastguide as fg
from fastguide import report, zoo
from fastguide.cli import main
from fastguide.errors import ArgumentError
from fastguide.report.gallery import CANDIDATES, Pictures
from fastguide.report.gallery_pictures import grid
from fastguide.report.gallery_runs import half_deviation
from fastguide.report.methods import TABLE
from fastguide.rewards import JpegIncompressibility

SMALL = report.GallerySettings(
    methods=("unguided", "best_of_n", "svdd", "tds", "classifier_guidance"),
    num_samples=6,
    num_steps=6,
    rows_per_design=24,
    num_reference=20,
    ablate=True,
)
OVERVIEWS = {"overview", "candidates_overview", "temperatures_overview"}
FIGURES = {"rewards", "naturalness", "candidates", "temperatures"} | OVERVIEWS


@pytest.fixture(scope="module")
def gallery() -> report.Gallery:
    return report.compare_pictures(tiny_pictures.task(), SMALL, progress=False)


@pytest.fixture(scope="module")
def folder(gallery: report.Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gallery")
    assert report.write_gallery(gallery, path) == path / "report.html"
    return path


def test_runs_are_those_of_the_samplers(gallery):
    task = tiny_pictures.task()
    assert [made.key for made in gallery.runs] == [
        *("unguided", "best_of_n", f"svdd_alpha_{gallery.alphas[0]:g}"),
        f"tds_alpha_{gallery.alphas[0]:g}",
    ]
    svdd = gallery.runs[2]
    due = fg.SVDD(
        task.diffusion,
        task.reward,
        num_candidates=svdd.fit["size"],
        alpha=gallery.alphas[0],
    ).sample(6, num_steps=6, progress=False)
    assert torch.equal(svdd.result.samples, due.samples)
    assert torch.equal(svdd.images, tiny_pictures.decode(due.samples))
    for made in gallery.runs:
        np.testing.assert_allclose(made.guide, task.reward(made.result.samples))
        np.testing.assert_allclose(made.judge, task.oracle(made.result.samples))
        np.testing.assert_allclose(made.natural, task.oracle(made.result.samples))
        distances = tiny_pictures.nearest_distance(made.result.samples)
        np.testing.assert_allclose(made.distance, distances)


def test_methods_spend_the_same_rows(gallery):
    for made in gallery.runs[1:]:
        assert made.fit["spent"] == made.result.cost.denoiser_rows / 6
        assert abs(made.fit["off"]) < 0.1
    assert gallery.runs[0].fit["spent"] == 6


def test_alpha_is_half_the_deviation_of_the_reference(gallery):
    guide = tiny_pictures.task().reward(
        fg.Unguided(tiny_pictures.task().diffusion).sample(20, num_steps=6, progress=False).samples
    )
    np.testing.assert_allclose(gallery.reference.guide, guide)
    assert gallery.alphas == (float(f"{guide.std() / 2:.1g}"),)
    assert half_deviation(np.array([0.0, 0.0, 4.0])) == 1.0  # 1.1547
    with pytest.raises(ArgumentError, match="the same for all 3 unguided samples"):
        half_deviation(np.ones(3))


def test_ablations_vary_one_thing(gallery):
    settings = [made.result.settings for made in gallery.candidates]
    assert [one["num_candidates"] for one in settings] == list(CANDIDATES)
    assert {one["alpha"] for one in settings} == {gallery.alphas[0]}
    settings = [made.result.settings for made in gallery.temperatures]
    factors = [one["alpha"] / gallery.alphas[0] for one in settings]
    assert factors == pytest.approx([0, 0.25, 1, 4, 16])
    assert {one["num_candidates"] for one in settings} == {4}  # 24 rows in 6 steps
    assert gallery.candidates[2] is gallery.temperatures[2]
    rows = [made.result.cost.denoiser_rows for made in gallery.candidates]
    assert rows == sorted(rows)


def test_left_out_methods_are_named():
    settings = dataclasses.replace(
        SMALL,
        reward="incompressibility",
        methods=("svdd", "classifier_guidance", "dps", "das"),
        ablate=False,
    )
    found = report.compare_pictures(tiny_pictures.task(), settings, progress=False)
    assert [made.label for made in found.runs] == ["SVDD"]
    assert set(found.left_out) == {"Classifier guidance", "DPS", "DAS"}
    assert found.exact
    np.testing.assert_allclose(
        found.runs[0].guide,
        JpegIncompressibility(value_range=(-1, 1))(found.runs[0].result.samples),
    )
    np.testing.assert_allclose(
        found.runs[0].natural, tiny_pictures.task().oracle(found.runs[0].result.samples)
    )
    text = report.gallery_text(found)
    assert "Left out: DPS, DAS; the value has no gradient in the state" in text
    assert "Left out: Classifier guidance; it needs a value of noisy pictures" in text
    assert "judging reward" not in text
    assert "Reward: SVDD has " in text
    settings = dataclasses.replace(settings, methods=("dps",))
    with pytest.raises(ArgumentError, match="none of those given can be run on 'incompress"):
        report.compare_pictures(tiny_pictures.task(), settings, progress=False)
    settings = dataclasses.replace(SMALL, methods=("svdd", "smc"), alphas=(0.0,), ablate=False)
    found = report.compare_pictures(tiny_pictures.task(), settings, progress=False)
    assert found.left_out == {"SMC": "it divides by alpha, and only alpha 0 was to be run"}


def test_every_other_method_runs():
    settings = dataclasses.replace(SMALL, methods=tuple(TABLE), ablate=False)
    found = report.compare_pictures(tiny_pictures.task(), settings, progress=False)
    assert len(found.runs) == len(TABLE) - 1
    assert list(found.left_out) == ["Classifier guidance"]


def made_of(images: torch.Tensor, gallery: report.Gallery) -> Pictures:
    """A run with these images, and numbers that can be checked by hand."""
    numbers = np.array([1.0, 2.0, 3.0, -1.0])
    return Pictures(
        key="x",
        label="X",
        result=gallery.runs[2].result,
        images=images,
        guide=numbers + 1,
        judge=numbers,
        natural=numbers,
        distance=numbers + 1,
    )


def test_figures_by_hand(gallery):
    images = torch.zeros(4, 2, 2, dtype=torch.uint8)
    images[2:] = 255
    found = made_of(images, gallery).figures((1.0, 2.0))
    assert found["guiding_reward_mean"] == pytest.approx(2.25)
    assert found["judging_reward_mean_error"] == pytest.approx(np.std([1, 2, 3, -1], ddof=1) / 2)
    assert found["clean"] == 0.75
    assert found["clean_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found["distance_median"] == 2.5
    assert not found["distance_usual"]
    assert found["distinct"] == 2
    # four of six pairs differ, in four pixels from 0 to 1
    assert found["mean_distance"] == pytest.approx(4 / 6 * 2)
    assert found["judging_reward_quantiles"]["0.5"] == 1.5


def test_findings_say_what_is_lost(gallery):
    images = torch.zeros(4, 2, 2, dtype=torch.uint8)
    bad = made_of(images, gallery)
    bad.fit = gallery.runs[1].fit
    bad.natural = np.full(4, -1.0)
    bad.distance = np.full(4, 9.0)
    near = dataclasses.replace(bad, label="Y", distance=np.full(4, 0.1))
    found = dataclasses.replace(gallery, runs=[*gallery.runs, bad, near])
    lines = report.gallery_findings(found)
    text = "\n".join(lines)
    assert re.search(r"samples are judged clean; fewer, by two standard errors, of X \(0%\)", text)
    assert re.search(r"further from a training drawing than 95%.*X \(9.00\)\.", text)
    assert re.search(r"closer to a training drawing than 95%.*Y \(0.10\)\.", text)
    assert "Not all pictures are distinct: X (1 of 4), Y (1 of 4)." in lines
    assert any(line.startswith("From SVDD, M = 1, ") for line in lines)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"methods": ("svdd", "matched")}, "methods must be some of unguided.*got matched"),
        ({"methods": ()}, "got none"),
        ({"rows_per_design": 0}, "rows_per_design must be positive and finite, got 0"),
        ({"alphas": (0.1, 0.1)}, r"alphas must differ.*\[0.1, 0.1\]"),
        ({"alphas": (-1.0,)}, r"alphas must be finite and not negative, got \[-1.0\]"),
        ({"num_samples": 1}, "num_samples must be at least 2.*got 1"),
        ({"num_reference": 3}, "num_reference must be at least num_samples=64.*got 3"),
    ],
)
def test_settings_explain_themselves(options, text):
    with pytest.raises(ArgumentError, match=text):
        report.GallerySettings(**options)


def test_unknown_reward_lists_the_known():
    known = "aesthetic, ink, compressibility, incompressibility; got 'beauty'"
    with pytest.raises(ArgumentError, match=f"reward must be one of {known}"):
        report.picture_rewards(tiny_pictures.task(), "beauty")


def test_grid_by_hand():
    images = torch.tensor([[[0, 255]], [[10, 20]], [[30, 40]]], dtype=torch.uint8)
    line = [230] * 7
    assert grid(images, 2).tolist() == [
        line,
        [230, 255, 0, 230, 245, 235, 230],
        line,
        [230, 225, 215, 230, 255, 255, 230],
        line,
    ]


def test_grid_png_is_the_grid(tmp_path):
    images = torch.randint(256, (5, 4, 3), dtype=torch.uint8)
    (tmp_path / "x.png").write_bytes(report.grid_png(images, 2, scale=3))
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "L"
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, np.kron(grid(images, 2).numpy(), np.ones((3, 3))))


def test_files_of_a_comparison(folder, gallery):
    keys = {m.key for m in (*gallery.runs, *gallery.candidates, *gallery.temperatures)}
    names = {"report.html", "summary.json", "samples.npz", "grids"}
    assert {path.name for path in folder.iterdir()} == names | {f"{n}.png" for n in FIGURES}
    assert {path.stem for path in (folder / "grids").iterdir()} == keys
    with np.load(folder / "samples.npz") as arrays:
        assert set(arrays) == {f"{key}{end}" for key in keys for end in ("", ".guide", ".judge")}
        for made in gallery.runs:
            np.testing.assert_array_equal(arrays[made.key], made.result.samples)
            np.testing.assert_array_equal(arrays[f"{made.key}.judge"], made.judge)
    record = json.loads((folder / "summary.json").read_text())
    assert record["findings"] == report.gallery_findings(gallery)
    assert [one["method"] for one in record["methods"]] == [m.label for m in gallery.runs]
    assert record["settings"]["rows_per_design"] == 24
    assert len(record["candidates"]) == len(CANDIDATES)
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as image:
            assert image.width == 960
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 5, "nothing is drawn"
        assert (pixels[:, 0] > 250).all(), "something reaches the left edge"


def test_page_of_a_comparison(folder, gallery):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {a["id"] for tag, a in page.tags if tag == "figure" and "id" in a} == FIGURES
    drawn = [a for tag, a in page.tags if tag == "figure" and a["class"] == "card drawn"]
    assert len(drawn) == 1 + len(gallery.runs)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert (attributes.get("src") or "data:").startswith("data:")
    for line in report.gallery_findings(gallery):
        assert line in page.texts
    assert "Drawings behind the models: <b>none</b>." in "".join(page.texts)
    for made in (*gallery.runs, *gallery.candidates):
        assert made.label in page.texts


# --- command line


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task `dots` in place of the shipped ones."""
    monkeypatch.setattr(zoo, "load", lambda name, *, folder=None: tiny_pictures.task())


@pytest.mark.usefixtures("tiny")
def test_compare_command(tmp_path, capsys):
    options = "--num-samples 4 --num-steps 4 --num-reference 8 --rows-per-design 8 --reward ink"
    methods = ("--methods", "svdd", "best_of_n")
    assert main(["compare", "dots", *options.split(), *methods, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["reward"] == "ink"
    assert record["exact"]
    assert [one["method"] for one in record["methods"]] == ["Best of N", "SVDD"]
    assert record["candidates"] == []
    assert len(fg.Result.load(tmp_path / "results" / "best_of_n")) == 4
    shown = capsys.readouterr()
    assert "Budget: 8 denoiser rows per picture." in shown.out
    assert "ink (% of the page)" in shown.out
    assert "Best of N: num_candidates=2" in shown.err


@pytest.mark.usefixtures("tiny")
def test_defaults_of_the_compare_command(tmp_path, monkeypatch):
    seen = []

    def compare(task, settings, **options):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "compare_pictures", compare)
    assert main(["compare", "dots", "--out", str(tmp_path)]) == 130
    assert main(["compare", "dots", "--out", str(tmp_path), "--ablate"]) == 130
    assert seen == [report.GallerySettings(), report.GallerySettings(ablate=True)]


@pytest.mark.usefixtures("tiny")
def test_sample_command(tmp_path, capsys):
    options = ("--num-samples", "5", "--num-candidates", "2", "--num-steps", "4", "--alpha", "0.1")
    assert main(["sample", "dots", *options, "--out", str(tmp_path), "--seed", "3"]) == 0
    names = {"samples.npz", "grid.png", "summary.json", "result.json", "result.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    task = tiny_pictures.task()
    due = fg.SVDD(task.diffusion, task.reward, num_candidates=2, alpha=0.1).sample(
        5, num_steps=4, seed=3, progress=False
    )
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["svdd"], due.samples)
        np.testing.assert_allclose(arrays["svdd.judge"], task.oracle(due.samples))
    due_grid = report.grid_png(tiny_pictures.decode(due.samples))
    assert (tmp_path / "grid.png").read_bytes() == due_grid
    assert json.loads((tmp_path / "summary.json").read_text())["reward"] == "aesthetic"
    assert "judged clean" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sample", "--num-masks", "4"), "num_masks means nothing to 'dots', which makes pictures"),
        (("sample", "--reward", "beauty"), "reward must be one of aesthetic, ink"),
        (("compare", "--num-masks", "4"), "num_masks means nothing to 'dots'"),
        (("compare", "--num-candidates", "4"), "num_candidates means nothing to 'dots'"),
        (("compare", "--seconds-per-design", "4"), "seconds_per_design means nothing to 'dots'"),
        (("compare", "--reward", "beauty"), "reward must be one of aesthetic, ink"),
        (("compare", "--methods", "matched"), "methods must be some of"),
    ],
)
def test_options_of_sequences_are_refused(arguments, text, tmp_path, capsys):
    command, *options = arguments
    assert main([command, "dots", *options, "--out", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
