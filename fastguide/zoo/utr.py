"""Task `utr`: 50-nucleotide 5'UTRs with a high mean ribosome load.

Data: Sample et al. 2019, Nature Biotechnology 37:803-809, GEO GSE114002; see docs/data.md. The
recipe that made the shipped weights is `fastguide.zoo.train_utr`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastguide.diffusion import MaskedDiffusion
from fastguide.errors import ArgumentError, CheckpointError, DtypeError, ShapeError
from fastguide.nn import Ensemble, MaskedDenoiser, SequenceRegressor
from fastguide.zoo.checkpoint import load_weights, read_card
from fastguide.zoo.task import Task
from fastguide.zoo.utr_data import ALPHABET, LENGTH, LIBRARIES, encode

Tensor = torch.Tensor

WEIGHTS = Path(__file__).parent / "data" / "utr"
VOCAB_SIZE = len(ALPHABET)


class RibosomeLoad:
    """Predicted mean ribosome load of 5'UTRs: the mean of the random and the human head.

    Args:
        network: [B, 50, 4] float -> [B, 2] in ribosomes per mRNA, one column per library.
        name: for error messages.

    Calling it maps samples [B, 50] int64 in 0..3 to [B] float32 in ribosomes per mRNA, without
    gradient.
    """

    deterministic = True

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network
        self.name = name

    def __call__(self, samples: Tensor) -> Tensor:
        """Ribosome load [B] float32 of samples [B, 50] int64.

        Raises:
            ShapeError, DtypeError, ArgumentError: the samples are not clean tokens 0..3.
        """
        return self.heads(samples).mean(dim=1)

    def heads(self, samples: Tensor) -> Tensor:
        """Ribosome load [B, 2] float32 as measured in the random and in the human library."""
        one_hot = nn.functional.one_hot(check_samples(samples), VOCAB_SIZE).float()
        with torch.no_grad():
            load: Tensor = self.network(one_hot)
        return load

    def soft(self, probs: Tensor) -> Tensor:
        """Ribosome load [B] float32 of token probabilities [B, 50, 4] float; differentiable.

        Equal to calling the reward where rows are one-hot; elsewhere an interpolation that no
        measurement supports.
        """
        if probs.dim() != 3 or probs.shape[1:] != (LENGTH, VOCAB_SIZE):
            raise ShapeError(f"probs must be [B, {LENGTH}, {VOCAB_SIZE}], got {list(probs.shape)}")
        if not probs.is_floating_point():
            raise DtypeError(f"probs must be floating point, got {probs.dtype}")
        load: Tensor = self.network(probs.float())
        return load.mean(dim=1)

    def __repr__(self) -> str:
        return f"RibosomeLoad({self.name!r})"


def check_samples(samples: Tensor) -> Tensor:
    """Return samples [B, 50] as int64, or raise if they are not clean tokens 0..3."""
    if not isinstance(samples, torch.Tensor):
        raise DtypeError(f"samples must be a tensor [B, {LENGTH}], got {type(samples).__name__}")
    if samples.dim() != 2 or samples.shape[1] != LENGTH:
        raise ShapeError(f"samples must be [B, {LENGTH}], got {list(samples.shape)}")
    if samples.is_floating_point() or samples.dtype == torch.bool:
        raise DtypeError(
            f"samples must be integer tokens, got {samples.dtype}; give probabilities to .soft"
        )
    illegal = (samples < 0) | (samples >= VOCAB_SIZE)
    if bool(illegal.any()):
        row, site = illegal.nonzero()[0].tolist()
        token = int(samples[row, site])
        what = "the mask" if token == VOCAB_SIZE else "no nucleotide"
        raise ArgumentError(
            f"samples[{row}, {site}] is {token}, which is {what}; a finished 5'UTR has tokens "
            f"0..{VOCAB_SIZE - 1} ({', '.join(ALPHABET)})"
        )
    return samples.long()


def decode(samples: Tensor) -> list[str]:
    """Sequences of 50 letters A, C, G, T of samples [B, 50] int64."""
    return ["".join(ALPHABET[token] for token in row) for row in check_samples(samples).tolist()]


def build_denoiser(config: dict[str, Any], *, batch_norm: bool = False) -> MaskedDenoiser:
    """The denoiser of a card's or recipe's `config`; see `MaskedDenoiser`."""
    return MaskedDenoiser(LENGTH, VOCAB_SIZE, **config, batch_norm=batch_norm)


def build_member(config: dict[str, Any], *, batch_norm: bool = False) -> SequenceRegressor:
    """One member of an oracle of a card's or recipe's `config`; see `SequenceRegressor`."""
    return SequenceRegressor(LENGTH, VOCAB_SIZE, len(LIBRARIES), **config, batch_norm=batch_norm)


def build_oracle(config: dict[str, Any], num_members: int) -> Ensemble:
    """An oracle whose weights, centre and scale are still to be loaded."""
    members = [build_member(config) for _ in range(num_members)]
    return Ensemble(members, torch.zeros(len(LIBRARIES)), torch.ones(len(LIBRARIES)))


def load(folder: Path = WEIGHTS, device: torch.device | str = "cpu") -> Task:
    """The task with the weights of `folder`, whose hashes are checked; see `fastguide.zoo.load`."""
    card = read_card(folder)
    try:
        models = {name: card["models"][name] for name in ("denoiser", "guide", "judge")}
        # the initial weights are overwritten: the caller's random numbers must not notice
        with torch.random.fork_rng(devices=[]):
            networks: dict[str, nn.Module] = {
                "denoiser": build_denoiser(models["denoiser"]["config"]),
                **{
                    name: build_oracle(models[name]["config"], models[name]["members"])
                    for name in ("guide", "judge")
                },
            }
        files = {name: (model["file"], model["sha256"]) for name, model in models.items()}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"the card in {folder} does not describe the utr models ({error!r}); reinstall "
            "fastguide or train the weights again with `fastguide zoo train utr`"
        ) from error
    for name, network in networks.items():
        file, sha256 = files[name]
        load_weights(folder / file, sha256, network)
        network.to(device)
    return Task(
        name="utr",
        diffusion=MaskedDiffusion(networks["denoiser"], LENGTH, VOCAB_SIZE),
        reward=RibosomeLoad(networks["guide"], "guide"),
        oracle=RibosomeLoad(networks["judge"], "judge"),
        encode=encode,
        decode=decode,
        card=card,
    )
