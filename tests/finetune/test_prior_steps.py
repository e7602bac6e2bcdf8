"""Learned initial laws and covariances: what they are before training, and where they go."""

from __future__ import annotations

import pytest
import torch
from exact_chains import ALPHA, G1, G2, M1, first, quadratic, quadratic_reward, reward
from safetensors.torch import load_file
from scipy import stats
from torch import nn

import fastguide as fg
from fastguide import finetune
from fastguide.errors import ArgumentError, CheckpointError, DtypeError, ShapeError
from fastguide.finetune.initial_value import QuadraticValue, fit_value
from fastguide.finetune.laws import laws_of
from fastguide.rng import chain_ids

FULL = dict(alpha=ALPHA, adapter="full", learning_rate=0.03)


class Control(nn.Module):
    """Two layers, the last one zero."""

    def __init__(self, size, last=0.0):
        super().__init__()
        self.first, self.last = nn.Linear(size + 1, 8), nn.Linear(8, size)
        nn.init.constant_(self.last.weight, last)
        nn.init.zeros_(self.last.bias)

    def forward(self, x, t):
        return self.last(self.first(torch.cat([x, t[:, None]], dim=1)).tanh())


@pytest.mark.parametrize("num_steps", [1, 4])
def test_untrained_start_is_the_prior(num_steps):
    tuner = finetune.RewardBackprop(G1(dims=2), quadratic, prior_steps=num_steps, **FULL)
    start = tuner.diffusion.start(chain_ids(4000, 0), None, 3).x
    assert start.shape == (4000, 2)
    assert stats.kstest(start.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float(torch.corrcoef(start.T)[0, 1])) < 0.05


def test_candidates_of_a_learned_start_are_distinct_and_repeatable():
    tuned = finetune.RewardBackprop(G1(), quadratic, prior_steps=2, **FULL).diffusion
    chains, candidates = torch.tensor([5, 5, 7]), torch.tensor([0, 1, 0])
    found = tuned.start(chains, None, 3, candidates).x
    assert len(found.unique()) == 3
    again = tuned.start(chains.flip(0), None, 3, candidates.flip(0)).x
    assert torch.equal(found, again.flip(0))


def test_a_network_learns_the_start_and_samplers_draw_from_it():
    """r = x: the target has mean 2, and 1.4 with the initial law as it is."""
    tuner = finetune.RewardBackprop(
        G1(), first, prior_steps=3, prior_network=Control(1), max_grad_norm=None, **FULL
    )
    history = tuner.train(150, 128, num_steps=10, progress=False)
    assert history.rows[-1]["kl"] == pytest.approx(2.0, abs=0.4)
    tuned = tuner.diffusion
    plain = fg.Unguided(tuned, first).sample(2000, num_steps=10, progress=False)
    assert float(plain.rewards.mean()) == pytest.approx(2.0, abs=0.1)
    best = fg.BestOfN(tuned, first, num_candidates=8)
    # the mean of the largest of eight normals is 1.42
    assert float(best.sample(500, num_steps=10, progress=False).rewards.mean()) == pytest.approx(
        3.42, abs=0.15
    )
    # the original is as it was, and still starts from its prior
    kept = fg.Unguided(G1(), first).sample(2000, num_steps=10, progress=False)
    assert float(kept.rewards.mean()) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("method", [finetune.PPO, finetune.AdjointMatching])
def test_other_methods_learn_the_start_too(method):
    options = {**FULL, "learning_rate": finetune.linear(0.05, 1e-3)}
    tuner = method(G1(), first, prior_steps=2, max_grad_norm=None, ema=0.95, **options)
    tuner.train(150, 512, num_steps=10, progress=False)
    plain = fg.Unguided(tuner.diffusion, first).sample(2000, num_steps=10, progress=False)
    assert float(plain.rewards.mean()) == pytest.approx(2.0, abs=0.2)


