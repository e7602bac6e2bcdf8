"""One reward made of several, each of which is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError, ShapeError

Tensor = torch.Tensor
Reward = Callable[..., Any]


def combine(
    rewards: Mapping[str, Reward] | Sequence[Reward] | Reward,
    *,
    names: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    rule: Callable[[dict[str, Tensor]], Tensor] | None = None,
    tau: float | None = None,
) -> Combined:
    """Make one reward of several components; `result.components` holds each of the samples'.

    The combined reward is, with components r_c,

        by default             sum_c w_c r_c
        c has a threshold h    its term is min(w_c (r_c - h), 0): nothing while r_c is on the good
                               side, above h for w_c > 0 and below it for w_c < 0, and w_c per unit
                               of what is missing beyond
        rule                   rule({name: r_c})
        tau                    the mean of the worst tau share of the components, for an ensemble

    A threshold is a price, not a wall: the reward stays finite, so every method keeps its law, and
    states whose prediction still misses it, as early ones do, are told which way is better. The
    odds of a miss by d fall by exp(-w_c d / alpha). For a wall, let `rule` return -inf and sample
    with on_invalid="reject"; then something has to satisfy it.

    Args:
        rewards: {name: callable(samples [B, ...]) -> [B]}; or a sequence of such callables, named
            member_0, member_1, ...; or one callable that returns [B, C], with names=.
        names: of the C columns of a vector reward.
        weights: by name; 1 where not given, 0 only reports the component.
        thresholds: by name, in units of the component.
        rule: from the components, [B] float64 each, to [B].   tau: in (0, 1].

    Returns:
        a reward with `.components(samples)`. It has a method `soft` if every component has, needs
        conditioning if one does, and is differentiable where they are.

    Raises:
        ArgumentError: unknown or repeated names, weights that are not finite, more than one way of
            combining, tau out of range.   DtypeError: not callable.
    """
    return Combined(
        *_named(rewards, names),
        vector=names is not None,
        weights=weights,
        thresholds=thresholds,
        rule=rule,
        tau=tau,
    )


class Combined(torch.nn.Module):
    """What `combine` returns. A module, so that networks among the components run in eval mode.

    Attributes:
        names: of the components.   vector: one function returns them all, [B, C].
        deterministic, needs_cond: as rewards have them.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        functions: tuple[Reward, ...],
        *,
        vector: bool,
        weights: Mapping[str, float] | None,
        thresholds: Mapping[str, float] | None,
        rule: Callable[[dict[str, Tensor]], Tensor] | None,
        tau: float | None,
    ) -> None:
        super().__init__()
        self.names = names
        self._functions = functions
        self.vector = vector
        self._networks = torch.nn.ModuleList(f for f in functions if isinstance(f, torch.nn.Module))
        summed = weights is not None or thresholds is not None
        if summed + (rule is not None) + (tau is not None) > 1:
            raise ArgumentError(
                "combine: weights and thresholds make a sum, rule and tau are other ways to "
                "combine; give one of the three"
            )
        if rule is not None and not callable(rule):
            raise DtypeError(f"combine: rule must be callable, got {type(rule).__name__}")
        if tau is not None and not 0 < tau <= 1:
            raise ArgumentError(
                f"combine: tau must be a share in (0, 1] (the worst components), got {tau}"
            )
        given = _checked("weights", weights, names)
        self._weights = [given.get(name, 1.0) for name in names]
        self._limits = _checked("thresholds", thresholds, names)
        for name, weight in zip(names, self._weights, strict=True):
            if weight == 0 and name in self._limits:
                raise ArgumentError(
                    f"combine: the threshold of {name!r} does nothing at weight 0; give it a weight"
                )
        if not any(self._weights):
            raise ArgumentError("combine: all weights are 0, so nothing is left to guide by")
        self._rule = rule
        self._tau = tau
        self.__name__ = f"combine({', '.join(names)})"
        self.deterministic = all(getattr(f, "deterministic", True) for f in functions)
        self.needs_cond = any(getattr(f, "needs_cond", False) for f in functions)
        if all(callable(getattr(f, "soft", None)) for f in functions):
            self.soft = self._soft

    def forward(self, samples: Tensor, **cond: Tensor) -> Tensor:
        """The combined reward [B] float64 of samples [B, ...]."""
        return self._combined(self._parts(self._functions, samples, cond, everything=False))

    def components(self, samples: Tensor, **cond: Tensor) -> dict[str, Tensor]:
        """The components of samples [B, ...], {name: [B] float64}."""
        return self._parts(self._functions, samples, cond, everything=True)

    def __repr__(self) -> str:
        return self.__name__

    def _soft(self, probs: Tensor) -> Tensor:
        """The combined reward [B] float64 of token probabilities [B, L, V]."""
        soft = tuple(f.soft for f in self._functions)  # type: ignore[attr-defined]
        return self._combined(self._parts(soft, probs, {}, everything=False))

    def _parts(
        self,
        functions: tuple[Reward, ...],
        samples: Tensor,
        cond: dict[str, Tensor],
        *,
        everything: bool,
    ) -> dict[str, Tensor]:
        """Components [B] float64 by name; unless `everything`, without those of weight 0."""
        device, rows = samples.device, len(samples)
        if self.vector:
            label = f"the reward of {len(self.names)} names"
            found = _numbers(_call(functions[0], samples, cond), label, [rows, len(self.names)])
            return dict(zip(self.names, found.to(device).unbind(1), strict=True))
        return {
            name: _numbers(_call(function, samples, cond), f"component {name!r}", [rows]).to(device)
            for name, function, weight in zip(self.names, functions, self._weights, strict=True)
            if weight != 0 or everything
        }

    def _combined(self, parts: dict[str, Tensor]) -> Tensor:
        if self._rule is not None:
            found = self._rule(parts)
            return _numbers(found, "rule", [len(next(iter(parts.values())))])
        if self._tau is not None:
            return ops.soft_value(
                torch.stack([*parts.values()], 1), 0.0, kind="cvar", tau=self._tau
            )
        total: Tensor | None = None
        for name, weight in zip(self.names, self._weights, strict=True):
            if weight == 0:
                continue
            term = weight * (parts[name] - self._limits.get(name, 0.0))
            term = term.clamp_max(0) if name in self._limits else term
            total = term if total is None else total + term
        assert total is not None
        return total


