"""Chains whose fine-tuned optimum is known: G1 and G2 (Gaussian, affine policies), M1 (a table).

Laws of affine policies are evaluated by recursion and those of tables by enumeration, so nothing
here is sampled.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import nn

import fastguide as fg
from fastguide import ops
from fastguide.diffusion import Batch, Step
from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.diffusion.universal import Kernel, Level
from fastguide.rng import Purpose

ALPHA = 0.5

# -- G1 ------------------------------------------------------------------------------------------


class Shift(nn.Module):
    """(x, t) -> a_t x + c_t, zero at first."""

    def __init__(self, num_steps):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(num_steps + 1))
        self.c = nn.Parameter(torch.zeros(num_steps + 1))

    def forward(self, x, t):
        at = t.long()
        return self.a[at, None] * x + self.c[at, None]


class G1(GaussianChain):
    """Exact reverse chain of N(0, 1); abar falls in a line to `last`. The output shifts the mean.

    Levels are named by t = T ... 0. `dims` identical coordinates.
    """

    def __init__(self, num_steps=10, last=0.3, dims=1):
        super().__init__(
            Shift(num_steps),
            (dims,),
            prior_deviation=1.0,
            null_cond=None,
            guidance_scale=1.0,
            device=None,
        )
        self.abar = torch.linspace(1, last, num_steps + 1, dtype=torch.float64).tolist()

    def levels(self, num_steps):
        assert num_steps == len(self.abar) - 1
        return [
            Level(t, math.sqrt(self.abar[t]), math.sqrt(1 - self.abar[t]))
            for t in range(num_steps, -1, -1)
        ]

    def _kernel(self, before, after):
        a = before.alpha / after.alpha
        return Kernel(a, 1.0, math.sqrt(1 - a * a))

    def _clean(self, x, output, t):
        return output


def quadratic(x):
    return -0.5 * ((x - 2) ** 2).sum(dim=1)


def first(x):
    return x.sum(dim=1)


def start_of_g1(diffusion):
    """mean and variance of the initial state, and the KL of the steps that learned it."""
    mean, var, kl = 0.0, 1.0, 0.0
    learned = diffusion.learned_start
    if learned is not None:
        var, d = 0.0, learned.step_deviation
        for slope, offset in zip(learned.network.slope, learned.network.offset, strict=True):
            a, c = float(slope), float(offset)
            kl += 0.5 * (a**2 * (var + mean**2) + 2 * a * c * mean + c**2)
            mean, var = (1 + d * a) * mean + d * c, (1 + d * a) ** 2 * var + d * d
    return mean, var, kl


def law_of_g1(diffusion):
    """mean and variance of x0, and the path KL, of a (tuned) G1 with one coordinate."""
    shift = diffusion.denoiser
    mean, var, kl = start_of_g1(diffusion)
    num_steps = len(diffusion.abar) - 1
    natural = [move.params for move in GaussianChain.steps(diffusion, num_steps)]
    for move, (a, _, s) in zip(diffusion.steps(num_steps), natural, strict=True):
        t = int(move.time)
        slope, offset = float(shift.a[t].detach()), float(shift.c[t].detach())
        scale = (move.params[2] / s) ** 2
        square = slope**2 * (var + mean**2) + 2 * slope * offset * mean + offset**2
        kl += square / (2 * s * s) + 0.5 * (scale - 1 - math.log(scale))
        mean, var = (a + slope) * mean + offset, (a + slope) ** 2 * var + scale * s * s
    return mean, var, kl


def objective_of_g1(diffusion):
    """J of the quadratic reward."""
    mean, var, kl = law_of_g1(diffusion)
    return -0.5 * ((mean - 2) ** 2 + var) - ALPHA * kl


# -- M1 ------------------------------------------------------------------------------------------

LENGTH, VOCAB, MASK = 4, 3, 3
STATES = torch.tensor(list(itertools.product(range(4), repeat=LENGTH)))
CLEAN = torch.tensor(list(itertools.product(range(3), repeat=LENGTH)))
PLACE = torch.tensor([64, 16, 4, 1])
NATURAL = (1 + (CLEAN * torch.arange(1, 5)).sum(dim=1).double()).cos().softmax(dim=0)


def reward(x):
    """#{x_i = 2} - |x_0 - x_3| / 2."""
    return (x == 2).sum(dim=1) - 0.5 * (x[:, 0] - x[:, 3]).abs()


class MultilinearReward:
    """The reward, extended to probabilities by its expectation under independent sites."""

    def __call__(self, x):
        return reward(x)

    def soft(self, probs):
        gap = (torch.arange(3)[:, None] - torch.arange(3)).abs().to(probs.dtype)
        apart = torch.einsum("bi,ij,bj->b", probs[:, 0], gap, probs[:, 3])
        return probs[..., 2].sum(dim=1) - 0.5 * apart


