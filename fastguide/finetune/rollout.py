"""Rollouts without gradients, and the buffer that keeps what objectives read.

No noise is stored: a rollout is a pure function of the networks, its key and the chain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fastguide.diffusion import Batch
from fastguide.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from fastguide.finetune.laws import Laws

Tensor = torch.Tensor


@dataclass
class Buffer:
    """N paths of T steps.

    Attributes:
        key: of the stream they were drawn from.   chains: [N] int64, global numbers.
        states: [N, T + 1, ...], the last one the clean sample.
        log_prob, log_reference: [N, T] float64 of the steps taken, under the policy and the
            reference; what was not asked for is None.
        kl: [N, T] float64 divergence of the policy from the reference at each state.
        on_policy: [N] bool, paths that were drawn from the policy.
        reward: [N] float64.   cond: rows [N, ...] of conditioning.
        extra: what a method derives, each with leading dimension N.
    """

    key: int
    chains: Tensor
    states: Tensor
    log_prob: Tensor | None
    log_reference: Tensor | None
    kl: Tensor | None
    on_policy: Tensor
    cond: dict[str, Tensor]
    reward: Tensor = field(default_factory=lambda: torch.zeros(0))
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chains)

    @property
    def samples(self) -> Tensor:
        """[N, ...] clean samples."""
        return self.states[:, -1]

    def tensors(self) -> dict[str, Tensor]:
        """Everything with leading dimension N, by name."""
        named = {name: value for name, value in vars(self).items() if name not in _NESTED}
        named = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        for group in _NESTED:
            named |= {f"{group}.{name}": value for name, value in getattr(self, group).items()}
        return named

    @staticmethod
    def of(key: int, tensors: dict[str, Tensor]) -> Buffer:
        """The buffer of `tensors()`."""
        fields: dict[str, Any] = {"log_prob": None, "log_reference": None, "kl": None}
        fields |= {group: {} for group in _NESTED}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            if rest:
                fields[group][rest] = value
            else:
                fields[name] = value
        return Buffer(key=key, **fields)

    def take(self, index: Tensor) -> Buffer:
        """Paths `index` [S]."""
        return Buffer.of(self.key, {name: value[index] for name, value in self.tensors().items()})

    @staticmethod
    def joined(parts: list[Buffer]) -> Buffer:
        """Paths of several buffers, with what all of them have."""
        named = [part.tensors() for part in parts]
        common = [name for name in named[0] if all(name in tensors for tensors in named)]
        return Buffer.of(
            parts[0].key, {name: torch.cat([tensors[name] for tensors in named]) for name in common}
        )


_NESTED = ("cond", "extra")


def condition_rows(cond: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Conditioning tensors [1 or size, ...] as [size, ...]."""
    for name, value in cond.items():
        if len(value) not in (1, size):
            raise ArgumentError(
                f"cond[{name!r}] must have 1 or batch_size={size} rows, got {len(value)}"
            )
    return {name: value.expand(size, *value.shape[1:]) for name, value in cond.items()}


@torch.no_grad()
def roll(
    policy: Laws | None,
    reference: Laws | None,
    key: int,
    chains: Tensor,
    *,
    from_reference: Tensor | None = None,
    prompt: Tensor | None = None,
    cond: dict[str, Tensor] | None = None,
    max_rows: int | None = None,
) -> Buffer:
    """Draw one path for each of `chains` [N].

    Args:
        policy: drawn from; None: the reference is.   reference: for log-probabilities and
            divergences, None where they are not needed.
        key: seed of the stream.   from_reference: [N] bool, paths drawn from the reference instead.
        prompt: [L] or [N, L] of a masked chain.   cond: rows [N, ...] of conditioning.
        max_rows: most paths at a time.
    """
    if max_rows is not None and len(chains) > max_rows:
        parts = torch.arange(len(chains), device=chains.device).split(max_rows)
        return Buffer.joined(
            [
                roll(
                    policy,
                    reference,
                    key,
                    chains[part],
                    from_reference=None if from_reference is None else from_reference[part],
                    prompt=prompt if prompt is None or prompt.dim() == 1 else prompt[part],
                    cond={name: rows[part] for name, rows in (cond or {}).items()},
                )
                for part in parts
            ]
        )
    behaviour = reference if policy is None else policy
    assert behaviour is not None
    cond = cond or {}
    batch = behaviour.diffusion.start(chains, prompt, key)
    states, taken, known, divergence = [batch.x], [], [], []
    for number in range(len(behaviour)):
        index = torch.full_like(chains, number)
        output = behaviour.output(batch.x, index, cond)
        law = behaviour.law(batch.x, output, index)
        following = behaviour.propose(batch, output, number, key, chains)
        if policy is not None and reference is not None:
            expected = reference.output(batch.x, index, cond)
            natural = reference.law(batch.x, expected, index)
            if from_reference is not None:
                other = reference.propose(batch, expected, number, key, chains)
                following = _where(from_reference, other, following)
            known.append(natural.log_prob(following.x))
            divergence.append(law.kl(natural))
        taken.append(law.log_prob(following.x))
        states.append(following.x)
        batch = following
    log_prob = torch.stack(taken, dim=1)
    return Buffer(
        key=key,
        chains=chains,
        states=torch.stack(states, dim=1),
        log_prob=log_prob if policy is not None else None,
        log_reference=torch.stack(known, dim=1) if known else log_prob if policy is None else None,
        kl=torch.stack(divergence, dim=1) if divergence else None,
        on_policy=torch.full_like(chains, policy is not None, dtype=torch.bool)
        if from_reference is None
        else ~from_reference,
        cond=cond,
    )


def _where(chosen: Tensor, first: Batch, second: Batch) -> Batch:
    """Rows of `first` where `chosen` [N], else of `second`."""
    column = chosen.view(-1, *[1] * (first.x.dim() - 1))
    keys = None
    if first.keys is not None and second.keys is not None:
        keys = first.keys.where(chosen[:, None], second.keys)
    return Batch(first.x.where(column, second.x), keys)


@torch.no_grad()
def scores(
    function: Any,
    label: str,
    inputs: tuple[Tensor, ...],
    cond: dict[str, Tensor],
    on_invalid: str,
) -> Tensor:
    """Checked numbers [N] float64 of samples, or of states and times; cond goes where it is needed.

    Raises:
        ShapeError, DtypeError: the function returned something other than [N] numbers.
        NonFiniteError: a number is NaN or infinite and on_invalid="raise", or all are. With
            "reject" it is replaced by the lowest of the others.
    """
    samples = inputs[0]
    found = function(*inputs, **(cond if getattr(function, "needs_cond", False) else {}))
    try:
        found = torch.as_tensor(found, device=samples.device).detach().double()
    except (TypeError, ValueError) as error:
        raise DtypeError(
            f"{label} must return numbers [{len(samples)}], got {type(found).__name__}"
        ) from error
    if found.shape != (len(samples),):
        raise ShapeError(
            f"{label} must return one number per sample, [{len(samples)}], got {list(found.shape)}"
        )
    good = found.isfinite()
    if bool(good.all()):
        return found
    if on_invalid == "raise" or not bool(good.any()):
        row = int((~good).nonzero()[0, 0])
        raise NonFiniteError(
            f"{label} returned {found[row].item()} for sample {row} of {len(samples)}; fix it for "
            "such inputs, or give on_invalid='reject' to count them as the worst of the batch"
        )
    return found.where(good, found[good].min())
