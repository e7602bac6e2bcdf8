"""Task `glyphs`: handwritten characters, 28 by 28 grey pixels.

Data: Omniglot, Lake et al. 2015, Science 350:1332; see docs/data.md. The recipe that made the
shipped weights is `fastguide.zoo.train_glyphs`. Samples are [B, 1, 28, 28] float, -1 paper and 1
ink; rewards see what a picture shows, so values beyond that range count as paper or ink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastguide.diffusion import GaussianDiffusion
from fastguide.errors import ArgumentError, CheckpointError, DtypeError, ShapeError
from fastguide.nn import PictureClassifier, UNet
from fastguide.zoo.checkpoint import load_weights, read_card
from fastguide.zoo.glyphs_data import SIDE, as_samples, blur
from fastguide.zoo.task import PictureReward, PictureTask

Tensor = torch.Tensor
Denoiser = Callable[[Tensor, Tensor], Tensor]

WEIGHTS = Path(__file__).parent / "data" / "glyphs"
SHAPE = (1, SIDE, SIDE)
HALVES = ("guide", "judge")
MODELS = ("denoiser", *(f"{kind}-{half}" for kind in ("aesthetic", "alphabet") for half in HALVES))
PREDICTION = "v_prediction"
NUM_LEVELS = 1000
BLUR = 1.0
"""Pixels of the Gaussian blur before drawings are compared: a stroke moved a little is close."""
GREYS = 16
"""Grey levels of the stored references, two to a byte."""


class Ink:
    """Share of the page that is ink, in per cent; natural drawings have 8 +- 2.5.

    Args:
        target: None: the more ink the better. Else per cent, and the reward is minus the distance
            to it.

    Samples [B, 1, 28, 28] float in [-1, 1] -> [B] float32, differentiable. Exact, not learned.
    """

    deterministic = True

    def __init__(self, target: float | None = None) -> None:
        if target is not None and not 0 <= target <= 100:
            raise ArgumentError(f"target must be per cent of the page, 0..100, got {target}")
        self.target = target

    def __call__(self, samples: Tensor) -> Tensor:
        """Reward [B] float32 in per cent of the page."""
        share = 50 * (check_samples(samples).mean(dim=(1, 2, 3)) + 1)
        return share if self.target is None else -(share - self.target).abs()

    def __repr__(self) -> str:
        return f"Ink(target={self.target})"


class Aesthetic:
    """Log-odds, in nats, that a picture is a clean pen drawing and not a spoilt one.

    Nobody has scored these drawings. The network was trained to tell originals from copies spoilt
    by gaps in strokes, blobs, blur, noise, specks and erasures, which is all it knows of beauty.

    Args:
        network: [B, 1, 28, 28] float -> [B, 1].   name: for messages.

    Samples [B, 1, 28, 28] float in [-1, 1] -> [B] float32, differentiable.
    """

    deterministic = True

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network
        self.name = name

    def __call__(self, samples: Tensor) -> Tensor:
        """Reward [B] float32 in nats."""
        score: Tensor = self.network(check_samples(samples))[:, 0]
        return score

    def __repr__(self) -> str:
        return f"Aesthetic({self.name!r})"


class Alphabet:
    """Log-probability, in nats, that a character belongs to one alphabet.

    Args:
        network: [B, 1, 28, 28] float -> logits [B, K], a column per alphabet.
        alphabets: K names.   alphabet: the one that is wanted.   name: for messages.

    Samples [B, 1, 28, 28] float in [-1, 1] -> [B] float32, differentiable.
    """

    deterministic = True

    def __init__(
        self, network: nn.Module, alphabets: Sequence[str], alphabet: str, name: str
    ) -> None:
        if alphabet not in alphabets:
            raise ArgumentError(f"alphabet must be one of {list(alphabets)}, got {alphabet!r}")
        self.network = network
        self.alphabets = tuple(alphabets)
        self.alphabet = alphabet
        self.name = name

    def __call__(self, samples: Tensor) -> Tensor:
        """Reward [B] float32 in nats, at most 0."""
        return self.log_probs(samples)[:, self.alphabets.index(self.alphabet)]

    def log_probs(self, samples: Tensor) -> Tensor:
        """Log-probability [B, K] float32 of every alphabet."""
        logits: Tensor = self.network(check_samples(samples))
        return logits.log_softmax(dim=1)

    def __repr__(self) -> str:
        return f"Alphabet({self.alphabet!r}, {self.name!r})"


class References(nn.Module):
    """Training drawings to compare with, at 16 grey levels.

    Args:
        count: N.

    The state holds `packed` [N, 392] uint8: two pixels to a byte, the left one in the high half.
    """

    packed: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        empty = torch.zeros(count, SIDE * SIDE // 2, dtype=torch.uint8)
        self.register_buffer("packed", empty)

    def store(self, images: Tensor) -> None:
        """Replace the drawings by images [N, 28, 28] uint8, rounded to 16 grey levels."""
        grey = (images.flatten(1).float() / 255 * (GREYS - 1)).round().to(torch.uint8)
        self.packed = grey[:, ::2] * GREYS + grey[:, 1::2]

    def images(self) -> Tensor:
        """The drawings [N, 28, 28] uint8."""
        grey = torch.stack([self.packed // GREYS, self.packed % GREYS], dim=2)
        return grey.view(-1, SIDE, SIDE) * (255 // (GREYS - 1))

    def nearest_distance(self, samples: Tensor) -> Tensor:
        """Distance [B] float32 of samples [B, 1, 28, 28] to the nearest of the drawings.

        Euclidean distance of ink shares in 0..1, each picture blurred by one pixel first. No
        reward: it says how far from the training data a picture is.
        """
        with torch.no_grad():
            here, there = (_blurred_ink(x) for x in (samples, as_samples(self.images())))
            return torch.cdist(here, there).amin(dim=1)


def _blurred_ink(samples: Tensor) -> Tensor:
    ink = (check_samples(samples)[:, 0] + 1) / 2
    return blur(ink, BLUR).flatten(1)


def cosine_table(size: int = NUM_LEVELS) -> Tensor:
    """alphas_cumprod [size] float64 of the cosine schedule, with steps of at most 0.999.

    Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17; the same table as
    `squaredcos_cap_v2` of diffusers.
    """
    place = torch.arange(size + 1, dtype=torch.float64) / size
    curve = ((place + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (curve[1:] / curve[:-1]).clamp(min=1e-3).cumprod(dim=0)


def velocity_error(denoiser: Denoiser, x: Tensor, levels: Tensor) -> Tensor:
    """Squared error per pixel, [B], of the velocity that the denoiser sees in noised samples.

    The velocity is sqrt(abar) noise - sqrt(1 - abar) x, with abar of `cosine_table`; a guess of
    the sample and one of the noise err by the same, times 1 - abar and abar.

    Args:
        denoiser: (x [B, 1, 28, 28], t [B] int64) -> velocity.   x: samples.
        levels: [B] in [0, 1), from little noise to much. The noise is of torch's generator.
    """
    t = (levels * NUM_LEVELS).long()
    table = cosine_table()[t].view(-1, 1, 1, 1)
    alpha, sigma = table.sqrt().float(), (1 - table).sqrt().float()
    noise = torch.randn_like(x)
    error = denoiser(alpha * x + sigma * noise, t) - (alpha * noise - sigma * x)
    return error.square().mean(dim=(1, 2, 3))


def check_samples(samples: Tensor) -> Tensor:
    """Return samples [B, 1, 28, 28] as float32 clamped to [-1, 1], or raise if they are none."""
    if not isinstance(samples, torch.Tensor):
        raise DtypeError(f"samples must be a tensor [B, 1, 28, 28], got {type(samples).__name__}")
    if samples.dim() != 4 or samples.shape[1:] != SHAPE:
        raise ShapeError(f"samples must be [B, 1, {SIDE}, {SIDE}], got {list(samples.shape)}")
    if not samples.is_floating_point():
        raise DtypeError(
            f"samples must be floating point in [-1, 1], got {samples.dtype}; images are made "
            "samples by task.encode"
        )
    return samples.float().clamp(-1, 1)


def encode(images: Tensor) -> Tensor:
    """Samples [B, 1, 28, 28] float32 of images [B, 28, 28] uint8, 0 paper and 255 ink.

    Raises:
        ShapeError, DtypeError: something else was given.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise DtypeError(f"images must be a tensor of uint8, 0 paper and 255 ink, got {found}")
    if images.dim() != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ShapeError(f"images must be [B, {SIDE}, {SIDE}], got {list(images.shape)}")
    return as_samples(images)