def _named(
    rewards: Mapping[str, Reward] | Sequence[Reward] | Reward, names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[Reward, ...]]:
    """Names, and the functions behind them: as many, or one that returns a column for each."""
    functions: tuple[Reward, ...]
    if callable(rewards):
        if names is None or isinstance(names, str) or not names:
            raise ArgumentError(
                "combine: a reward that returns [B, C] needs names=, one for each of its C columns"
            )
        labels, functions = tuple(names), (rewards,)
    elif names is not None:
        raise ArgumentError(
            "combine: names= belongs to a single reward that returns [B, C]; rewards of several "
            "functions are named by the keys of {name: reward}"
        )
    elif isinstance(rewards, Mapping):
        labels, functions = tuple(rewards), tuple(rewards.values())
    elif isinstance(rewards, Sequence):
        functions = tuple(rewards)
        labels = tuple(f"member_{number}" for number in range(len(functions)))
    else:
        raise DtypeError(
            "combine: rewards must be {name: reward}, a sequence of rewards, or one reward with "
            f"names=, got {type(rewards).__name__}"
        )
    if not labels:
        raise ArgumentError("combine: there must be at least one reward, got none")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise DtypeError(f"combine: names must be non-empty strings, got {label!r}")
    if len(set(labels)) < len(labels):
        raise ArgumentError(f"combine: names must differ from one another, got {list(labels)}")
    for label, function in zip(labels, functions, strict=False):
        if not callable(function):
            raise DtypeError(
                f"combine: component {label!r} must be callable, got {type(function).__name__}"
            )
    return labels, functions


def _checked(
    argument: str, given: Mapping[str, float] | None, names: tuple[str, ...]
) -> dict[str, float]:
    """Numbers by component, finite, under known names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DtypeError(
            f"combine: {argument} must be a dict from names to numbers, got {type(given).__name__}"
        )
    for name, number in given.items():
        if name not in names:
            raise ArgumentError(
                f"combine: {argument} names {name!r}, which is no component; there are "
                f"{', '.join(map(repr, names))}"
            )
        if not math.isfinite(number):
            raise ArgumentError(f"combine: {argument}[{name!r}] must be finite, got {number}")
    return {name: float(number) for name, number in given.items()}


def _call(function: Reward, samples: Tensor, cond: dict[str, Tensor]) -> Any:
    return function(samples, **(cond if getattr(function, "needs_cond", False) else {}))


def _numbers(found: Any, label: str, due: list[int]) -> Tensor:
    """What a function returned as float64 of shape `due`, with its gradient, or an error."""
    if not isinstance(found, torch.Tensor):
        try:
            found = torch.from_numpy(np.asarray(found, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise DtypeError(
                f"combine: {label} must return numbers {due} (tensor, array or list), got "
                f"{type(found).__name__}"
            ) from error
    if found.dtype == torch.bool or found.is_complex():
        raise DtypeError(f"combine: {label} must return real numbers, got {found.dtype}")
    if list(found.shape) != due:
        hint = "; drop the last dimension with .squeeze(-1)" if found.shape == (*due, 1) else ""
        raise ShapeError(f"combine: {label} must return {due}, got {list(found.shape)}{hint}")
    return found.double()
