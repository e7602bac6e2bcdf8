"""The command line, end to end: files, texts and exit codes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task
import torch

import fastguide as fg
from fastguide import report, zoo
from fastguide.cli import base, main
from fastguide.errors import ArgumentError, CheckpointError
from fastguide.zoo import train_utr

SMALL = ("--num-samples", "4", "--num-candidates", "3", "--num-steps", "6", "--num-masks", "4")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task `tiny` in place of the shipped ones."""

    def load(name: str, *, folder: Path | None = None) -> zoo.Task:
        if name not in ("tiny", "utr"):
            raise ArgumentError(f"name: there is no task {name!r}; known tasks: tiny")
        if folder is not None:
            raise CheckpointError(f"cannot read {folder}")
        return tiny_task.task()

    monkeypatch.setattr(zoo, "load", load)
    monkeypatch.setattr(zoo, "names", lambda: ("tiny",))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["svdd", "best_of_n", "unguided"])
def test_sample_writes_designs(tmp_path, capsys, method):
    assert run("sample", "tiny", "--method", method, *SMALL, "--out", tmp_path, "--seed", 3) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("designs.fasta", "designs.csv", "summary.json", "result.json", "result.safetensors")
    }
    rows = read_csv(tmp_path / "designs.csv")
    result = fg.Result.load(tmp_path)
    assert [row["sequence"] for row in rows] == tiny_task.decode(result.samples)
    judged = tiny_task.oracle(result.samples).tolist()
    assert [float(row["judging_reward"]) for row in rows] == judged
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["task"] == "tiny"
    assert summary["settings"]["seed"] == 3
    assert summary["designs"] == 4
    shown = capsys.readouterr()
    assert shown.out.startswith("designs")
    assert rows[0]["sequence"] in shown.out
    assert "wrote designs.fasta" in shown.err


def test_sample_is_the_library(tmp_path):
    run("sample", "tiny", *SMALL, "--out", tmp_path, "--alpha", 0.5, "--fixed-rows", 8)
    task = tiny_task.task()
    due = fg.SVDD(task.diffusion, task.reward, num_candidates=3, alpha=0.5).sample(
        4, num_steps=6, fixed_rows=8, progress=False
    )
    found = fg.Result.load(tmp_path)
    assert torch.equal(found.samples, due.samples)
    assert found.settings == due.settings


def test_sample_of_one_design_has_no_errors_to_give(tmp_path, capsys):
    assert run("sample", "tiny", *SMALL, "--num-samples", 1, "--out", tmp_path) == 0
    assert "±" not in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["mean_distance_sites"] is None


def test_sample_resumes(tmp_path):
    options = ("sample", "tiny", *SMALL, "--checkpoint", tmp_path / "kept")
    assert run(*options, "--out", tmp_path / "a") == 0
    assert run(*options, "--out", tmp_path / "b") == 0
    first, again = ((tmp_path / name / "designs.csv").read_text() for name in "ab")
    assert first == again
    assert run(*options, "--out", tmp_path / "c", "--seed", 1) == 2


def test_compare_writes_a_report(tmp_path, capsys):
    options = ("--alphas", 0, 0.5, "--num-reference", 10, "--out", tmp_path)
    assert run("compare", "tiny", *SMALL, *options) == 0
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {"report.html", "designs.fasta", "designs.csv", "summary.json"} <= names
    assert len([name for name in names if name.endswith(".png")]) == 6
    keys = ["unguided", "best_of_3", "best_of_n_matched", "svdd_alpha_0", "svdd_alpha_0.5"]
    rows = read_csv(tmp_path / "designs.csv")
    assert list(dict.fromkeys(row["method"] for row in rows)) == keys
    for key in keys:
        mine = [row["sequence"] for row in rows if row["method"] == key]
        assert mine == tiny_task.decode(fg.Result.load(tmp_path / "results" / key).samples)
    shown = capsys.readouterr()
    assert "At equal denoiser rows" in shown.out
    assert "SVDD, alpha 0.5" in shown.out
    assert shown.err.splitlines()[0] == "Unguided"


