"""Path consistency: what every path must satisfy at the optimum, as a squared residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastguide.errors import ArgumentError, DtypeError
from fastguide.finetune import parallel
from fastguide.finetune.method import Method
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer
from fastguide.finetune.sharing import outputs
from fastguide.finetune.update import Rate

Tensor = torch.Tensor

OBJECTIVES = ("vargrad", "tb", "subtb", "one_step")


class PathConsistency(Method):
    """Squared residuals of v(x_t) - v(x_s) + log(policy / reference)(x_t ... x_s) = 0.

    v is the soft value in nats, r / alpha at the clean sample. It holds on every path at the
    optimum, so paths of any sampler serve: there are no importance weights and nothing is clipped.

    Args:
        objective: "one_step": over single steps; "subtb": over all pairs of states, those n steps
            apart with weight decay^n; "tb": over whole paths, with a learned log-partition;
            "vargrad": over whole paths, with what the batch says it is, so that nothing else is
            learned.
        value: nn.Module (x [B, ...], t [B]) -> [B] in nats, trained in place. Needed by "one_step"
            and "subtb"; "tb" asks for it at initial states and learns one number without.
        features: callable (x_T [N, ...]) -> [N, F] that "vargrad" regresses the log-partition on,
            for chains whose initial state varies and matters; None: it is one number.
        decay: of "subtb".   value_learning_rate: of value or log-partition.
        reference_share: of the paths, drawn from the reference.
        replay: batches kept; each update also reads one of them, 0 keeps none.
        options: see `Method`. "residual" in the history is the mean square.

    Sources: Nachum et al. 2017 (PCL, arXiv 1702.08892); Malkin et al. 2022 (TB, arXiv 2201.13259);
    Madan et al. 2023 (SubTB, arXiv 2209.12782); Richter et al. 2020 (VarGrad, arXiv 2010.10436).
    """

    whole_paths = True

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        objective: str = "vargrad",
        value: nn.Module | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        decay: float = 0.9,
        value_learning_rate: Rate = 1e-2,
        reference_share: float = 0.5,
        replay: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if objective not in OBJECTIVES:
            raise ArgumentError(f"objective must be one of {list(OBJECTIVES)}, got {objective!r}")
        if objective in ("one_step", "subtb") and value is None:
            raise ArgumentError(
                f"objective={objective!r} needs value=, a network (x, t) -> [B] in nats; "
                "'vargrad' and 'tb' need none"
            )
        if value is not None and not isinstance(value, nn.Module):
            raise DtypeError(f"value must be an nn.Module or None, got {type(value).__name__}")
        if not 0 <= reference_share <= 1 or not 0 < decay <= 1 or replay < 0:
            raise ArgumentError(
                "reference_share must lie in [0, 1], decay in (0, 1] and replay be at least 0, "
                f"got {reference_share}, {decay} and {replay}"
            )
        self.objective = objective
        self.value = value
        self.features = features
        self.decay = decay
        self.reference_share = reference_share
        self.replay = replay
        self._value_rate = value_learning_rate
        self._log_partition = nn.Parameter(torch.zeros((), device=diffusion.device))
        self._past: list[Buffer] = []
        self._fresh = False

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        own = ("objective", "decay", "reference_share", "replay")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def scheduled(self) -> bool:
        """The value has a rate of its own."""
        return super().scheduled() or callable(self._value_rate)

    def groups(self) -> list[tuple[dict[str, nn.Parameter], Rate]]:
        """The policy, and what stands for the value."""
        known: dict[str, nn.Parameter] = {}
        if self.value is not None:
            known = {f"value.{name}": p for name, p in self.value.named_parameters()}
        elif self.objective == "tb":
            known = {"log_partition": self._log_partition}
        return [*super().groups(), (known, self._value_rate)] if known else super().groups()

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """New paths, and an old batch where there are any."""
        fresh = super().collect(key, chains, share, start)
        self._fresh = not self._past
        joined = fresh
        if self._past:
            old = self._past[key % len(self._past)]
            joined = Buffer.joined([fresh, old])
        if self.replay:
            kept = fresh.take(torch.arange(len(fresh), device=chains.device))
            kept.on_policy = torch.zeros_like(fresh.on_policy)
            self._past = [*self._past, kept][-self.replay :]
        return joined

    @torch.no_grad()
    def prepare(self, buffer: Buffer) -> dict[str, float]:
        """For "vargrad": the log-partition of each path as the batch has it."""
        if self.objective != "vargrad":
            return {}
        if self._fresh:
            assert buffer.log_prob is not None
            assert buffer.log_reference is not None
            taken = ((buffer.log_prob - buffer.log_reference) * self.policy.random).sum(dim=1)
        else:
            paths = torch.arange(len(buffer), device=buffer.chains.device)
            count = max(1, (self.max_rows or len(buffer.states.flatten())) // len(self.policy))
            taken = torch.cat(
                [self._log_ratios(buffer, some).sum(1) for some in paths.split(count)]
            )
        self._fresh = False
        gap = parallel.gathered(buffer.reward / self.alpha - taken)
        if self.features is None:
            buffer.extra["baseline"] = gap.mean().expand(len(buffer))
        else:
            own = self.features(buffer.states[:, 0]).double()
            found = torch.linalg.lstsq(parallel.gathered(own), gap[:, None]).solution
            buffer.extra["baseline"] = (own @ found)[:, 0]
        return {}

    def _log_ratios(self, buffer: Buffer, paths: Tensor) -> Tensor:
        """log(policy / reference) of the steps of some paths, [P, T] float64."""
        length = len(self.policy)
        steps = torch.arange(length, device=paths.device).repeat(len(paths))
        part = Part(buffer, paths.repeat_interleave(length), steps)
        law = self.policy.law(part.x, outputs(self.policy, part), part.steps)
        assert buffer.log_reference is not None
        natural = buffer.log_reference[part.paths, part.steps]
        ratio = (law.log_prob(part.following) - natural).view(len(paths), length)
        return ratio * self.policy.random

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared residuals, summed over the paths."""
        buffer, length = part.buffer, len(self.policy)
        paths = part.paths[::length]
        log_ratio = self._log_ratios(buffer, paths)
        end = buffer.reward[paths] / self.alpha
        if self.objective == "vargrad":
            # the slope of the fitted log-partition is left out: its part of the gradient is 0
            loss = (end - log_ratio.sum(dim=1) - buffer.extra["baseline"][paths]).square()
        elif self.objective == "tb":
            start = self._log_partition.double()
            if self.value is not None:
                states = buffer.states[paths, 0]
                start = self.value(states, self.policy.time[part.steps[::length]]).double()
            loss = (start + log_ratio.sum(dim=1) - end).square()
        else:
            assert self.value is not None
            inner = self.value(part.x, self.policy.time[part.steps]).double().view(-1, length)
            value = torch.cat([inner, end[:, None]], dim=1)
            if self.objective == "one_step":
                loss = (value[:, :-1] - value[:, 1:] + log_ratio).square().mean(dim=1)
            else:
                loss = self._all_pairs(value, log_ratio)
        # every row of a path reports the path's residual
        return loss.sum(), {"residual": loss.detach().repeat_interleave(length)}

    def _all_pairs(self, value: Tensor, log_ratio: Tensor) -> Tensor:
        """Weighted mean over pairs of states of the squared residual between them, [P]."""
        height = value.clone()
        height[:, 1:] = value[:, 1:] - log_ratio.cumsum(dim=1)
        order = torch.arange(value.shape[1], device=value.device)
        apart = order - order[:, None]
        weight = torch.where(apart > 0, self.decay ** apart.double(), 0.0)
        gap = height[:, :, None] - height[:, None, :]
        return (weight / weight.sum() * gap.square()).sum(dim=(1, 2))

    def begin(self) -> None:
        """Forget the batches kept."""
        self._past = []

    def memory(self) -> dict[str, Any]:
        """The batches kept, those of all processes one after another."""
        past = [
            (old.key, {n: parallel.gathered(t) for n, t in old.tensors().items()})
            for old in self._past
        ]
        return {"past": past}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up this process's share of the batches."""
        (rank, size), at = parallel.world(), self._pretrained.device
        self._past = [
            Buffer.of(key, {name: rows.chunk(size)[rank].to(at) for name, rows in tensors.items()})
            for key, tensors in memory["past"]
        ]
