"""Argument checks shared by the ops. Each message names the argument, what came, and the fix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastguide.errors import ArgumentError, DtypeError, GradientError, NonFiniteError, ShapeError
from fastguide.reference.faults import FaultCode
from fastguide.rng import check_seed, check_step

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
SIGNED = 2**63


def signed_seed(seed: int) -> int:
    """The seed as the signed 64-bit integer that operator schemas carry."""
    seed = check_seed(seed)
    return seed - 2**64 if seed >= SIGNED else seed


def unsigned_seed(seed: int) -> int:
    """Inverse of `signed_seed`."""
    return seed & (2**64 - 1)


def counter(step: int, purpose: int) -> int:
    """Counter word c3 = step << 8 | purpose, after checking both."""
    if not 0 <= purpose < 256:
        raise ArgumentError(
            f"purpose must lie in [0, 256), got {purpose}; take one of fastguide.rng.Purpose"
        )
    return (check_step(step) << 8) | int(purpose)


def at_least(name: str, value: int, least: int) -> None:
    """`value` is an int >= `least`."""
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {value}")


def shape(name: str, tensor: torch.Tensor, due: Sequence[int | None], letters: str) -> None:
    """`tensor` has the shape `due` (None: any size); `letters` names it, for example "[N, L]"."""
    got = tensor.shape
    if len(got) == len(due):
        for size, wanted in zip(got, due, strict=True):
            if wanted is not None and size != wanted:
                break
        else:
            return
    sizes = ", ".join("any" if d is None else str(d) for d in due)
    raise ShapeError(f"{name} must have shape {letters} = [{sizes}], got {list(got)}")


def dtype(name: str, tensor: torch.Tensor, due: Sequence[torch.dtype]) -> None:
    """`tensor` has one of the dtypes `due`."""
    if tensor.dtype not in due:
        names = " or ".join(str(d).removeprefix("torch.") for d in due)
        fix = f"to(torch.{str(due[-1]).removeprefix('torch.')})"
        if tensor.dtype in HALVES and torch.float32 in due:
            fix = "float()"
        raise DtypeError(
            f"{name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}; "
            f"convert it with {name}.{fix}"
        )


def float_dtype(name: str, value: torch.dtype) -> None:
    """`value` is a dtype that the kernels compute with."""
    if value not in FLOATS:
        raise DtypeError(f"{name} must be torch.float32 or torch.float64, got {value}")


def integers(
    name: str, tensor: torch.Tensor, due: Sequence[int | None], letters: str
) -> torch.Tensor:
    """`tensor` is int64 of shape `due`; returned contiguous."""
    dtype(name, tensor, (torch.int64,))
    shape(name, tensor, due, letters)
    return tensor.contiguous()


def optional_integers(
    name: str, tensor: torch.Tensor | None, due: Sequence[int | None], letters: str
) -> torch.Tensor | None:
    """As `integers`, or None."""
    return None if tensor is None else integers(name, tensor, due, letters)


def same_device(op: str, first: torch.Tensor, **others: torch.Tensor | None) -> None:
    """All tensors live on one device."""
    device = first.device
    for name, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise ArgumentError(
                f"{op}: {name} is on {tensor.device} but the first input is on {first.device}; "
                "move them to one device"
            )


def no_gradient(op: str, **tensors: torch.Tensor | None) -> None:
    """No input requires grad: the op has no derivative, and silence would train nothing."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise GradientError(
                f"{op} has no gradient, but {name} requires one; pass {name}.detach() or call it "
                "under torch.no_grad()"
            )


