"""JPEG sizes as rewards: Pillow's own, signed, of the pixels that would be saved."""

from __future__ import annotations

import io
import pickle
import re
import sys

import pytest
import torch

import fastguide as fg
from fastguide.errors import (
    ArgumentError,
    DtypeError,
    GradientError,
    MissingExtraError,
    NonFiniteError,
    ShapeError,
)

image = pytest.importorskip("PIL.Image")

SMALLER, LARGER = fg.rewards.JpegCompressibility, fg.rewards.JpegIncompressibility


def kilobytes(levels: torch.Tensor, quality: int = 95) -> torch.Tensor:
    """What Pillow writes for 8-bit images [B, C, H, W]."""
    sizes = []
    for row in levels:
        file = io.BytesIO()
        pixels = row[0] if len(row) == 1 else row.permute(1, 2, 0)
        image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=quality)
        sizes.append(len(file.getvalue()))
    return torch.tensor(sizes) / 1000


def random_levels(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """8-bit images, each with more noise than the one before."""
    shade = torch.linspace(40, 200, width).expand(count, channels, height, width)
    noise = torch.randn(shade.shape) * torch.arange(count)[:, None, None, None] * 8
    return (shade + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("quality", [95, 30])
@pytest.mark.parametrize("size", [(28, 28), (17, 40), (160, 130)])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_those_of_pillow(channels, size, quality):
    levels = random_levels(5, channels, *size)
    images = levels.float() / 255
    due = kilobytes(levels, quality)
    assert due.unique().numel() == 5
    for workers in (1, 3):
        found = LARGER(quality=quality, workers=workers)(images)
        assert found.dtype == torch.float32
        assert torch.equal(found, due)
    assert torch.equal(SMALLER(quality=quality)(images), -due)


def test_threads_have_files_of_their_own():
    """Many blocks on few threads: sizes fall and rise within a thread, and order is kept."""
    levels = random_levels(12, 3, 256, 256)[torch.randperm(12)]
    assert torch.equal(LARGER(workers=4)(levels / 255), kilobytes(levels))


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (-0.5, 1.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_pixels_are_clamped_and_rounded_to_the_nearest(value_range, dtype):
    low, high = value_range
    images = (torch.rand(2, 3, 24, 24) * 1.4 - 0.2) * (high - low) + low
    images = images.to(dtype)
    share = (images.double() - low) / (high - low)
    levels = (share.clamp(0, 1) * 255).round().to(torch.uint8)
    assert levels.min() == 0
    assert levels.max() == 255
    assert torch.equal(LARGER(value_range=value_range)(images), kilobytes(levels))


def test_any_strides_and_no_rows():
    levels = random_levels(6, 3, 20, 24)
    images = (levels.float() / 255).to(memory_format=torch.channels_last)
    assert torch.equal(LARGER()(images[::2]), kilobytes(levels[::2]))
    assert LARGER()(images[:0]).shape == (0,)


def test_files_of_flat_pictures_are_smallest():
    flat, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64)
    assert LARGER()(flat) < 1 < LARGER()(noise)
    assert SMALLER()(flat) > SMALLER()(noise)


def test_it_pickles():
    reward = pickle.loads(pickle.dumps(SMALLER(quality=50, value_range=(-1, 1), workers=2)))
    assert repr(reward) == "JpegCompressibility(quality=50, value_range=(-1.0, 1.0))"
    assert reward.workers == 2
    assert reward.deterministic


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(3, 8, 8), ShapeError, r"got [3, 8, 8]; pass one image x as x[None]"),
        (torch.rand(2, 8, 8, 3), ShapeError, "got [2, 8, 8, 3]; move the channels to the front"),
        (torch.rand(2, 4, 8, 8), ShapeError, "must be [B, 3, H, W] or [B, 1, H, W], got [2, 4"),
        (torch.rand(2, 3, 0, 8), ShapeError, "got [2, 3, 0, 8]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), DtypeError, "pass images.float() / 255"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), DtypeError, "floats, got torch.int64"),
        ([[0.0]], DtypeError, "a tensor [B, 3, H, W] of floats, got list"),
    ],
)
def test_wrong_images(images, error, message):
    with pytest.raises(error, match=re.escape(message)):
        SMALLER()(images)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_images_are_named(wrong):
    images = torch.rand(4, 3, 8, 8)
    images[2, 1, 3, 4] = wrong
    with pytest.raises(NonFiniteError, match="row 2 of 4 holds NaN or infinity"):
        SMALLER()(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(quality=0), "quality must be in 1..100, got 0"),
        (dict(quality=101), "got 101"),
        (dict(workers=0), "workers must be at least 1 or None, got 0"),
        (dict(value_range=(1, 0)), "value_range must be (low, high)"),
        (dict(value_range=(0, float("inf"))), "(0, 1) and (-1, 1) are usual"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        LARGER(**options)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'fastguide[images]'")):
        SMALLER()


def test_it_guides_and_has_no_gradient():
    def denoiser(x, t):
        return 0.1 * x

    diffusion = fg.GaussianDiffusion(
        denoiser,
        (1, 16, 16),
        alphas_cumprod=torch.linspace(0.99, 0.01, 20),
        prediction_type="sample",
    )
    rewards = [
        fg.BestOfN(diffusion, reward(value_range=(-1, 1)), num_candidates=8)
        .sample(8, num_steps=3)
        .rewards.abs()
        .mean()
        for reward in (SMALLER, LARGER)
    ]
    assert rewards[0] < rewards[1]
    with pytest.raises(GradientError, match="SVDD, SMC"):
        fg.DPS(diffusion, SMALLER()).sample(2, num_steps=3)


def test_docs_example(root, capsys):
    """The example of images in docs/rewards.md."""
    (block,) = re.findall(
        r"```py\n(.+?)```", (root / "docs" / "rewards.md").read_text("utf-8"), re.S
    )
    exec(block, {})
    before, after = map(float, capsys.readouterr().out.split())
    assert before < after < 0