TILTED = (NATURAL.log() + reward(CLEAN) / ALPHA).softmax(dim=0)
REWARD = reward(CLEAN).double()
FITS = ((STATES[:, None] == CLEAN) | (STATES[:, None] == MASK)).all(dim=-1)


def soft_values():
    """Exact soft value [256] of every state, reward units."""
    weight = FITS * NATURAL
    terms = (weight / weight.sum(dim=1, keepdim=True)).log() + REWARD / ALPHA
    return ALPHA * terms.logsumexp(dim=1)


def conditionals():
    """log p(token at site | state) under the natural law, [256, 4, 3]."""
    weight = FITS * NATURAL
    one_hot = torch.nn.functional.one_hot(CLEAN, VOCAB).double()
    mass = torch.einsum("sx,xlv->slv", weight, one_hot) / weight.sum(dim=1)[:, None, None]
    return mass.clamp_min(1e-30).log()


class Table(nn.Module):
    """A row of free logits [4, 3] for each of the 256 states."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.float())

    def forward(self, x, t):
        return self.logits[(x * PLACE).sum(dim=1)]

    def soft(self, onehot, t):
        weight = torch.ones(len(onehot), 1)
        for site in range(LENGTH):
            weight = (weight[:, :, None] * onehot[:, site, None, :]).flatten(1)
        return torch.einsum("bs,slv->blv", weight.to(self.logits.dtype), self.logits)


class Network(nn.Module):
    """A perceptron on one-hot rows, which also takes relaxed ones."""

    def __init__(self):
        super().__init__()
        width, out = 96, LENGTH * VOCAB
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(LENGTH * (VOCAB + 1), width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, out),
            nn.Unflatten(1, (LENGTH, VOCAB)),
        )

    def forward(self, x, t):
        return self.net(nn.functional.one_hot(x, VOCAB + 1).float())

    def soft(self, onehot, t):
        return self.net(onehot)


@functools.cache
def fitted_network(num_iterations=1500):
    """A `Network` with the conditionals of the natural law, within 1e-6 nats on average."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
    due, masked = conditionals().log_softmax(dim=-1).float(), STATES == MASK
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    plan = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, num_iterations)
    for _ in range(num_iterations):
        gap = due - network(STATES, None).log_softmax(dim=-1)
        kl = (due.exp() * gap).sum(dim=-1)[masked].mean()
        optimizer.zero_grad()
        kl.backward()
        optimizer.step()
        plan.step()
    return network, float(kl.detach())