def test_compare_of_some_methods(tmp_path):
    options = ("--methods", "unguided", "best_of_n", "--num-reference", 4, "--out", tmp_path)
    assert run("compare", "tiny", *SMALL, *options) == 0
    methods = json.loads((tmp_path / "summary.json").read_text())["methods"]
    assert [one["key"] for one in methods] == ["unguided", "best_of_3"]
    assert not (tmp_path / "steps.png").exists()


def test_compare_at_a_budget(tmp_path, capsys):
    options = ("--methods", "best_of_n", "smc", "--rows-per-design", 12, "--out", tmp_path)
    assert run("compare", "tiny", *SMALL, *options, "--num-reference", 4) == 0
    methods = json.loads((tmp_path / "summary.json").read_text())["methods"]
    assert [one["key"] for one in methods] == ["best_of_n", "smc_alpha_0.3"]
    assert [one["fit"]["argument"] for one in methods] == ["num_candidates", "num_particles"]
    assert "Budget: 12.0 denoiser rows per design." in capsys.readouterr().out


def test_defaults_of_compare(tmp_path, monkeypatch):
    seen = []

    def compare(task, settings, **options):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "compare", compare)
    assert run("compare", "tiny", "--out", tmp_path) == 130
    assert run("compare", "tiny", "--out", tmp_path, "--seconds-per-design", 0.5) == 130
    assert seen[0] == report.DEMO
    assert seen[1].methods == tuple(name for name in report.METHODS if name != "matched")
    assert seen[1].alphas == (0.3,)
    assert seen[1].seconds_per_design == 0.5


def test_every_method_has_an_option():
    from fastguide.cli import compare

    assert compare.Method.__args__ == report.METHODS


def test_demo_runs_the_fixed_comparison(tmp_path, monkeypatch):
    seen = []

    def compare(task, settings, **options):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "compare", compare)
    assert run("demo", "--out", tmp_path) == 130
    assert seen == [report.DEMO]
    assert seen[0].num_samples == 64
    assert seen[0].num_candidates == 10
    assert seen[0].num_steps == 128
    assert len(seen[0].alphas) == 3
    assert seen[0].alphas[0] == 0


def test_zoo_list(capsys):
    assert run("zoo", "list") == 0
    shown = capsys.readouterr().out
    assert "tiny: letters for tests" in shown
    assert "1.500 bits per nucleotide" in shown
    assert "Pearson random 0.250" in shown


