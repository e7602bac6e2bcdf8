"""TC-A: a masked chain small enough to enumerate, and the exact laws of guided samplers on it.

V=2, mask=2, L=3: 27 states, of which 8 are clean. The denoiser is exact for a data law, so every
law below is a finite sum or a one-dimensional integral.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

import fastguide as fg

MASK, LENGTH, STEPS = 2, 3, 4
STATES = list(itertools.product(range(3), repeat=LENGTH))
INDEX = {state: i for i, state in enumerate(STATES)}
CLEAN = list(itertools.product(range(2), repeat=LENGTH))
DATA = np.array([1 + i % 5 for i in range(8)], dtype=float)
DATA /= DATA.sum()
REWARD = np.array([i - 0.5 * j + 1.5 * (i == k) for i, j, k in CLEAN])
_GRID = np.linspace(1, 1e-5, STEPS + 1)
RHO = (_GRID[:-1] - _GRID[1:]) / _GRID[:-1]


def _token_probs() -> np.ndarray:
    """p_l(k | x) for each state x: the data law given the revealed tokens, [27, 3, 2]."""
    table = np.full((27, LENGTH, 2), 0.5)
    for s, state in enumerate(STATES):
        fits = np.array(
            [all(x in (MASK, y) for x, y in zip(state, clean, strict=True)) for clean in CLEAN]
        )
        for site in range(LENGTH):
            mass = [DATA[fits & (np.array(CLEAN)[:, site] == k)].sum() for k in range(2)]
            table[s, site] = np.array(mass) / sum(mass)
    return table


PROBS = _token_probs()
LOGITS = torch.tensor(np.log(np.maximum(PROBS, 1e-300)))


def state_index(x: torch.Tensor) -> torch.Tensor:
    """[B, 3] tokens -> [B] row in STATES."""
    return x[:, 0] * 9 + x[:, 1] * 3 + x[:, 2]


def clean_index(x: torch.Tensor) -> torch.Tensor:
    """[B, 3] clean tokens -> [B] row in CLEAN."""
    return x[:, 0] * 4 + x[:, 1] * 2 + x[:, 2]


def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The exact denoiser, float64."""
    return LOGITS[state_index(x)]


def reward(x: torch.Tensor) -> torch.Tensor:
    """r = i - .5 j + 1.5 [i = k]."""
    return torch.tensor(REWARD)[clean_index(x)]


def diffusion(**options) -> fg.MaskedDiffusion:
    """The TC-A chain."""
    return fg.MaskedDiffusion(denoiser, LENGTH, 2, **options)


def kernel(rho: float) -> np.ndarray:
    """Transition matrix [27, 27] of one step that reveals each masked site with chance rho."""
    matrix = np.zeros((27, 27))
    for s, state in enumerate(STATES):
        for target in itertools.product(range(3), repeat=LENGTH):
            p = 1.0
            for site, (a, b) in enumerate(zip(state, target, strict=True)):
                if a != MASK:
                    p *= float(a == b)
                elif b == MASK:
                    p *= 1 - rho
                else:
                    p *= rho * PROBS[s, site, b]
            matrix[s, INDEX[target]] = p
    return matrix


def mode_kernel() -> np.ndarray:
    """Transition matrix [27, 27] of a fill by the most likely token per site."""
    matrix = np.zeros((27, 27))
    for s, state in enumerate(STATES):
        x = (int(PROBS[s, site].argmax()) if a == MASK else a for site, a in enumerate(state))
        matrix[s, INDEX[tuple(x)]] = 1
    return matrix


KERNELS = [*(kernel(rho) for rho in RHO), kernel(1.0)]


def terminal_reward() -> np.ndarray:
    """r on the 27 states (0 where masked: never read there)."""
    values = np.zeros(27)
    for clean, r in zip(CLEAN, REWARD, strict=True):
        values[INDEX[clean]] = r
    return values


def exact_values(alpha: float) -> list[np.ndarray]:
    """Soft values v of the states *before* each transition 0..STEPS and, last, of clean ones."""
    values = [terminal_reward()]
    for step in reversed(range(STEPS + 1)):
        values.append(alpha * np.log(KERNELS[step] @ np.exp(values[-1] / alpha)))
    return values[::-1]


