"""Model calls on rows of which many are equal: run each distinct row once, in pieces that fit.

A guided pipeline runs all candidates of an image as rows of one batch. Before the first choice, at
steps without noise and outside the window these are copies of one another; the denoiser, the
decoder and the safety checker then see one row each, and the results are handed back to all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastguide.errors import ArgumentError

Tensor = torch.Tensor

WITHOUT_ROWS = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "freqs_cis"})
"""Arguments whose first dimension counts positions, even where it happens to equal the rows."""

STATES = ("sample", "hidden_states", "x", "z", "clip_input")
"""Names of the argument that holds the batch: of a denoiser, a decoder, a safety checker."""


def map_rows(value: Any, rows: int, change: Callable[[Any], Any], name: str = "") -> Any:
    """`value` with `change` applied to everything in it that has one entry per row."""
    if name in WITHOUT_ROWS:
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        return change(value) if value.ndim > 0 and value.shape[0] == rows else value
    if isinstance(value, dict):
        return _remake(
            value, {key: map_rows(each, rows, change, str(key)) for key, each in value.items()}
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {key: map_rows(each, rows, change, key) for key, each in vars(value).items()}
        return dataclasses.replace(value, **fields)
    if isinstance(value, list) and len(value) == rows and not _holds_rows(value, rows):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(map_rows(each, rows, change, name) for each in value)
    return value


def _remake(output: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """A dictionary of the same type; a library's output class leaves out what is None."""
    if type(output) is dict:
        return entries
    blank = dict.fromkeys(getattr(output, "__dataclass_fields__", ()))
    return type(output)(**{**blank, **entries})


def _holds_rows(values: list[Any], rows: int) -> bool:
    """A list of as many batches as there are rows, rather than one entry per row."""
    return any(isinstance(v, torch.Tensor) and v.ndim > 1 and v.shape[0] == rows for v in values)


