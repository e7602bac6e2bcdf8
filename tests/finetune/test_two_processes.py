"""Two processes train as one does with their batches together."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import torch

PROGRAM = """
import sys
import torch
from torch import distributed, nn

import fastguide as fg
from fastguide.nn import MaskedDenoiser


def reward(x):
    return (x == 3).sum(dim=1).double()


def make():
    torch.manual_seed(1)
    network = MaskedDenoiser(8, 4, channels=8, kernel_size=3, dilations=(1, 2)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fg.MaskedDiffusion(network, 8, 4)


def train(processes):
    tuned = {}
    for name, method, options in (
        ("ppo", fg.finetune.PPO, dict(minibatches=2, epochs=2, baseline="running")),
        ("vargrad", fg.finetune.PathConsistency, dict(replay=2)),
        ("likelihood", fg.finetune.RewardWeightedMLE, dict()),
    ):
        tuner = method(make(), reward, alpha=1.0, adapter="full", learning_rate=0.01, **options)
        history = tuner.train(4, 16 // processes, num_steps=4, progress=False)
        state = tuner.diffusion.denoiser.state_dict()
        tuned |= {f"{name}.{key}": value for key, value in state.items()}
        tuned[f"{name}.reward"] = history.column("reward")
    return tuned


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    tuned = train(2)
    if rank == 0:
        torch.save(tuned, out)
    distributed.barrier()
    distributed.destroy_process_group()
"""


def test_two_processes_are_one(tmp_path):
    program, out = tmp_path / "train.py", tmp_path / "tuned.pt"
    program.write_text(PROGRAM)
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(tmp_path / "store"), str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    one = runpy.run_path(str(program))["train"](1)
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    two = torch.load(out, weights_only=True)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)
    # the embedding was trained, by each method in its own way
    embedding = one["ppo.embed.weight"]
    assert float((embedding - one["vargrad.embed.weight"]).abs().max()) > 1e-3