def output(
    name: str,
    tensor: torch.Tensor,
    due: tuple[int, ...],
    due_dtype: torch.dtype,
    like: torch.Tensor,
) -> None:
    """An `out=` tensor that a kernel may write: exact shape, dtype, device, contiguous."""
    if tensor.dtype != due_dtype:
        raise DtypeError(f"out: {name} must be {due_dtype}, got {tensor.dtype}")
    if tensor.shape != due:
        raise ShapeError(f"out: {name} must have shape {list(due)}, got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ArgumentError(f"out: {name} must be contiguous, got strides {tensor.stride()}")
    if tensor.device != like.device:
        raise ArgumentError(
            f"out: {name} is on {tensor.device} but the inputs are on {like.device}"
        )


def site_logits(
    logits: torch.Tensor,
    index: torch.Tensor | None,
    num_rows: int,
    length: int,
    of_rows: str,
    of_sites: str,
) -> torch.Tensor | None:
    """`logits` is [U, L, V] with an index per row or None, or [S, V] with an index per site.

    Returns `index` contiguous.   of_rows, of_sites: letters of the shapes of the two indices.
    """
    dtype("logits", logits, FLOATS)
    if logits.dim() == 2:
        if index is None:
            raise ArgumentError(
                f"logits {list(logits.shape)} hold rows of single sites, so index {of_sites} must "
                "say which row belongs to which site; or give logits [U, L, V]"
            )
        index = integers("index", index, [num_rows, length], of_sites)
    else:
        rows = None if index is not None else num_rows
        shape("logits", logits, [rows, length, None], "[U, L, V]")
        index = optional_integers("index", index, [num_rows], of_rows)
    if logits.shape[-1] == 0:
        raise ArgumentError(f"logits must hold at least one token, got shape {list(logits.shape)}")
    return index


def temperature(value: float) -> None:
    """A positive finite softmax temperature."""
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(
            f"temperature must be positive and finite, got {value}; for the mode use "
            "masked_posterior with num_samples=0"
        )


_FAULTS = {
    FaultCode.INDEX: (
        ArgumentError,
        "{op}: index[{place}] = {value} is no row of logits; it must lie in [0, U)",
    ),
    FaultCode.TOKEN: (
        ArgumentError,
        "{op}: x[{row}, {column}] = {value} is neither mask_token nor a token in [0, V); "
        "logits must have one column per token",
    ),
    FaultCode.CHAIN: (
        ArgumentError,
        "{op}: chains[{row}] = {value} must lie in [0, 2**32); use another seed instead of a "
        "larger chain id",
    ),
    FaultCode.CANDIDATE: (
        ArgumentError,
        "{op}: row {row} has candidate or particle id {value}; ids must stay in [0, 2**32)",
    ),
    FaultCode.LOGIT: (
        NonFiniteError,
        "{op}: the logits of row {row} at site {column} hold NaN or +inf; check the denoiser "
        "(forbidden tokens get -inf, never NaN)",
    ),
    FaultCode.NO_TOKEN: (
        NonFiniteError,
        "{op}: every logit of row {row} at site {column} is -inf, so no token can be drawn; "
        "leave at least one token allowed",
    ),
    FaultCode.VALUE: (
        NonFiniteError,
        "{op}: row {row}, candidate {column}: values / alpha + log_ratio is NaN or +inf; check the "
        "value function (-inf rejects a candidate)",
    ),
    FaultCode.GATHER: (
        ArgumentError,
        "{op}: row {row}: a gather index of {value} is no row of its tensor",
    ),
    FaultCode.NO_WEIGHT: (
        NonFiniteError,
        "{op}: group {row} (chain {value}) has no finite weight at step {step}; every particle was "
        "rejected, so none can be an ancestor",
    ),
    FaultCode.SCALAR: (
        ArgumentError,
        "{op}: a scalar given as a device tensor is out of range (step {value}): step must lie in "
        "[0, 2**24), alpha must be finite and >= 0 (> 0 with log_ratio)",
    ),
}
# Where an op calls the same fault by another name.
_FAULTS_OF = {
    ("gaussian_ppo", FaultCode.SCALAR): (
        ArgumentError,
        "{op}: s[{row}] must be > 0: a step without noise has no density; leave such rows out",
    ),
    ("masked_ppo", FaultCode.TOKEN): (
        ArgumentError,
        "{op}: x or x_next holds {value} at [{row}, {column}], neither mask_token nor a token in "
        "[0, V); logits must have one column per token",
    ),
    ("subs_cross_entropy", FaultCode.TOKEN): (
        ArgumentError,
        "{op}: x or targets holds {value} at [{row}, {column}]; x must be mask_token or a token in "
        "[0, V), and a token where it is the mask has to be given by targets",
    ),
    ("gaussian_propose", FaultCode.INDEX): (
        ArgumentError,
        "{op}: index[{row}] = {value} is no row of output; it must lie in [0, U)",
    ),
    ("resample", FaultCode.VALUE): (
        NonFiniteError,
        "{op}: log_w of group {row}, particle {column} is NaN or +inf at step {step}; check the "
        "value function (-inf rejects a particle)",
    ),
}


def raise_fault(op: str, fault: tuple[int, int, int, int], step: int | None = None) -> None:
    """Turn (code, row, column, value) of a backend into the error it stands for."""
    code, row, column, value = fault
    error, text = _FAULTS_OF.get((op, FaultCode(code)), _FAULTS[FaultCode(code)])
    place = f"{row}, {column}" if column >= 0 else str(row)
    raise error(text.format(op=op, row=row, column=column, place=place, value=value, step=step))