def take(value: Any, index: Tensor) -> Any:
    """Entries `index` [S] of a tensor, an array or a list."""
    if isinstance(value, torch.Tensor):
        return value[index.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[index.cpu().numpy()]
    return [value[i] for i in index.tolist()]


def entries(value: Any, rows: int, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in `value` that has one entry per row."""
    found: list[tuple[str, Any]] = []

    def note(label: str) -> Callable[[Any], Any]:
        def change(each: Any) -> Any:
            found.append((label, each))
            return each

        return change

    if isinstance(value, dict):
        for key, each in value.items():
            yield from entries(each, rows, str(key))
        return
    map_rows(value, rows, note(name), name)
    yield from found


def _equal(value: Any, index: Tensor) -> bool:
    """Whether every entry equals the one that `index` points it to."""
    copies = take(value, index)
    if isinstance(value, torch.Tensor):
        return torch.equal(value, copies)
    if isinstance(value, np.ndarray):
        return bool(np.array_equal(value, copies))
    return all(_same(a, b) for a, b in zip(value, copies, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a is b or a == b)


def num_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of a model call: those of its states."""
    for value in (*(kwargs[name] for name in STATES if name in kwargs), *args):
        if isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0:
            return int(value.shape[0])
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return len(value)
    raise ArgumentError(
        "the model was called without a batch of states as its first argument, 'sample' or "
        "'hidden_states', so its rows are not known; guide a pipeline that passes one of these"
    )


def blocks(source: Tensor, rows: int) -> Tensor | None:
    """`source` [R] repeated for every block of R among `rows`; None if they are not blocks."""
    size = len(source)
    if rows % size:
        return None
    starts = torch.arange(0, rows, size, device=source.device)
    return (source[None, :] + starts[:, None]).flatten()


def call_distinct(
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    source: Tensor,
    max_rows: int | None,
    executed: Callable[[int], None],
) -> Any:
    """Call a model on distinct rows only, at most `max_rows` at once, and hand results to all.

    Args:
        source: [R] the row that each of R rows is a copy of, itself if of none. Classifier-free
            guidance stacks several such blocks. Copies are compared before anything is left out.
        executed: told how many rows ran.
    """
    rows = num_rows(args, kwargs)
    first = blocks(source, rows)
    place = torch.arange(rows, device=source.device)
    if first is None or torch.equal(first, place) or not _are_copies(args, kwargs, rows, first):
        first = place
    kept, back = torch.unique(first, return_inverse=True)
    count = len(kept)
    executed(count)
    size = min(max_rows or count, count)
    if count == rows and size == rows:
        return forward(*args, **kwargs)
    parts = []
    for piece in kept.split(size):

        def pick(value: Any, piece: Tensor = piece) -> Any:
            return take(value, piece)

        parts.append(
            (
                len(piece),
                forward(
                    *(map_rows(value, rows, pick) for value in args),
                    **{name: map_rows(value, rows, pick, name) for name, value in kwargs.items()},
                ),
            )
        )
    joined = _join(parts)
    return joined if count == rows else map_rows(joined, count, lambda each: take(each, back))


def _are_copies(args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, first: Tensor) -> bool:
    return all(_equal(value, first) for _, value in _all_entries(args, kwargs, rows))


def _all_entries(
    args: tuple[Any, ...], kwargs: dict[str, Any], rows: int
) -> Iterator[tuple[str, Any]]:
    for value in args:
        yield from entries(value, rows)
    for name, value in kwargs.items():
        yield from entries(value, rows, name)


def _join(parts: list[tuple[int, Any]]) -> Any:
    """Outputs of consecutive pieces, each of a number of rows, as the output of them all."""
    (rows, first), *rest = parts
    if not rest:
        return first
    if isinstance(first, torch.Tensor):
        if first.ndim == 0 or first.shape[0] != rows:
            return first
        return torch.cat([each for _, each in parts])
    if isinstance(first, np.ndarray):
        return np.concatenate([each for _, each in parts])
    if isinstance(first, dict):
        return _remake(first, {key: _join([(n, each[key]) for n, each in parts]) for key in first})
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = {key: _join([(n, vars(each)[key]) for n, each in parts]) for key in vars(first)}
        return dataclasses.replace(first, **fields)
    if isinstance(first, list) and len(first) == rows and not _holds_rows(first, rows):
        return [item for _, each in parts for item in each]
    if isinstance(first, list | tuple):
        return type(first)(_join([(n, each[i]) for n, each in parts]) for i in range(len(first)))
    return first


def check_conditioning(
    args: tuple[Any, ...], kwargs: dict[str, Any], group: Tensor, states_too: bool
) -> None:
    """At the first call: the rows of one image must have the same conditioning.

    Args:
        group: [R] the first row of each row's image.   states_too: its states must be equal as
            well, because they were drawn so.
    Raises:
        ArgumentError: they differ, so that rows do not stand image by image.
    """
    rows = num_rows(args, kwargs)
    first = blocks(group, rows)
    if first is None:
        raise ArgumentError(
            f"the denoiser was called with {rows} rows where a multiple of {len(group)} is due; "
            "the pipeline does not repeat its inputs once per image, so it cannot be guided"
        )
    for position, value in enumerate(args):
        if (position > 0 or states_too) and not all(
            _equal(each, first) for _, each in entries(value, rows)
        ):
            raise _disorder(f"argument {position}")
    for name, value in kwargs.items():
        if not states_too and _follows_states(name):
            continue
        for label, each in entries(value, rows, name):
            if not _equal(each, first):
                raise _disorder(label)


def _follows_states(name: str) -> bool:
    """States, those of a second stream, and residuals of a side network."""
    other = name.endswith("hidden_states") and "encoder" not in name
    return name in STATES or other or "residual" in name


def _disorder(name: str) -> ArgumentError:
    return ArgumentError(
        f"the denoiser's {name} differs among the rows of one image: the pipeline does not repeat "
        "that input image by image; call the pipeline once for each prompt"
    )
