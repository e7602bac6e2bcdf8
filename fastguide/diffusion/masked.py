"""Masked (absorbing) discrete diffusion: MDLM / SUBS.

A state is a row of tokens in which some sites hold the mask token. One step reveals each masked
site with probability rho and draws its token from the denoiser's softmax; revealed tokens never
change. Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524), equations 4-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import lazy_head, likelihood
from fastguide.diffusion.base import Batch, Outputs, Step
from fastguide.diffusion.conditioning import call_denoiser, check_guidance, device_of
from fastguide.diffusion.masked_shift import empty_proposal, propose_tilted
from fastguide.diffusion.relaxed import RelaxedTokens
from fastguide.diffusion.schedules import (
    Schedule,
    resolve_schedule,
    reveal_probabilities,
    time_grid,
)
from fastguide.errors import ArgumentError, DtypeError, ShapeError

Tensor = torch.Tensor


class MaskedDiffusion(RelaxedTokens):
    """A pre-trained masked diffusion over sequences of tokens.

    Args:
        denoiser: callable (x [B, L] int64, t [B] float32, **cond) -> logits [B, L, V] or
            [B, L, V + 1] (the mask column is ignored), any float dtype. Tokens are 0..V-1.
            With `head`: -> hidden states [B, L, ...].
        length: L, number of sites.   vocab_size: V.
        mask_token: id of the mask; default V. May be any id; its column gets -inf.
        forbidden_tokens: ids that are never drawn.
        schedule: "loglinear", "linear", "cosine", "geometric" or a callable a(t).
        time_conditioned: whether the denoiser reads t. False: it is given zeros, and outputs of
            equal states are shared across steps.
        temperature: divides the logits wherever tokens are drawn.
        final: how sites that are masked after the last step are filled: "sample" draws them (the
            chain keeps its law), "mode" takes the most likely token.
        null_cond: conditioning of the unconditional rows of classifier-free guidance, a dict with
            the keys of `cond`.   guidance_scale: 1 is plain conditional sampling.
        head: callable (hidden [S, ...]) -> logits [S, V] or [S, V + 1], each row by itself. It runs
            only at sites that some candidate reveals, and at masked sites for values that read the
            predicted x0; the samples are those of head(denoiser(x, t)). For large vocabularies.
        device: where states live; default: the denoiser's parameters' device, else CPU.

    Raises:
        ArgumentError: sizes below 1, ids out of range, unknown schedule or final.
    """

    prior_varies = False
    distinct = False

    def __init__(
        self,
        denoiser: Any,
        length: int,
        vocab_size: int,
        *,
        mask_token: int | None = None,
        forbidden_tokens: Sequence[int] = (),
        schedule: str | Schedule = "loglinear",
        time_conditioned: bool = False,
        temperature: float = 1.0,
        final: str = "sample",
        null_cond: dict[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        head: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(denoiser):
            raise DtypeError(f"denoiser must be callable, got {type(denoiser).__name__}")
        if head is not None and not callable(head):
            raise DtypeError(f"head must be callable or None, got {type(head).__name__}")
        if length < 1 or vocab_size < 1:
            raise ArgumentError(
                f"length and vocab_size must be at least 1, got {length} and {vocab_size}"
            )
        mask = vocab_size if mask_token is None else int(mask_token)
        if mask < 0:
            raise ArgumentError(f"mask_token must not be negative, got {mask_token}")
        forbidden = sorted({int(token) for token in forbidden_tokens} | {mask})
        forbidden = [token for token in forbidden if token < vocab_size]
        if any(token < 0 or token >= vocab_size for token in forbidden_tokens):
            raise ArgumentError(
                f"forbidden_tokens must lie in [0, {vocab_size}), got {list(forbidden_tokens)}"
            )
        if len(forbidden) == vocab_size:
            raise ArgumentError("forbidden_tokens leaves no token to draw; allow at least one")
        if not temperature > 0:
            raise ArgumentError(f"temperature must be positive, got {temperature}")
        if final not in ("sample", "mode"):
            raise ArgumentError(f"final must be 'sample' or 'mode', got {final!r}")
        check_guidance(null_cond, guidance_scale)
        self.denoiser = denoiser
        self.head = head
        self.length = length
        self.vocab_size = vocab_size
        self.mask_token = mask
        self.forbidden_tokens = tuple(forbidden)
        self.schedule = resolve_schedule(schedule)
        self.schedule_name = schedule if isinstance(schedule, str) else "callable"
        self.time_conditioned = time_conditioned
        self.temperature = float(temperature)
        self.final = final
        self.null_cond = null_cond
        self.guidance_scale = float(guidance_scale)
        self.device = device_of(denoiser) if device is None else torch.device(device)
        # kept there: a copy from the host at every call could not be captured into a graph
        self._forbidden = torch.tensor(self.forbidden_tokens, dtype=torch.int64, device=self.device)
        self.rows_per_state = 1 if guidance_scale == 1.0 else 2
        # hidden states of a guided pair are kept side by side: [L, 2, ...]
        width = vocab_size if head is None else lazy_head.hidden_width(head) * self.rows_per_state
        self.output_shape: tuple[int, ...] = (length, vocab_size if head is None else 0)
        self.row_bytes = 8 * length + 4 * length * width

    # -- the engine's view -------------------------------------------------------------------

    def steps(self, num_steps: int) -> list[Step]:
        """num_steps reveal transitions and one fill, as `Step` records with params (rho,)."""
        grid = time_grid(num_steps)
        rho = reveal_probabilities(self.schedule, grid)
        times = grid.tolist()
        reveal = [
            Step(i, times[i], times[i + 1], clean=False, varies=rho[i] > 0, params=(rho[i],))
            for i in range(num_steps)
        ]
        fill = Step(
            num_steps, times[-1], 0.0, clean=True, varies=self.final == "sample", params=(1.0,)
        )
        return [*reveal, fill]

    def start(
        self, chains: Tensor, prompt: Tensor | None, seed: int, candidates: Tensor | None = None
    ) -> Batch:
        """All-mask states, or `prompt` [L] or [N, L] with its mask tokens still to fill."""
        num_chains = chains.shape[0]
        if prompt is None:
            x = torch.full((num_chains, self.length), self.mask_token, device=self.device)
        else:
            x = self._check_prompt(prompt, num_chains)
        return Batch(x, ops.masked_keys(x))

    def batch(self, states: Tensor) -> Batch:
        """States [R, L] of tokens and masks to go on from."""
        x = self.check_tokens(states, "states", clean=False)
        return Batch(x, ops.masked_keys(x))

    def denoise(self, x: Tensor, time: float, cond: dict[str, Tensor]) -> Tensor:
        """`logits`, or with a head the hidden states, with every row at the same time."""
        t = torch.full((x.shape[0],), time, device=x.device)
        return self.logits(x, t, cond) if self.head is None else self._hidden(x, t, cond)

    def logits(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [B, L, V] of tokens x [B, L] at times t [B]; forbidden columns are -inf.

        Raises:
            ShapeError, DtypeError: the denoiser returned something else; says what was due.
        """
        if self.head is not None:
            return self._head_logits(self._hidden(x, t, cond).flatten(0, 1)).unflatten(0, x.shape)
        return self._finished(self._run(x, t, cond, self.denoiser), len(x))

    def needs_output(self, x: Tensor) -> Tensor:
        """[R] bool: rows of x [R, L] that hold a mask; no logit of the others is ever read."""
        return (x == self.mask_token).any(dim=-1)

    def invalid_outputs(self, x: Tensor, outputs: Tensor) -> Tensor:
        """[B] bool: rows with a masked site whose logits hold NaN or +inf, or are all -inf.

        With a head: rows with a hidden state of a masked site that is not finite.
        """
        if self.head is not None:
            wrong = ~outputs.flatten(2).isfinite().all(dim=-1)
            return (wrong & (x == self.mask_token)).any(dim=-1)
        return (~outputs.amax(dim=-1).isfinite() & (x == self.mask_token)).any(dim=-1)

    def propose(
        self,
        batch: Batch,
        outputs: Outputs,
        step: Step,
        *,
        seed: int,
        chains: Tensor,
        num_candidates: int,
        first_candidate: Tensor,
    ) -> tuple[Batch, Tensor]:
        """K successors of each row by `ops.masked_propose`; see `Diffusion.propose`."""
        assert batch.keys is not None
        if not step.varies and step.clean:
            x = self.predict_mode(batch, outputs)
            changed = (x != batch.x).sum(dim=-1, dtype=torch.int32)[:, None]
            return Batch(x, ops.masked_keys(x)), changed
        draw: dict[str, Any] = {
            "mask_token": self.mask_token,
            "rho": step.params[0],
            "seed": seed,
            "step": step.index,
            "num_candidates": num_candidates,
        }
        if self.head is None:
            tokens, keys, changed = ops.masked_propose(
                outputs.buffer,
                batch.x,
                batch.keys,
                index=outputs.slots,
                chains=chains,
                first_candidate=first_candidate,
                temperature=self.temperature,
                out=empty_proposal(batch.x, batch.keys, num_candidates),
                **draw,
            )
            return Batch(tokens.flatten(0, 1), keys.flatten(0, 1)), changed
        revealing = lazy_head.revealing_sites(
            batch.x, batch.keys, chains=chains, first_candidate=first_candidate, **draw
        )
        parts = []
        for rows in lazy_head.row_groups(revealing, self.vocab_size):
            logits, index = lazy_head.site_logits(self._head_logits, outputs[rows], revealing[rows])
            proposal = ops.masked_propose(
                logits,
                batch.x[rows],
                batch.keys[rows],
                index=index,
                chains=chains[rows],
                first_candidate=first_candidate[rows],
                temperature=self.temperature,
                **draw,
            )
            parts.append(proposal)
        tokens, keys, changed = (torch.cat(part) for part in zip(*parts, strict=True))
        return Batch(tokens.flatten(0, 1), keys.flatten(0, 1)), changed

    def propose_shifted(
        self,
        batch: Batch,
        outputs: Outputs,
        step: Step,
        *,
        shift: Tensor | None,
        seed: int,
        chains: Tensor,
        num_candidates: int,
        first_candidate: Tensor,
        weigh: bool = True,
    ) -> tuple[Batch, Tensor, Tensor | None]:
        """K successors of each row with tilted reveals; see `Diffusion.propose_shifted`."""
        draw: dict[str, Any] = {
            "seed": seed,
            "chains": chains,
            "num_candidates": num_candidates,
            "first_candidate": first_candidate,
        }
        if shift is None:
            return *self.propose(batch, outputs, step, **draw), None
        assert batch.keys is not None
        logits = outputs.buffer.index_select(0, outputs.slots)
        if self.head is not None:
            owner = torch.arange(len(logits), device=logits.device)
            sites = logits.flatten(0, 1), owner.repeat_interleave(self.length)
            logits = outputs.call_head(self._head_logits, *sites).unflatten(0, batch.x.shape)
        tokens, keys, changed, log_ratio = propose_tilted(
            logits,
            batch.x,
            batch.keys,
            shift,
            mask_token=self.mask_token,
            rho=step.params[0],
            temperature=self.temperature,
            step=step.index,
            weigh=weigh,
            **draw,
        )
        return Batch(tokens.flatten(0, 1), keys.flatten(0, 1)), changed, log_ratio

    def predict_mode(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Masks filled by the most likely token per site, [R, L] int64."""
        return self._predict(batch, outputs)

    def predict_samples(
        self, batch: Batch, outputs: Outputs, num_samples: int, seed: int
    ) -> Tensor:
        """Masks filled by draws from the softmax, [R, S, L] int64; keyed by the state itself."""
        return self._predict(batch, outputs, num_samples=num_samples, seed=seed)

    def _predict(self, batch: Batch, outputs: Outputs, **draw: Any) -> Tensor:
        def predict(logits: Tensor, index: Tensor, rows: slice) -> Tensor:
            return ops.masked_posterior(
                logits,
                batch.x[rows],
                mask_token=self.mask_token,
                index=index,
                keys=None if batch.keys is None else batch.keys[rows],
                temperature=self.temperature,
                **draw,
            )

        if self.head is None:
            return predict(outputs.buffer, outputs.slots, slice(None))
        masked = batch.x == self.mask_token
        parts = []
        for rows in lazy_head.row_groups(masked, self.vocab_size):
            logits, index = lazy_head.site_logits(self._head_logits, outputs[rows], masked[rows])
            parts.append(predict(logits, index, rows))
        return torch.cat(parts)

    def predict_soft(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Token probabilities [R, L, V]; sites that are not masked are one-hot."""
        known = batch.x != self.mask_token
        one_hot = torch.nn.functional.one_hot(batch.x.where(known, 0), self.vocab_size)
        if self.head is None:
            logits = outputs.buffer.index_select(0, outputs.slots)
            probs = (logits / self.temperature).softmax(dim=-1)
            return torch.where(known[..., None], one_hot.to(probs.dtype), probs)
        logits, index = lazy_head.site_logits(self._head_logits, outputs, ~known)
        probs = one_hot.to(logits.dtype)
        probs[~known] = (logits / self.temperature).softmax(dim=-1)[index[~known]]
        return probs

    def settings(self) -> dict[str, Any]:
        """What besides the denoiser determines the chain, for records and checkpoints."""
        return {
            "kind": "MaskedDiffusion",
            "length": self.length,
            "vocab_size": self.vocab_size,
            "mask_token": self.mask_token,
            "forbidden_tokens": list(self.forbidden_tokens),
            "schedule": self.schedule_name,
            "time_conditioned": self.time_conditioned,
            "temperature": self.temperature,
            "final": self.final,
            "guidance_scale": self.guidance_scale,
            "lazy_head": self.head is not None,
        }

    # -- likelihood and training -------------------------------------------------------------

    def elbo(
        self, x: Tensor, *, num_masks: int = 64, seed: int = 0, max_rows: int = 1024
    ) -> Tensor:
        """Lower bound of log p(x) under the continuous-time chain; see `likelihood.elbo`."""
        return likelihood.elbo(self, x, num_masks=num_masks, seed=seed, max_rows=max_rows)

    def loss(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """SUBS training loss of clean rows; see `likelihood.subs_loss`."""
        return likelihood.subs_loss(self, x, generator=generator)

    def log_prob(self, x_t: Tensor, x_s: Tensor, step: int, num_steps: int) -> Tensor:
        """Exact log-probability of one transition; see `likelihood.transition_log_prob`."""
        return likelihood.transition_log_prob(self, x_t, x_s, step, num_steps)

    # -- calling the model -------------------------------------------------------------------

    def _run(
        self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None, denoiser: Callable[..., Any]
    ) -> Any:
        """What the denoiser returns; a guided pair's conditional rows come first."""
        t = t.float() if self.time_conditioned else torch.zeros_like(t, dtype=torch.float32)
        null_cond = self.null_cond if self.rows_per_state == 2 else None
        return call_denoiser(denoiser, x, t, cond, null_cond)

    def _hidden(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
        """Hidden states [B, L, ...], or of a guided pair [B, L, 2, ...]."""
        rows = x.shape[0] * self.rows_per_state
        hidden = lazy_head.check_hidden(self._run(x, t, cond, self.denoiser), rows, self.length)
        return hidden if self.rows_per_state == 1 else torch.stack(hidden.chunk(2), dim=2)

    def _head_logits(self, hidden: Tensor) -> Tensor:
        """Logits [S, V] of hidden states [S, ...], or of guided pairs [S, 2, ...]."""
        assert self.head is not None
        if not len(hidden):
            return torch.zeros((0, self.vocab_size), device=hidden.device)
        if self.rows_per_state == 2:
            hidden = torch.cat([hidden[:, 0], hidden[:, 1]])
        logits = lazy_head.check_head_logits(self.head(hidden), hidden.shape[0], self.vocab_size)
        return self._allowed(self._real_tokens(logits))

    def _finished(self, logits: Any, rows: int) -> Tensor:
        """Logits [B, L, V] to draw from, of what the denoiser returned for `rows` states."""
        return self._allowed(self._check_logits(logits, rows * self.rows_per_state))

    def _allowed(self, logits: Tensor) -> Tensor:
        """Logits to draw from: guidance applied to the two halves, forbidden ones -inf."""
        if self.rows_per_state == 2:
            given, free = logits.chunk(2)
            # equal entries first: -inf on both sides would otherwise become NaN
            logits = given.where(given == free, free + self.guidance_scale * (given - free))
        if self.forbidden_tokens:
            logits = logits.index_fill(-1, self._forbidden.to(logits.device), float("-inf"))
        return logits

    def _real_tokens(self, logits: Tensor) -> Tensor:
        """Without a mask column, in a dtype the kernels take."""
        logits = logits[..., : self.vocab_size]
        return logits if logits.dtype == torch.float64 else logits.float()

    # -- checks ------------------------------------------------------------------------------

    def check_tokens(self, x: Tensor, name: str, *, clean: bool) -> Tensor:
        """Return x as [B, L] int64 on the device, or raise; `clean` forbids the mask token."""
        if not isinstance(x, torch.Tensor) or x.is_floating_point() or x.dtype == torch.bool:
            kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise DtypeError(f"{name} must be an integer tensor of token ids, got {kind}")
        if x.dim() != 2 or x.shape[1] != self.length:
            raise ShapeError(f"{name} must be [B, {self.length}], got {list(x.shape)}")
        x = x.to(device=self.device, dtype=torch.int64)
        legal = (x >= 0) & (x < self.vocab_size) & (x != self.mask_token)
        if not clean:
            legal |= x == self.mask_token
        if not bool(legal.all()):
            row, site = (~legal).nonzero()[0].tolist()
            raise ArgumentError(
                f"{name}[{row}, {site}] is {int(x[row, site])}; tokens are 0..{self.vocab_size - 1}"
                + ("" if clean else f" and the mask is {self.mask_token}")
            )
        return x

    def _check_prompt(self, prompt: Tensor, num_chains: int) -> Tensor:
        if isinstance(prompt, torch.Tensor) and prompt.dim() == 1:
            prompt = prompt.expand(num_chains, -1)
        x = self.check_tokens(prompt, "prompt", clean=False)
        if x.shape[0] != num_chains:
            raise ShapeError(
                f"prompt must be [{self.length}] or [num_samples, {self.length}]; got "
                f"{x.shape[0]} rows for {num_chains} chains"
            )
        return x.contiguous()

    def _check_logits(self, logits: Tensor, rows: int) -> Tensor:
        due = f"[{rows}, {self.length}, {self.vocab_size}] (or {self.vocab_size + 1} columns)"
        if not isinstance(logits, torch.Tensor):
            raise DtypeError(
                f"denoiser must return a tensor of logits {due}, got {type(logits).__name__}"
            )
        fits = logits.dim() == 3 and logits.shape[:2] == (rows, self.length)
        if not fits or logits.shape[2] not in (self.vocab_size, self.vocab_size + 1):
            raise ShapeError(f"denoiser must return logits {due}, got {list(logits.shape)}")
        if not logits.is_floating_point():
            raise DtypeError(f"denoiser must return floating-point logits, got {logits.dtype}")
        return self._real_tokens(logits)