def decode(samples: Tensor) -> Tensor:
    """Images [B, 28, 28] uint8 of samples [B, 1, 28, 28], 0 paper and 255 ink."""
    return ((check_samples(samples)[:, 0] + 1) * 127.5).round().to(torch.uint8)


def build(name: str, config: dict[str, Any]) -> nn.Module:
    """The network of MODELS with a card's or recipe's `config`, with its initial weights."""
    return UNet(**config) if name == "denoiser" else PictureClassifier(**config)


def load(folder: Path = WEIGHTS, device: torch.device | str = "cpu") -> PictureTask:
    """The task with the weights of `folder`, whose hashes are checked; see `fastguide.zoo.load`."""
    card = read_card(folder)
    try:
        entries = {name: card["models"][name] for name in MODELS}
        # the initial weights are overwritten: the caller's random numbers must not notice
        with torch.random.fork_rng(devices=[]):
            networks = {name: build(name, entry["config"]) for name, entry in entries.items()}
        references = References(card["references"]["drawings"])
        alphabets = tuple(card["data"]["alphabets"])
        files = {name: (e["file"], e["sha256"]) for name, e in entries.items()}
        stored = (card["references"]["file"], card["references"]["sha256"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"the card in {folder} does not describe the glyphs models ({error!r}); reinstall "
            "fastguide or train the weights again with `fastguide zoo train glyphs`"
        ) from error
    for (file, sha256), module in zip(
        [*files.values(), stored], [*networks.values(), references], strict=True
    ):
        load_weights(folder / file, sha256, module)
        module.to(device)
    rewards, oracles = (_rewards(networks, half, alphabets) for half in HALVES)
    return PictureTask(
        name="glyphs",
        diffusion=GaussianDiffusion(
            networks["denoiser"], SHAPE, alphas_cumprod=cosine_table(), prediction_type=PREDICTION
        ),
        rewards=rewards,
        oracles=oracles,
        default="aesthetic",
        encode=encode,
        decode=decode,
        references=references.images(),
        nearest_distance=references.nearest_distance,
        card=card,
    )


def _rewards(
    networks: dict[str, nn.Module], half: str, alphabets: Sequence[str]
) -> dict[str, PictureReward]:
    """The rewards that the networks of one half give, by name."""
    classifier = networks[f"alphabet-{half}"]
    return {
        "aesthetic": Aesthetic(networks[f"aesthetic-{half}"], half),
        "ink": Ink(),
        **{
            f"alphabet:{alphabet}": Alphabet(classifier, alphabets, alphabet, half)
            for alphabet in alphabets
        },
    }
