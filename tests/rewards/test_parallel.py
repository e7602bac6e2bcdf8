"""Worker processes: the same scores in the same order, and every way to end them."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import time

import numpy as np
import per_sample
import pytest
import torch

from fastguide import rewards
from fastguide.errors import ArgumentError, RewardError

worker = sys.modules[rewards.parallel.__module__]


def assert_no_workers(patience=30.0):
    """The pool's own thread waits for the workers too, and may be the one that sees them end."""
    end = time.monotonic() + patience
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


def test_scores_in_order_and_an_exception():
    tokens = torch.randint(4, (23, 11))
    due = [per_sample.gc_and_runs(row) for row in tokens.numpy()]
    with per_sample.spread as reward:
        scores = reward(tokens)
        assert scores.dtype == torch.float64
        assert scores.tolist() == due
        assert reward(tokens[:1]).tolist() == due[:1]
        assert reward(tokens.numpy()[::2]).tolist() == due[::2]
        workers = set(reward(torch.full((30, 1), 4)).tolist())
        assert workers <= {child.pid for child in multiprocessing.active_children()}
        assert 1 <= len(workers) <= 2
        assert reward(torch.full((4, 1), 5)).tolist() == [1.0] * 4
        bad = torch.zeros(9, 1, dtype=torch.int64)
        bad[6] = 7
        text = (
            r"spread raised ValueError on sample 6 of 9: sevens are not allowed\n.*per_sample.py:"
        )
        with pytest.raises(RewardError, match=text) as caught:
            reward(bad)
        assert "ValueError: sevens are not allowed" in str(caught.value.__cause__)
        assert_no_workers()


def test_no_rows_start_no_process():
    reward = rewards.parallel(per_sample.first)
    assert reward(torch.zeros(0, 3)).shape == (0,)
    assert_no_workers()


def test_worker_that_dies():
    reward = rewards.parallel(per_sample.dies, workers=1)
    with pytest.raises(RewardError, match=r"parallel\(dies\): a worker process died.*__main__"):
        reward(torch.zeros(2, 1))
    assert_no_workers()


def test_interrupt_ends_the_workers():
    reward = rewards.parallel(per_sample.stops_the_parent, workers=1)
    # whoever runs the tests in the background may have had interrupts ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            reward(torch.zeros(2, 1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert_no_workers()


def test_function_that_workers_cannot_import():
    reward = rewards.parallel(lambda tokens: 1.0)
    with pytest.raises(ArgumentError, match="with def at the top of a module"):
        reward(torch.zeros(2, 1))
    assert_no_workers()


def test_worker_that_cannot_import_the_function(monkeypatch):
    """As where it is defined in a notebook: the worker's __main__ does not have it."""
    monkeypatch.setattr(worker, "_pickled", b"cno_such_module\nscore\n.")
    text = r"cannot import the function: No module named 'no_such_module'; define it with def"
    with pytest.raises(RewardError, match=text):
        worker._score(np.zeros((1, 1)), 0, 1)


def test_arguments_and_pickle():
    for wrong in ({"workers": 0}, {"chunk": 0}):
        with pytest.raises(ArgumentError, match="must be at least 1 or None, got 0"):
            rewards.parallel(per_sample.first, **wrong)
    assert pickle.loads(pickle.dumps(per_sample.spread)) is per_sample.spread
    again = pickle.loads(pickle.dumps(rewards.parallel(per_sample.first, workers=3, chunk=5)))
    assert again._recipe()[1] == (per_sample.first, 3, 5)
    assert again._pool is None
