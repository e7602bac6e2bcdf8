"""The handwritten characters: reading the file, splitting, moving and degrading drawings.

A drawing is a picture of 28 by 28 grey values. As uint8, 0 is paper and 255 ink; as a float ink
share, 0 is paper and 1 ink; as a sample, -1 is paper and 1 ink. The public source is described in
docs/data.md.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastguide.errors import ArgumentError

Tensor = torch.Tensor

SIDE = 28
ARRAYS = ("images", "alphabet", "character")
TEST_SHARE = 0.10


@dataclass(frozen=True)
class Drawings:
    """Drawings and two splits of them.

    Attributes:
        images: [N, 28, 28] uint8.   alphabet: [N] int64, index into `alphabets`.
        alphabets: names, sorted.   character: [N] int64, from 0, over all alphabets.
        by_character, by_drawing: [N] unicode arrays: "test", "guide" or "judge". The first never
            divides a character, the second divides each.
        sha256: of the file they came from.
    """

    images: Tensor
    alphabet: Tensor
    alphabets: tuple[str, ...]
    character: Tensor
    by_character: np.ndarray
    by_drawing: np.ndarray
    sha256: str

    @property
    def num_characters(self) -> int:
        """How many characters there are."""
        return len(self.character.unique())

    def rows(self, split: str, *parts: str) -> Tensor:
        """Indices [n] int64 of the drawings of `parts` of a split, "by_character" or another."""
        return torch.from_numpy(np.isin(getattr(self, split), parts)).nonzero()[:, 0]

    def samples(self, rows: Tensor) -> Tensor:
        """Drawings `rows` [n] as samples [n, 1, 28, 28] float32 in [-1, 1]."""
        return as_samples(self.images[rows])


def as_samples(images: Tensor) -> Tensor:
    """Samples [B, 1, 28, 28] float32 in [-1, 1] of images [B, 28, 28] uint8."""
    return images[:, None].float() / 127.5 - 1


def read(path: Path) -> Drawings:
    """Read a file of NumPy arrays images, alphabet and character, and split it.

    Raises:
        ArgumentError: the file is missing, cannot be read, or lacks an array; names it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"data: cannot read {path} ({error.strerror}); docs/data.md says where the public "
            "drawings come from and how the file is made"
        ) from error
    try:
        file = np.load(io.BytesIO(raw), allow_pickle=False)
        arrays = {name: file[name] for name in ARRAYS if name in file}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"data: {path} is no .npz file of arrays ({error})") from error
    missing = set(ARRAYS) - set(arrays)
    if missing:
        raise ArgumentError(
            f"data: {path} has no array {', '.join(sorted(missing))}; it needs {', '.join(ARRAYS)}"
        )
    images, names, number = (arrays[name] for name in ARRAYS)
    if images.shape[1:] != (SIDE, SIDE) or images.dtype != np.uint8:
        raise ArgumentError(
            f"data: images of {path} must be [N, {SIDE}, {SIDE}] uint8, got {list(images.shape)} "
            f"{images.dtype}"
        )
    if not images.shape[:1] == names.shape == number.shape:
        raise ArgumentError(
            f"data: {path} has {len(images)} images, but alphabet {list(names.shape)} and "
            f"character {list(number.shape)}; each needs one entry per image"
        )
    characters = [f"{name}:{n}" for name, n in zip(names, number, strict=True)]
    alphabets, index = np.unique(names, return_inverse=True)
    return Drawings(
        images=torch.from_numpy(images),
        alphabet=torch.from_numpy(index.astype(np.int64)),
        alphabets=tuple(str(name) for name in alphabets),
        character=torch.from_numpy(np.unique(characters, return_inverse=True)[1]),
        by_character=np.array([_part(name.encode()) for name in characters]),
        by_drawing=np.array([_part(image.tobytes()) for image in images]),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _part(name: bytes) -> str:
    """Part of what is named so: 10 % test and 45 % each half, in expectation."""
    where = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64
    if where < TEST_SHARE:
        return "test"
    return "guide" if where < (1 + TEST_SHARE) / 2 else "judge"


def move(x: Tensor, share: float = 0.75) -> Tensor:
    """Turn, stretch, slant and shift a random `share` of samples [B, 1, 28, 28] a little.

    Up to 7 degrees, 10 %, 0.1 and 1.5 pixels. The others stay as sharp as they are: moving a
    picture blurs it.
    """
    batch = len(x)
    turn, wide, high, slant, right, down = (2 * torch.rand(6, batch) - 1).unbind()
    turn, slant = 0.12 * turn, 0.1 * slant
    wide, high = 1 + 0.1 * wide, 1 + 0.1 * high
    matrix = torch.stack(
        [
            torch.stack([wide * turn.cos(), slant - turn.sin(), right * 3 / SIDE], dim=1),
            torch.stack([turn.sin(), high * turn.cos(), down * 3 / SIDE], dim=1),
        ],
        dim=1,
    )
    grid = torch.nn.functional.affine_grid(matrix, list(x.shape), align_corners=False)
    # paper beyond the edge; bicubic interpolation keeps strokes sharp
    moved = torch.nn.functional.grid_sample(x + 1, grid, mode="bicubic", align_corners=False) - 1
    return torch.where(torch.rand(batch, 1, 1, 1) < share, moved.clamp(-1, 1), x)


FAULTS = ("broken", "blobs", "blur", "noise", "specks", "erased")


def degrade(x: Tensor, fault: Tensor | None = None) -> Tensor:
    """Spoil each of the samples [B, 1, 28, 28] in one way, from hardly to badly.

    Args:
        x: samples in [-1, 1].
        fault: [B] int64, index into FAULTS: gaps in the strokes, blobs of ink on them, blur, grey
            noise, specks on the paper, an erased square. None draws them.
    """
    if fault is None:
        fault = torch.randint(len(FAULTS), (len(x),))
    ink = (x[:, 0] + 1) / 2
    severity = 0.15 + 0.85 * torch.rand(len(x), 1, 1)
    noise = (0.02 + 0.4 * severity.square()) * torch.randn_like(ink)
    made = torch.stack(
        [
            ink * (1 - _discs(ink, severity, 1.0, 2.5)),
            torch.maximum(ink, _discs(ink, severity, 1.5, 3.5)),
            _blurred(ink, severity),
            ink + noise,
            torch.maximum(ink, _discs((ink < 0.05).float(), severity, 0.6, 1.2)),
            ink * (1 - _square(ink, severity)),
        ]
    )
    chosen = made[fault, torch.arange(len(x))].clamp(0, 1)
    return 2 * chosen[:, None] - 1


def blur(ink: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of pictures [B, H, W], `deviation` in pixels; paper beyond the edge."""
    reach = round(3 * deviation)
    line = torch.arange(-reach, reach + 1, dtype=ink.dtype, device=ink.device)
    line = torch.exp(-line.square() / (2 * deviation**2))
    line = line / line.sum()
    conv = torch.nn.functional.conv2d
    rows = conv(ink[:, None], line.view(1, 1, -1, 1), padding=(reach, 0))
    return conv(rows, line.view(1, 1, 1, -1), padding=(0, reach))[:, 0]


def _blurred(ink: Tensor, severity: Tensor) -> Tensor:
    mild, strong = blur(ink, 0.7), blur(ink, 2.0)
    return torch.lerp(mild, strong, severity.square())


def _discs(where: Tensor, severity: Tensor, least: float, most: float, count: int = 4) -> Tensor:
    """Masks [B, 28, 28] in [0, 1] of one to `count` discs with soft edges.

    Centres are drawn in proportion to `where` [B, 28, 28]; radii from `least` to `most` pixels,
    growing with the severity [B, 1, 1].
    """
    batch = len(where)
    centre = torch.multinomial(where.flatten(1) + 1e-6, count, replacement=True)
    row, column = (axis.float()[..., None, None] for axis in (centre // SIDE, centre % SIDE))
    place = torch.arange(SIDE).float()
    distance = ((place[:, None] - row).square() + (place - column).square()).sqrt()
    jitter = 0.7 + 0.6 * torch.rand(batch, count, 1, 1)
    radius = (least + (most - least) * severity[:, None]) * jitter
    drawn = torch.rand(batch, count, 1, 1) < severity[:, None]
    drawn[:, 0] = True
    return ((radius - distance + 0.5).clamp(0, 1) * drawn).amax(dim=1)


def _square(ink: Tensor, severity: Tensor) -> Tensor:
    """Masks [B, 28, 28] of a square of 5 to 13 pixels around a point with ink."""
    centre = torch.multinomial(ink.flatten(1) + 1e-6, 1)[..., None]
    place = torch.arange(SIDE)
    half = 2.5 + 4 * severity
    tall = (place[:, None] - centre // SIDE).abs() < half
    wide = (place - centre % SIDE).abs() < half
    return (tall & wide).float()
