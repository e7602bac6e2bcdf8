"""Rewards of one sample, in a module that worker processes can import."""

from __future__ import annotations

import functools
import os
import signal
import time

import torch

from fastguide import rewards

PENALTY = 0.1


def gc_and_runs(tokens):
    """1 - |GC share - 1/2| - PENALTY for each site beyond 4 equal ones; tokens are A, C, G, T."""
    gc = 0
    run = 0
    penalty = 0.0
    for site in range(len(tokens)):
        gc += tokens[site] == 1 or tokens[site] == 2
        run = run + 1 if site > 0 and tokens[site] == tokens[site - 1] else 1
        if run > 4:
            penalty += PENALTY
    return 1.0 - abs(gc / len(tokens) - 0.5) - penalty


def raises_at_seven(tokens):
    if tokens[0] == 7:
        raise ValueError("sevens are not allowed")
    return float(tokens[0])


def first(tokens):
    return tokens[0]


def dies(tokens):
    os._exit(1)


def stops_the_parent(tokens):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)


@rewards.jit
def compiled_sum(tokens):
    """The sum."""
    return tokens.sum()


@functools.partial(rewards.parallel, workers=2, chunk=3)
def spread(tokens):
    """By the first token: process id, torch's threads, an error, or the score."""
    if tokens[0] == 4:
        return os.getpid()
    if tokens[0] == 5:
        return torch.get_num_threads()
    if tokens[0] == 7:
        return raises_at_seven(tokens)
    return gc_and_runs(tokens)