def test_zoo_train_calls_the_recipe(tmp_path, monkeypatch, capsys):
    from fastguide.cli import zoo as command

    seen = []
    monkeypatch.setitem(
        command.TRAINERS, "utr", lambda *args, **options: seen.append((args, options))
    )
    assert run("zoo", "train", "utr", "--data", "x.csv", "--out", tmp_path, "--seed", 4) == 0
    assert seen == [((Path("x.csv"), tmp_path), {"seed": 4, "threads": 2})]
    assert f"--weights {tmp_path}" in capsys.readouterr().err
    assert command.TRAINERS.keys() == {"utr", "glyphs"}
    assert callable(train_utr.train)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sample", "nope"), "there is no task 'nope'; known tasks: tiny"),
        (("compare", "nope"), "there is no task 'nope'"),
        (("sample", "tiny", "--alpha", "-1"), "alpha must not be negative"),
        (("sample", "tiny", "--num-candidates", "0"), "num_candidates must be at least 1, got 0"),
        (("sample", "tiny", "--num-samples", "0"), "num_samples must be at least 1, got 0"),
        (("sample", "tiny", "--num-masks", "0"), "num_masks must be at least 1, got 0"),
        (("sample", "tiny", "--num-steps", "0"), "num_steps must be at least 1, got 0"),
        (("sample", "tiny", "--seed", "-1"), "seed must lie in"),
        (("sample", "tiny", "--fixed-rows", "0"), "fixed_rows"),
        (("sample", "tiny", "--weights", "nowhere"), "cannot read nowhere"),
        (("compare", "tiny", "--alphas", "0.1", "0.1"), "alphas must differ"),
        (("compare", "tiny", "--methods", "matched"), "'matched' is matched to SVDD"),
        (("compare", "tiny", "--rows-per-design", "-1"), "rows_per_design must be positive"),
        (("zoo", "train", "nope", "--data", "x"), "no recipe for 'nope'; known: utr"),
        (("zoo", "train", "utr", "--data", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_mistakes_are_one_line_and_code_2(arguments, text, tmp_path, capsys):
    assert run(*arguments, "--out", tmp_path) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = [line for line in shown.err.splitlines() if line.startswith("fastguide: error: ")]
    assert text in line
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("command", ["sample", "compare"])
def test_unwritable_folder(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(command, "tiny", "--out", tmp_path / "file" / "x") == 2
    shown = capsys.readouterr().err
    assert "cannot be written" in shown
    assert "choose a folder you may write to" in shown


def test_missing_matplotlib_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("compare", "tiny", "--out", tmp_path / "out") == 2
    assert 'pip install "fastguide[plot]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ArgumentError, match="alpha must not be negative"):
        run("sample", "tiny", "--alpha", "-1", "--out", tmp_path, "--debug")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Expected one of"),
        (("smaple",), "smaple"),
        (("sample",), "TASK"),
        (("sample", "tiny", "--method", "smc"), "smc"),
        (("sample", "tiny", "--num-samples", "many"), "many"),
        (("zoo",), "list"),
    ],
)
def test_unreadable_command_lines_exit_with_2(arguments, text, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ((), ("demo", "sample", "compare", "zoo", "doctor")),
        (("sample",), ("--num-candidates", "--alpha", "--checkpoint", "TASK")),
        (("compare",), ("--alphas", "--methods")),
        (("demo",), ("--out",)),
        (("zoo", "train"), ("--data FILE", "docs/data.md")),
        (("doctor",), ("Exit code",)),
    ],
)
def test_help(arguments, texts, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in texts:
        assert text in shown


def interrupt(*args, **options):
    raise KeyboardInterrupt


def test_interrupted_sample_says_what_was_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "assess", interrupt)
    assert run("sample", "tiny", *SMALL, "--out", tmp_path) == 130
    assert "stopped; nothing was kept (with --checkpoint DIR" in capsys.readouterr().err
    kept = tmp_path / "kept"
    assert run("sample", "tiny", *SMALL, "--out", tmp_path, "--checkpoint", kept) == 130
    assert f"finished steps are in {kept}" in capsys.readouterr().err


def test_interrupted_compare_keeps_finished_methods(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fg.BestOfN, "sample", interrupt)
    options = ("--num-reference", 4, "--out", tmp_path)
    assert run("compare", "tiny", *SMALL, *options) == 130
    kept = tmp_path / "results" / "unguided"
    assert f"stopped; kept the results of finished methods: {kept}" in capsys.readouterr().err
    assert len(fg.Result.load(kept)) == 4


def test_bars_need_a_terminal():
    assert not base.show_bars()


def test_installed_program():
    """The script of the installation, in its own process."""
    program = Path(sys.executable).with_name("fastguide")
    done = subprocess.run(
        [program, "sample", "nope"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fastguide: error: name: there is no task 'nope'")
    assert "utr" in done.stderr


def test_installed_program_designs_with_the_shipped_models(tmp_path):
    program = Path(sys.executable).with_name("fastguide")
    options = (*SMALL, "--alphas", "0.1", "--num-reference", "4", "--out", str(tmp_path))
    done = subprocess.run(
        [program, "compare", "utr", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "mean ribosome load (ribosomes per mRNA)" in done.stdout
    rows = read_csv(tmp_path / "designs.csv")
    assert len(rows) == 4 * 4
    assert {len(row["sequence"]) for row in rows} == {50}
    assert set("".join(row["sequence"] for row in rows)) == set("ACGT")
    assert all(0 < float(row["judging_reward"]) < 12 for row in rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Designing 5′UTRs for high mean ribosome load</h1>" in page
    assert "designs with an ATG out of frame" in page
