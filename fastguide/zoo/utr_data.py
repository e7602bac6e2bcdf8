"""The 5'UTR measurements: reading the table, grouping near-identical sequences, splitting.

Tokens are 0..3 for A, C, G, T (T stands for U). The public source is described in docs/data.md.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastguide.errors import ArgumentError

Tensor = torch.Tensor

LENGTH = 50
ALPHABET = "ACGT"
LIBRARIES = ("random", "human")
GROUP_KMER = 20
TEST_SHARE = 0.10
VALID_SHARE = 0.06

_CODE = np.full(256, 255, dtype=np.uint8)
_CODE[[ord(letter) for letter in ALPHABET]] = np.arange(len(ALPHABET))


def encode(sequences: Sequence[str]) -> Tensor:
    """Tokens [B, 50] int64 of sequences of 50 letters A, C, G, T.

    Raises:
        ArgumentError: one string instead of a list, another length, or another letter; names the
            sequence and the position.
    """
    if isinstance(sequences, str):
        raise ArgumentError("sequences must be a list of strings, got one string; give [sequence]")
    for row, sequence in enumerate(sequences):
        if len(sequence) != LENGTH:
            raise ArgumentError(
                f"sequences[{row}] has {len(sequence)} letters; the utr models read {LENGTH}: "
                "the nucleotides directly before the start codon"
            )
    # "replace" keeps one byte per letter, so positions in the message below are right
    letters = np.frombuffer("".join(sequences).encode("ascii", "replace"), dtype=np.uint8)
    tokens = _CODE[letters].reshape(-1, LENGTH)
    if (tokens == 255).any():
        row, site = (int(index) for index in np.argwhere(tokens == 255)[0])
        raise ArgumentError(
            f"sequences[{row}] has {sequences[row][site]!r} at position {site}; the letters are "
            f"{', '.join(ALPHABET)}, in capitals, with T for U"
        )
    return torch.from_numpy(tokens.astype(np.int64))


@dataclass(frozen=True)
class Measurements:
    """Rows of the table.

    Attributes:
        tokens: [N, 50] int64.   load: [N] float32, mean ribosome load (ribosomes per mRNA).
        library: [N] int64, index into LIBRARIES: 0 random, 1 human.
        group: [N] int64, smallest row index that is joined to this row by shared 20-mers.
        part: [N] unicode array: "test", "guide", "guide-valid", "judge" or "judge-valid".
        sha256: of the file the rows came from.
    """

    tokens: Tensor
    load: Tensor
    library: Tensor
    group: Tensor
    part: np.ndarray
    sha256: str

    def rows(self, *parts: str, library: str | None = None) -> Tensor:
        """Indices [n] int64 of the rows of `parts`, of one library or of both."""
        chosen = torch.from_numpy(np.isin(self.part, parts))
        if library is not None:
            chosen &= self.library == LIBRARIES.index(library)
        return chosen.nonzero()[:, 0]

    def count(self) -> dict[str, dict[str, int]]:
        """Rows per part and library, and groups per part."""
        table = {}
        for part in sorted(set(self.part.tolist())):
            table[part] = {name: len(self.rows(part, library=name)) for name in LIBRARIES}
            table[part]["groups"] = len(self.group[self.rows(part)].unique())
        return table


def read(path: Path) -> Measurements:
    """Read a CSV file (plain or gzip) with columns seq, rl, library, and split it.

    Raises:
        ArgumentError: the file is missing, lacks a column, or a row cannot be read; names it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"data: cannot read {path} ({error.strerror}); docs/data.md says where the public "
            "measurements come from and how the file is made"
        ) from error
    text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    table = csv.DictReader(text.decode("utf-8").splitlines())
    missing = {"seq", "rl", "library"} - set(table.fieldnames or ())
    if missing:
        raise ArgumentError(
            f"data: {path} has no column {', '.join(sorted(missing))}; it needs seq, rl, library"
        )
    sequences, load, library = [], [], []
    for line, row in enumerate(table, start=2):
        if row["library"] not in LIBRARIES:
            raise ArgumentError(
                f"data: {path} line {line} has library {row['library']!r}; it must be one of "
                f"{', '.join(LIBRARIES)}"
            )
        sequences.append(row["seq"])
        load.append(_number(row["rl"], f"{path} line {line}"))
        library.append(LIBRARIES.index(row["library"]))
    group = group_by_shared_kmers(sequences)
    return Measurements(
        tokens=encode(sequences),
        load=torch.tensor(load),
        library=torch.tensor(library),
        group=torch.tensor(group),
        part=assign_parts(sequences, group),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(f"data: {where} has rl {text!r}; it must be a finite number")
    return value


def group_by_shared_kmers(sequences: Sequence[str], k: int = GROUP_KMER) -> list[int]:
    """Connected components of sequences that share a k-mer, as the smallest row of each.

    Single-nucleotide variants and overlapping transcripts end in one group, so that no
    near-identical pair is divided between training and test.
    """
    parent = list(range(len(sequences)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[str, int] = {}
    for row, sequence in enumerate(sequences):
        for start in range(len(sequence) - k + 1):
            other = first_with.setdefault(sequence[start : start + k], row)
            if other != row:
                low, high = sorted((root(other), root(row)))
                parent[high] = low
    return [root(row) for row in range(len(sequences))]


def assign_parts(sequences: Sequence[str], group: Sequence[int]) -> np.ndarray:
    """Part of each row, by a hash of its group's first sequence in the alphabet.

    The order of rows does not matter, and a group is never divided. 10 % of the groups are the
    test part, 45 % each half; 6 % of a half validate. Shares are expectations.
    """
    name: dict[int, str] = {}
    for sequence, label in zip(sequences, group, strict=True):
        name[label] = min(sequence, name.get(label, sequence))
    part = {label: _part(sequence) for label, sequence in name.items()}
    return np.array([part[label] for label in group])


def _part(sequence: str) -> str:
    where = _unit_hash("part", sequence)
    if where < TEST_SHARE:
        return "test"
    half = "guide" if where < (1 + TEST_SHARE) / 2 else "judge"
    return f"{half}-valid" if _unit_hash("valid", sequence) < VALID_SHARE else half


def _unit_hash(tag: str, sequence: str) -> float:
    digest = hashlib.sha256(f"{tag}:{sequence}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