def test_learned_covariances_are_those_of_the_samples():
    """Samples, log-probabilities and the exact recursion agree on one law."""
    chain = G2(0.3)
    tuner = finetune.PathConsistency(
        chain, chain.in_x(quadratic_reward), learn_scale="full", prior_steps=1, **FULL
    )
    tuner.train(60, 128, num_steps=10, progress=False)
    tuned = tuner.diffusion
    triangle = tuned.learned_noise.triangle(9).double()
    assert abs(float(triangle[1, 0])) > 0.002
    triangle[1, 0] = 0.5  # far from what the test could miss
    tuned.learned_noise.factors[9] = triangle
    with torch.no_grad():
        tuner.policy.scale[10, 1, 0] = 0.5
    laws = laws_of(chain, 10)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).repeat_interleave(4000, 0)
    batch = tuned.batch(x)
    output = tuned.denoise(x, 1.0, {})
    rows = torch.arange(len(x))
    drawn, _ = tuned.propose(
        batch,
        fg.diffusion.Outputs(output, rows),
        tuned.steps(10)[9],
        seed=1,
        chains=rows,
        num_candidates=1,
        first_candidate=torch.zeros_like(rows),
    )
    found = torch.cov((drawn.x - output).double().T)
    torch.testing.assert_close(found, triangle @ triangle.T, rtol=0.05, atol=0.02)
    normal = torch.distributions.MultivariateNormal(output.double(), scale_tril=triangle)
    expected = normal.log_prob(drawn.x.double())
    torch.testing.assert_close(tuned.log_prob(x, drawn.x, 9, 10), expected, rtol=0, atol=1e-4)
    step = torch.full((len(x),), 9)
    own = tuner.policy.diffusion
    assert own.chain.shape == (2,)
    policy = tuner.policy.at(x, step + 1, {})
    torch.testing.assert_close(policy.log_prob(drawn.x), expected, rtol=0, atol=1e-4)
    natural = laws.at(x, step, {})
    plain = torch.distributions.MultivariateNormal(natural.mean.double(), torch.eye(2).double())
    due = torch.distributions.kl_divergence(normal, plain)
    torch.testing.assert_close(policy.kl(natural), due, rtol=0, atol=1e-4)
    assert tuned.settings() != chain.settings()


def test_learned_covariances_refuse_gradient_guidance():
    chain = G2(0.3)
    tuner = finetune.PathConsistency(
        chain, chain.in_x(quadratic_reward), learn_scale="full", features=lambda x: x, **FULL
    )
    tuner.train(1, 8, num_steps=10, progress=False)
    guided = fg.DPS(tuner.diffusion, chain.in_x(quadratic_reward), alpha=0.5)
    with pytest.raises(ArgumentError, match="covariances were learned"):
        guided.sample(2, num_steps=10, progress=False)
    with pytest.raises(ArgumentError, match="num_steps must be 10"):
        tuner.diffusion.steps(5)
    with pytest.raises(ArgumentError, match="has learned covariances"):
        finetune.PPO(tuner.diffusion, quadratic, **FULL)


def test_training_goes_on_from_learned_deviations():
    """A second training multiplies its factors onto those of the first."""
    tuner = finetune.PathConsistency(
        G1(), quadratic, learn_scale=True, features=lambda x: x, **FULL
    )
    tuner.train(5, 32, num_steps=10, progress=False)
    once = tuner.diffusion
    again = finetune.PathConsistency(
        once, quadratic, learn_scale=True, features=lambda x: x, **FULL
    )
    again.train(1, 32, num_steps=10, progress=False)
    known = [step.params[2] for step in once.steps(10)]
    assert known != [step.params[2] for step in G1().steps(10)]
    own = again.policy.scale.detach().exp().tolist()
    expected = [s * factor for s, factor in zip(known, own, strict=True)]
    assert [step.params[2] for step in again.diffusion.steps(10)] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [False, True, "full"])