class StateValue(nn.Module):
    """A free value in nats for each of the 256 states."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(256))

    def forward(self, x, t):
        return self.table[(x * PLACE).sum(dim=1)]


class M1(fg.MaskedDiffusion):
    """Reveals exactly one site a step, in uniformly random order; there is no fill."""

    def __init__(self, denoiser=None):
        denoiser = Table(conditionals()) if denoiser is None else denoiser
        super().__init__(denoiser, LENGTH, VOCAB, schedule="linear")

    def steps(self, num_steps):
        assert num_steps == LENGTH
        return [
            Step(i, 1 - i / 4, 1 - (i + 1) / 4, i == LENGTH - 1, True, (1 / (LENGTH - i),))
            for i in range(LENGTH)
        ]

    def propose(self, batch, outputs, step, *, seed, chains, num_candidates, first_candidate):
        draw = dict(num_candidates=num_candidates, first_candidate=first_candidate)
        site = ops.philox_uniform(
            seed, chains, step.index, Purpose.REVEAL, num_elements=LENGTH, **draw
        )
        at = site.masked_fill((batch.x != MASK)[:, None], -1).argmax(dim=-1)
        coin = ops.philox_uniform(seed, chains, step.index, Purpose.TOKEN, num_elements=1, **draw)
        probs = outputs.buffer[outputs.slots].softmax(dim=-1)
        probs = probs[torch.arange(len(at))[:, None], at]
        token = (probs.cumsum(dim=-1) <= coin).sum(dim=-1).clamp_max(VOCAB - 1)
        x = (
            batch.x[:, None]
            .repeat(1, num_candidates, 1)
            .scatter(2, at[..., None], token[..., None])
        )
        x = x.flatten(0, 1)
        return Batch(x, ops.masked_keys(x)), torch.ones(at.shape, dtype=torch.int32)


def law_of_m1(diffusion):
    """Probabilities [81] of the clean states, and the path KL, by enumeration."""
    with torch.no_grad():
        logits = diffusion.denoiser(STATES, torch.zeros(len(STATES)))
    table = logits.double().log_softmax(dim=-1)
    natural = conditionals().log_softmax(dim=-1)
    mass = torch.zeros(256, dtype=torch.float64)
    mass[-1] = 1.0
    kl = 0.0
    count = (STATES == MASK).sum(dim=1)
    for masked in range(LENGTH, 0, -1):
        for s in (count == masked).nonzero()[:, 0].tolist():
            for site in (STATES[s] == MASK).nonzero()[:, 0].tolist():
                share = mass[s] / masked
                probs = table[s, site].exp()
                kl += float(share * (probs * (table[s, site] - natural[s, site])).sum())
                for token in range(VOCAB):
                    child = STATES[s].clone()
                    child[site] = token
                    mass[(child * PLACE).sum()] += share * probs[token]
    return mass[count == 0], kl


def summary_of_m1(diffusion):
    """E r, J with the KL of the clean states, and the total variation distance from the target."""
    law, _ = law_of_m1(diffusion)
    mean = float((law * REWARD).sum())
    kl = float((law * (law / NATURAL).log()).sum())
    return mean, mean - ALPHA * kl, float((law - TILTED).abs().sum() / 2)


# -- G2 ------------------------------------------------------------------------------------------


def _root(matrix, power=0.5):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**power) @ vectors.T


class Means(nn.Module):
    """(y, t) -> M_t y + c_t."""

    def __init__(self, matrices):
        super().__init__()
        self.matrix = nn.Parameter(torch.stack(matrices).float())
        self.offset = nn.Parameter(torch.zeros(len(matrices), 2))

    def forward(self, x, t):
        at = t.long()
        return (self.matrix[at] @ x[:, :, None])[..., 0] + self.offset[at]


class G2(GaussianChain):
    """Exact reverse chain of N(0, Sigma) in coordinates in which every kernel has unit covariance.

    abar falls in a line to `last` over ten steps.
    """

    NUM_STEPS = 10

    def __init__(self, last):
        sigma = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
        abar = torch.linspace(1, last, self.NUM_STEPS + 1, dtype=torch.float64)
        cov = [a * sigma + (1 - a) * torch.eye(2, dtype=torch.float64) for a in abar]
        means, roots = [torch.zeros(2, 2, dtype=torch.float64)], []
        for t in range(1, self.NUM_STEPS + 1):
            a = (abar[t] / abar[t - 1]).sqrt() * cov[t - 1] @ cov[t].inverse()
            means.append(a)
            roots.append(_root(cov[t - 1] - a @ cov[t] @ a.T))
        roots.append(_root(cov[-1]))
        self.root = roots[0]
        matrices = [means[0]] + [
            roots[t - 1].inverse() @ means[t] @ roots[t] for t in range(1, self.NUM_STEPS + 1)
        ]
        super().__init__(
            Means(matrices),
            (2,),
            prior_deviation=1.0,
            null_cond=None,
            guidance_scale=1.0,
            device=None,
        )

    def levels(self, num_steps):
        assert num_steps == self.NUM_STEPS
        return [Level(t, 1.0, float(t > 0)) for t in range(num_steps, -1, -1)]

    def _kernel(self, before, after):
        return Kernel(0.0, 1.0, 1.0)

    def _clean(self, x, output, t):
        return output

    def in_x(self, reward):
        """A reward of x, as one of the chain's coordinates."""
        return lambda y: reward(y @ self.root.T.to(y.dtype))


def linear_reward(x):
    return x[:, 0] - 0.5 * x[:, 1]


def quadratic_reward(x):
    return -0.5 * ((x[:, 0] - 1.5) ** 2 + 0.5 * (x[:, 1] + 1) ** 2)


def _square(noise, number):
    """Covariance [2, 2] of the noise of a step."""
    if noise is None:
        return torch.eye(2, dtype=torch.float64)
    lower = noise.triangle(number).double()
    return lower @ lower.T


def law_of_g2(diffusion):
    """Mean [2] and covariance entries (11, 12, 22) of x0."""
    matrix = diffusion.denoiser.matrix.detach().double()
    offset = diffusion.denoiser.offset.detach().double()
    mean = torch.zeros(2, dtype=torch.float64)
    cov = torch.eye(2, dtype=torch.float64)
    start, noise = diffusion.learned_start, diffusion.learned_noise
    if start is not None:  # of one step, from 0
        mean, cov = start.network.offset[0].detach().double(), _square(start.noise, 0)
    for t in range(diffusion.NUM_STEPS, 0, -1):
        mean = matrix[t] @ mean + offset[t]
        cov = matrix[t] @ cov @ matrix[t].T + _square(noise, diffusion.NUM_STEPS - t)
    mean, cov = diffusion.root @ mean, diffusion.root @ cov @ diffusion.root.T
    return mean, torch.stack([cov[0, 0], cov[0, 1], cov[1, 1]])
