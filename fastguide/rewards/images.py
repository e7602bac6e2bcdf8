"""The size of an image's JPEG file as a reward: smooth pictures are small, busy ones large."""

from __future__ import annotations

import io
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch

from fastguide.errors import (
    ArgumentError,
    DtypeError,
    MissingExtraError,
    NonFiniteError,
    ShapeError,
)
from fastguide.rewards.wrapper import Array

Tensor = torch.Tensor

THREADED_PIXELS = 128 * 128
"""Images of fewer pixels are encoded on one thread: handing them out costs more than it saves."""
BLOCK_VALUES = 2**20
"""Most values converted at once."""


class _JpegSize:
    """Signed size of JPEG files. See `JpegCompressibility` for the arguments.

    Attributes:
        deterministic: True, equal images have equal files.
    """

    deterministic = True
    _sign: float

    def __init__(
        self,
        *,
        quality: int = 95,
        value_range: tuple[float, float] = (0.0, 1.0),
        workers: int | None = None,
    ) -> None:
        _pillow()
        if not 1 <= quality <= 100:
            raise ArgumentError(f"quality must be in 1..100, got {quality}")
        if workers is not None and workers < 1:
            raise ArgumentError(f"workers must be at least 1 or None, got {workers}")
        self.quality = quality
        self.value_range = checked_range(value_range)
        self.workers = workers

    def __call__(self, images: Tensor) -> Tensor:
        """Rewards [B] float32 in kB of images [B, 3, H, W] or [B, 1, H, W]; without a gradient."""
        images = checked_images(images).detach()
        _check_finite(images)
        count, _, height, width = images.shape
        threads = 1
        if height * width >= THREADED_PIXELS:
            threads = self.workers or torch.get_num_threads()
        # in blocks, because fresh memory for all at once would take longer than the encoding
        rows = min(BLOCK_VALUES // images.shape[1:].numel(), math.ceil(count / threads))
        blocks = (to_pixels(block, self.value_range) for block in images.split(max(1, rows)))
        if threads == 1:
            sizes = [self._sizes(block, io.BytesIO()) for block in blocks]
        else:
            with ThreadPoolExecutor(threads) as pool:
                sizes = list(pool.map(self._sizes_in_file, blocks))
        kilobytes = torch.tensor(list(chain.from_iterable(sizes)), dtype=torch.float32) / 1000
        return self._sign * kilobytes.to(images.device)

    def _sizes_in_file(self, pixels: Array) -> list[int]:
        # Pillow lets other threads run while it encodes into a file, not while into memory
        with tempfile.TemporaryFile(buffering=0) as file:
            return self._sizes(pixels, file)

    def _sizes(self, pixels: Array, file: Any) -> list[int]:
        """Bytes of the JPEG files of 8-bit pixels [B, H, W, ...], each written over the last."""
        image = _pillow()
        sizes = []
        for row in pixels:
            file.seek(0)
            image.fromarray(row).save(file, "JPEG", quality=self.quality)
            sizes.append(file.tell())
        return sizes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(quality={self.quality}, value_range={self.value_range})"


class JpegCompressibility(_JpegSize):
    """Minus the size of the image's JPEG file in kB (1000 bytes), as Pillow writes it.

    Pixels are rounded to 8 bits: 255 (x - low) / (high - low), clamped to 0..255 and rounded to the
    nearest integer (a tie to the even one). So predictions that overshoot the range count as the
    picture that would be saved. Large images are encoded on several threads.

    Args:
        quality: of the JPEG file, 1..100; all else is Pillow's default (4:2:0 chroma).
        value_range: (low, high), the pixel values of black and white; (-1, 1) for the states of
            most pixel-space models.
        workers: threads; None for as many as torch has. Images under 128 x 128 take one.

    Raises:
        MissingExtraError: Pillow is not installed.
        ArgumentError: quality, value_range or workers out of range.
        ShapeError, DtypeError, NonFiniteError: at a call, images are not floats [B, 3 or 1, H, W],
            or hold NaN or infinity.

    Source: Black et al. 2023, "Training diffusion models with reinforcement learning" (DDPO),
        arXiv 2305.13301; the image task of SVDD, Li et al. 2024, arXiv 2408.08252.
    """

    _sign = -1.0


class JpegIncompressibility(_JpegSize):
    """The size of the image's JPEG file in kB (1000 bytes): minus `JpegCompressibility`."""

    _sign = 1.0


def to_pixels(images: Tensor, value_range: tuple[float, float]) -> Array:
    """Images [B, C, H, W] as 8-bit pixels on the host, [B, H, W, 3], or [B, H, W] if C is 1."""
    low, high = value_range
    levels = images.to(torch.promote_types(images.dtype, torch.float32)) - low
    levels = levels.mul_(255 / (high - low)).clamp_(0, 255).round_().to(torch.uint8)
    levels = levels[:, 0] if images.shape[1] == 1 else levels.movedim(1, -1)
    return levels.contiguous().cpu().numpy()


def to_unit(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Images with black at 0 and white at 1, clamped to that; at least float32, differentiable."""
    low, high = value_range
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return ((images - low) / (high - low)).clamp(0, 1)


def checked_images(images: Tensor) -> Tensor:
    """The images, if they are floats [B, 3, H, W] or [B, 1, H, W].

    Raises:
        DtypeError: not a tensor of floats.   ShapeError: another shape.
    """
    if not isinstance(images, Tensor):
        raise DtypeError(
            f"images must be a tensor [B, 3, H, W] of floats, got {type(images).__name__}"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        hint = ""
        if images.ndim == 3:
            hint = "; pass one image x as x[None]"
        elif images.ndim == 4 and images.shape[3] in (1, 3):
            hint = "; move the channels to the front with .movedim(-1, 1)"
        raise ShapeError(
            f"images must be [B, 3, H, W] or [B, 1, H, W], got {list(images.shape)}{hint}"
        )
    if not images.is_floating_point():
        hint = "; pass images.float() / 255" if images.dtype == torch.uint8 else ""
        raise DtypeError(f"images must be floats, got {images.dtype}{hint}")
    return images


def checked_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """(low, high) as floats.   Raises ArgumentError unless finite and low < high."""
    low, high = map(float, value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(
            "value_range must be (low, high), the pixel values of black and white, got "
            f"{value_range}; (0, 1) and (-1, 1) are usual"
        )
    return low, high


def _check_finite(images: Tensor) -> None:
    if not len(images):
        return
    # NaN is the extreme of any row that has one; isfinite of all values takes ten times as long
    wrong = ~(images.amin((1, 2, 3)).isfinite() & images.amax((1, 2, 3)).isfinite())
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise NonFiniteError(
            f"images: row {row} of {len(images)} holds NaN or infinity, which no JPEG file can; "
            "look at the precision of the denoiser or of the decoder"
        )


def _pillow() -> Any:
    """The module PIL.Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "JPEG rewards need Pillow: pip install 'fastguide[images]'"
        ) from error
    return Image