def test_what_was_learned_is_saved(tmp_path, scale):
    """The denoiser's file and the other one make the tuned chain again, bit for bit."""
    tuner = finetune.PathConsistency(
        G1(), quadratic, prior_steps=2, prior_network=Control(1), learn_scale=scale, **FULL
    )
    tuner.train(3, 16, num_steps=10, progress=False)
    tuner.save(tmp_path / "denoiser.safetensors")
    tuner.save_learned(tmp_path / "learned.safetensors")
    again = G1()
    again.denoiser.load_state_dict(load_file(str(tmp_path / "denoiser.safetensors")))
    again = finetune.load_learned(tmp_path / "learned.safetensors", again, Control(1))
    assert again.settings() == tuner.diffusion.settings()
    expected = fg.Unguided(tuner.diffusion, quadratic).sample(8, num_steps=10, progress=False)
    found = fg.Unguided(again, quadratic).sample(8, num_steps=10, progress=False)
    assert torch.equal(found.samples, expected.samples)
    with pytest.raises(CheckpointError, match=r"learned\.safetensors does not hold what was"):
        finetune.load_learned(tmp_path / "learned.safetensors", G1())  # not its network
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors does not hold"):
        finetune.load_learned(tmp_path / "nothing.safetensors", G1())
    with pytest.raises(DtypeError, match="must be a Gaussian chain, got M1"):
        finetune.load_learned(tmp_path / "learned.safetensors", M1())


def test_nothing_else_learned_is_nothing_to_save(tmp_path):
    with pytest.raises(ArgumentError, match="nothing was learned besides the denoiser"):
        finetune.PPO(G1(), quadratic, **FULL).save_learned(tmp_path / "learned.safetensors")


class Interrupted(Exception):
    pass


def test_staged_run_resumes_where_it_was(tmp_path):
    """Stopped in its last stage and resumed, ELEGANT is the run that was never stopped."""

    def method():
        return finetune.ELEGANT(G1(), quadratic, num_pairs=256, prior_steps=3, **FULL)

    def stop(row):
        if row["stage"] == 1 and row["iteration"] == 2:
            raise Interrupted

    run = dict(num_steps=10, progress=False)
    whole = method()
    history = whole.train(6, 32, **run)
    broken = method()
    with pytest.raises(Interrupted):
        broken.train(6, 32, checkpoint=tmp_path, callback=stop, **run)
    resumed = method()
    found = resumed.train(6, 32, checkpoint=tmp_path, **run)
    assert torch.equal(
        resumed.diffusion.learned_start.numbers(), whole.diffusion.learned_start.numbers()
    )
    assert len(found.rows) == len(history.rows) == 12
    assert [row["stage"] for row in found.rows] == [0.0] * 6 + [1.0] * 6
    assert found.rows[6]["value_variance"] == pytest.approx(history.rows[6]["value_variance"])
    assert (tmp_path / "value" / "state.json").exists()
    with pytest.raises(CheckpointError, match="num_pairs"):
        finetune.ELEGANT(G1(), quadratic, num_pairs=300, prior_steps=3, **FULL).train(
            6, 32, checkpoint=tmp_path, **run
        )


def test_a_stop_in_the_first_stage_is_the_end(tmp_path):
    method = finetune.ELEGANT(G1(), quadratic, num_pairs=64, **FULL)
    history = method.train(5, 16, num_steps=10, callback=lambda row: False, progress=False)
    assert (len(history.rows), history.stopped) == (1, "callback")
    assert method.diffusion.learned_start is None
    method.save(tmp_path / "tuned.safetensors")


