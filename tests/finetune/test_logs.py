"""Where the numbers of training go: files of JSON lines, callbacks, TensorBoard, W&B, the bar."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from tuning_case import QUIET, count_of_threes, sequences

from fastguide import finetune
from fastguide.errors import ArgumentError, DtypeError, MissingExtraError


def train(num_iterations, **how):
    tuner = finetune.PPO(sequences(), count_of_threes, alpha=1.0)
    return tuner.train(num_iterations, 8, **{"num_steps": 3, **QUIET, **how})


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_line_is_there_before_the_next_iteration(tmp_path):
    file = tmp_path / "new" / "run.jsonl"
    seen = []
    history = train(3, log=file, callback=lambda row: seen.append(len(rows_of(file))))
    assert seen == [1, 2, 3]
    assert rows_of(file) == history.rows
    assert len(train(2, log=file).rows) == len(rows_of(file)) == 2  # a run of its own


def test_a_resumed_run_goes_on_in_its_files(tmp_path):
    """Rows after the last state are run, and written, once more; none stands twice."""
    files = tmp_path / "run.jsonl", tmp_path / "run" / "history.jsonl"
    how = dict(log=files[0], checkpoint=tmp_path / "run")

    def interrupt(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    train(2, **how)
    with pytest.raises(KeyboardInterrupt):
        train(6, callback=interrupt, **how)
    for file in files:
        assert [row["iteration"] for row in rows_of(file)] == [0, 1, 2]
    history = train(5, **how)
    for file in files:
        assert rows_of(file) == history.rows
        assert [row["iteration"] for row in rows_of(file)] == [0, 1, 2, 3, 4]


PROGRAM = """
import os
import sys

from tuning_case import count_of_threes, sequences

from fastguide import finetune


def end(row):
    if row["iteration"] == 2:
        os.kill(os.getpid(), 9)


finetune.PPO(sequences(), count_of_threes, alpha=1.0).train(
    9, 8, num_steps=3, log=sys.argv[1], checkpoint=sys.argv[2], callback=end, progress=False
)
"""


def test_a_killed_run_leaves_its_rows(tmp_path, root):
    file = tmp_path / "run.jsonl"
    command = [sys.executable, "-c", PROGRAM, str(file), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=root / "tests", capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    for kept in (file, tmp_path / "run" / "history.jsonl"):
        assert [row["iteration"] for row in rows_of(kept)] == [0, 1, 2]


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(ArgumentError, match=r"log=.*taken.* cannot be written"):
        train(1, log=tmp_path / "taken" / "run.jsonl")


def test_every_callback_is_called_and_any_stops():
    seen = []
    history = train(
        5,
        callback=[
            lambda row: row["iteration"] < 1,
            lambda row: seen.append(row["iteration"]),
        ],
    )
    assert (history.stopped, seen) == ("callback", [0, 1])
    assert train(2, callback=lambda row: 0).stopped is None  # False alone stops


class Run:
    """What of a W&B run is needed."""

    def __init__(self):
        self.logged = []

    def log(self, row, step):
        self.logged.append((step, dict(row)))


def test_wandb_beside_another_callback():
    run = Run()
    history = train(4, callback=[finetune.wandb(run), lambda row: row["iteration"] < 1])
    assert history.stopped == "callback"
    assert run.logged == list(enumerate(history.rows))
    with pytest.raises(DtypeError, match=r"wandb.init returned.*got str"):
        finetune.wandb("run")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    how = dict(checkpoint=tmp_path / "run")
    train(3, callback=finetune.tensorboard(tmp_path / "events"), **how)
    history = train(5, callback=finetune.tensorboard(tmp_path / "events"), **how)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(history.rows[0])
    for name in history.rows[0]:
        found = events.Scalars(name)
        assert [event.step for event in found] == [0, 1, 2, 3, 4]
        values = torch.tensor([event.value for event in found], dtype=torch.float64)
        torch.testing.assert_close(values, history.column(name), rtol=1e-6, atol=0)


def test_tensorboard_replaces_what_is_run_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, rows in ((0, 4), (2, 3)):
        log = finetune.tensorboard(tmp_path)
        for step in range(first, first + rows):
            log({"iteration": float(step), "reward": 10.0 * first + step})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward")]
    assert found == [(0, 0.0), (1, 1.0), (2, 22.0), (3, 23.0), (4, 24.0)]


def test_missing_tensorboard_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"fastguide\[tensorboard\]"):
        finetune.tensorboard("folder")


def test_other_processes_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.parallel, "world", lambda: (1, 2))
    finetune.wandb(None)({"iteration": 0.0})
    files = [tmp_path / "run.jsonl"]
    with finetune.history.Reports(finetune.History(), files, None, "title", 1) as report:
        assert report({"iteration": 0.0, "reward": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_what_to_watch(capsys):
    def unmoved(x):
        return torch.zeros(len(x))

    tuner = finetune.PPO(sequences(), count_of_threes, alpha=1.0, held_out=unmoved)
    tuner.train(1, 8, num_steps=3)
    shown = capsys.readouterr().err
    for name in ("PPO", "reward=", "held_out=0", "kl=0", "clip_fraction="):
        assert name in shown
    finetune.RewardWeightedMLE(sequences(), count_of_threes, alpha=2.0).train(1, 8, num_steps=3)
    assert "ess=" in capsys.readouterr().err
