"""A task small enough for fast tests: 8 sites, tables for networks, two rewards that differ."""

from __future__ import annotations

import torch

import fastguide as fg
from fastguide.zoo import Task

LENGTH, LETTERS = 8, "ACGT"
# logits of a letter after each letter, and at the first site or after a mask
TABLE = torch.tensor(
    [
        [1.0, 0.0, 1.0, 0.25],
        [0.25, 1.0, 0.75, 0.0],
        [0.5, 0.5, 1.25, 0.0],
        [0.0, 1.0, 0.5, 1.0],
        [0.0, 0.5, 0.5, 0.0],
    ]
)


def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Each site looks at its left neighbour."""
    return TABLE[torch.nn.functional.pad(x, (1, 0), value=4)[:, :-1]]


def reward(samples: torch.Tensor) -> torch.Tensor:
    """Guides: G counts, and equal neighbours a little."""
    return (samples == 2).sum(1) + 0.25 * (samples[:, 1:] == samples[:, :-1]).sum(1)


def oracle(samples: torch.Tensor) -> torch.Tensor:
    """Judges: G counts, T early."""
    return 0.75 * (samples == 2).sum(1) + 0.5 * (samples[:, :3] == 3).sum(1)


def decode(samples: torch.Tensor) -> list[str]:
    """Letters of rows."""
    return ["".join(LETTERS[token] for token in row) for row in samples.tolist()]


def encode(sequences: list[str]) -> torch.Tensor:
    """Rows of letters."""
    return torch.tensor([[LETTERS.index(letter) for letter in text] for text in sequences])


def task() -> Task:
    """The task, with a card of the zoo's form."""
    facts = {"parameters": 20, "mflop_per_row": 0.1, "bytes": 2000, "sha256": "0" * 64}
    return Task(
        name="tiny",
        diffusion=fg.MaskedDiffusion(denoiser, LENGTH, len(LETTERS)),
        reward=reward,
        oracle=oracle,
        encode=encode,
        decode=decode,
        card={
            "summary": "letters for tests",
            "data": {"publication": "none", "accession": "none"},
            "models": {"denoiser": facts, "guide": facts, "judge": facts},
            "metrics": {
                "denoiser": {"bits_per_nucleotide": 1.5},
                "guide": {"random": {"pearson": 0.5}},
                "judge": {"random": {"pearson": 0.25}},
            },
        },
    )