@pytest.mark.parametrize("estimate", ["controlled", "reference"])
def test_values_of_initial_states(estimate):
    """Outcomes x + noise / 2: their mean is x, their log-mean-exponential x + 1 / (8 alpha)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40_000, 1, generator=generator)
    noise = torch.randn(40_000, generator=generator).double()
    outcome = x[:, 0].double() + noise / 2
    value = QuadraticValue((1,))
    share = fit_value(value, x, outcome, ALPHA, estimate, 0.0)
    offset = 0.0 if estimate == "controlled" else 1 / (8 * ALPHA)
    assert value.coefficients.tolist() == pytest.approx([offset, 1.0, 0.0], abs=0.03)
    assert share == pytest.approx(0.8, abs=0.03)
    # as large as rewards get: nothing overflows
    fit_value(value, x, 1e4 * outcome, ALPHA, estimate, 0.0)
    assert bool(value.coefficients.isfinite().all())


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x @ self.slope


@pytest.mark.parametrize("estimate", ["controlled", "reference"])
def test_a_network_as_the_value(estimate):
    method = finetune.ELEGANT(
        G1(),
        first,
        value=Line(),
        value_learning_rate=0.02,
        num_pairs=4096,
        prior_steps=2,
        estimate=estimate,
        **FULL,
    )
    method.train(100, 256, num_steps=10, progress=False)
    # E[x0 | x_T] = sqrt(.3) x_T under the reference, and the value has that slope
    assert float(method.value.slope) == pytest.approx(0.3**0.5, abs=0.05)
    found = fg.Unguided(method.diffusion, first).sample(2000, num_steps=10, progress=False)
    assert float(found.rewards.mean()) == pytest.approx(2.0, abs=0.15)


def test_refusals():
    with pytest.raises(ArgumentError, match="prior_steps must be 0 for M1"):
        finetune.PPO(M1(), reward, prior_steps=2, **FULL)
    with pytest.raises(ArgumentError, match="prior_steps must be 0 for M1"):
        finetune.ELEGANT(M1(), reward, **FULL)
    with pytest.raises(ArgumentError, match="prior_steps must be at least 0, got -1"):
        finetune.PPO(G1(), quadratic, prior_steps=-1, **FULL)
    with pytest.raises(ArgumentError, match="prior_network must return 0 before"):
        finetune.PPO(G1(), quadratic, prior_steps=2, prior_network=Control(1, 0.1), **FULL)
    with pytest.raises(DtypeError, match=r"prior_network must be an nn\.Module"):
        finetune.PPO(G1(), quadratic, prior_steps=2, prior_network=lambda x, t: 0 * x, **FULL)
    with pytest.raises(ArgumentError, match="prior_network is for prior_steps"):
        finetune.PPO(G1(), quadratic, prior_network=Control(1), **FULL)
    for method, options in (
        (finetune.ForwardProcess, {}),
        (finetune.ValueWeighted, {}),
        (finetune.RewardWeightedMLE, {"form": "denoise"}),
    ):
        with pytest.raises(ArgumentError, match="prior_steps must be 0"):
            method(G1(), quadratic, prior_steps=2, **options, **FULL)
    with pytest.raises(ArgumentError, match="learn_scale must be False, True or 'full'"):
        finetune.PathConsistency(G1(), quadratic, learn_scale="half", **FULL)
    with pytest.raises(ArgumentError, match="D <= 256 elements, got 300"):
        finetune.PathConsistency(G1(dims=300), quadratic, learn_scale="full", **FULL)
    with pytest.raises(ArgumentError, match="estimate must be 'controlled' or 'reference'"):
        finetune.ELEGANT(G1(), quadratic, estimate="both", **FULL)
    with pytest.raises(DtypeError, match=r"value must be an nn\.Module"):
        finetune.ELEGANT(G1(), quadratic, value=lambda x: x, **FULL)
    few = finetune.ELEGANT(G1(), quadratic, num_pairs=8, **FULL)
    with pytest.raises(ArgumentError, match="num_pairs=8 are too few for the 3 coefficients"):
        few.train(1, 8, num_steps=10, progress=False)
    wide = finetune.ELEGANT(G1(), quadratic, num_pairs=8, value=nn.Linear(1, 1), **FULL)
    with pytest.raises(ShapeError, match="value must return"):
        wide.train(1, 8, num_steps=10, progress=False)
    tuned = finetune.PPO(G1(), quadratic, prior_steps=2, **FULL).diffusion
    with pytest.raises(ArgumentError, match="has a learned initial law already"):
        finetune.PPO(tuned, quadratic, prior_steps=2, **FULL)