def mean_values() -> list[np.ndarray]:
    """E[r | x] of the states before each transition, and of clean ones."""
    values = [terminal_reward()]
    for step in reversed(range(STEPS + 1)):
        values.append(KERNELS[step] @ values[-1])
    return values[::-1]


def mode_values() -> list[np.ndarray]:
    """Posterior-mean values: the reward of each state with its masks filled by the mode."""
    filled = np.zeros(27)
    for s, state in enumerate(STATES):
        x = tuple(int(PROBS[s, site].argmax()) if a == MASK else a for site, a in enumerate(state))
        filled[s] = REWARD[CLEAN.index(x)]
    return [filled] * (STEPS + 1) + [terminal_reward()]


def softmax_kernel(p: np.ndarray, values: np.ndarray, alpha: float, num: int) -> np.ndarray:
    """Exact law K_M of one state chosen among M i.i.d. candidates by exp(value / alpha)."""
    w = np.exp((values - values.max()) / alpha)
    # z = e^u: trapezoidal sums converge exponentially on the whole line
    u = np.linspace(-40, 40, 8001)
    z = np.exp(u)
    decay = np.exp(-z[:, None] * w[None, :])
    phi = decay @ p
    integrand = decay * (phi ** (num - 1) * z)[:, None]
    return num * p * w * integrand.sum(0) * (u[1] - u[0])


def argmax_kernel(p: np.ndarray, values: np.ndarray, num: int) -> np.ndarray:
    """Exact law of the first best of M i.i.d. candidates."""
    law = np.zeros_like(p)
    for level in np.unique(values[p > 0]):
        at = (values == level) & (p > 0)
        below = p[(values < level) & (p > 0)].sum()
        mass = (below + p[at].sum()) ** num - below**num
        law[at] = mass * p[at] / p[at].sum()
    return law


def chosen_kernel(p: np.ndarray, values: np.ndarray, alpha: float, num: int) -> np.ndarray:
    """The law of the next state for alpha >= 0, normalised against quadrature error."""
    if num == 1:
        return p
    law = argmax_kernel(p, values, num) if alpha == 0 else softmax_kernel(p, values, alpha, num)
    return law / law.sum()


def output_law(values: list[np.ndarray], alpha: float, num: int) -> np.ndarray:
    """Exact law of SVDD's output over the 8 clean states, for M = num candidates."""
    law = np.zeros(27)
    law[INDEX[(MASK,) * 3]] = 1
    for step in range(STEPS + 1):
        nxt = np.zeros(27)
        for s in np.flatnonzero(law > 0):
            nxt += law[s] * chosen_kernel(KERNELS[step][s], values[step + 1], alpha, num)
        law = nxt
    return np.array([law[INDEX[clean]] for clean in CLEAN])


def pretrained_law() -> np.ndarray:
    """p_pre over the 8 clean states."""
    return output_law(mode_values(), 1.0, 1)


def target_law(alpha: float) -> np.ndarray:
    """p_pre exp(r / alpha) / Z over the 8 clean states."""
    law = pretrained_law() * np.exp(REWARD / alpha)
    return law / law.sum()


class TableValue:
    """A value function read from a table per time: callable(x [B, 3], t [B]) -> [B]."""

    def __init__(self, values: list[np.ndarray]) -> None:
        # candidates of transition i stand at grid time i + 1
        self._tables = [torch.tensor(table) for table in values]

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        step = int(np.abs(_GRID - float(t[0])).argmin())
        return self._tables[step][state_index(x)]


def chi_square_p(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of Pearson's test on cells with expected count >= 5; the others are merged."""
    from scipy.stats import chi2

    expected = law * counts.sum()
    big = expected >= 5
    observed = np.append(counts[big], counts[~big].sum())
    due = np.append(expected[big], expected[~big].sum())
    if due[-1] <= 1e-9:
        if observed[-1] > 0:
            return 0.0
        observed, due = observed[:-1], due[:-1]
    if len(due) < 2:
        return 1.0
    return float(chi2.sf(((observed - due) ** 2 / due).sum(), len(due) - 1))


def counts_of(samples: torch.Tensor) -> np.ndarray:
    """How often each of the 8 clean states occurs, [8]."""
    return np.bincount(clean_index(samples).numpy(), minlength=8)
