"""Step tables against the schedulers of diffusers, to 1e-6.

A step is linear in (state, model output, noise), so three unit rows read off its three numbers.
The schedulers' own tables are raised to float64 where they allow it: their float32 differences of
neighbouring levels are good to 1e-4 only.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastguide as fg

pytest.importorskip("diffusers")

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

X, OUTPUT, NOISE = torch.eye(3, dtype=torch.float64)[..., None]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.fixture(autouse=True)
def _noise(monkeypatch):
    """Every scheduler adds the unit row that stands for noise."""
    from diffusers.schedulers import (
        scheduling_ddim,
        scheduling_ddpm,
        scheduling_euler_ancestral_discrete,
        scheduling_flow_match_euler_discrete,
    )

    for module in (
        scheduling_ddim,
        scheduling_ddpm,
        scheduling_euler_ancestral_discrete,
        scheduling_flow_match_euler_discrete,
    ):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, dtype, **__: NOISE.to(dtype))


def our_table(diffusion, num_steps: int) -> torch.Tensor:
    """Responses [num_steps, 3] of x' to state, output and noise; the denoiser returns OUTPUT."""
    rows = []
    for step in diffusion.steps(num_steps):
        a, b, s = diffusion.kernel(step)
        time = torch.full((3,), step.time, dtype=torch.float64)
        rows.append((a * X + b * diffusion.predict(X, time) + s * NOISE)[:, 0])
    return torch.stack(rows)


def their_table(scheduler, **options) -> torch.Tensor:
    rows = [
        scheduler.step(OUTPUT, t, X, return_dict=False, **options)[0][:, 0].double()
        for t in scheduler.timesteps
    ]
    return torch.stack(rows)


def constant(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return OUTPUT


def variance_preserving(scheduler_class, num_steps: int, spacing: str, prediction: str, **options):
    scheduler = scheduler_class(
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing=spacing,
        prediction_type=prediction,
        **options,
    )
    table = scheduler.alphas_cumprod
    scheduler.alphas_cumprod = table.double()
    scheduler.set_timesteps(num_steps)
    return scheduler, {
        "alphas_cumprod": table,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
    }


def assert_same(diffusion, scheduler, num_steps: int, **options) -> None:
    times = [step.time for step in diffusion.steps(num_steps)]
    assert times == [int(t) for t in scheduler.timesteps]
    torch.testing.assert_close(
        our_table(diffusion, num_steps), their_table(scheduler, **options), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("num_steps", [1000, 50, 7])
def test_ddpm(num_steps, spacing, prediction):
    scheduler, options = variance_preserving(DDPMScheduler, num_steps, spacing, prediction)
    diffusion = fg.GaussianDiffusion(constant, (1,), **options)
    assert_same(diffusion, scheduler, num_steps)


@pytest.mark.parametrize("num_steps", [1000, 50])
def test_ddpm_with_the_variance_of_the_forward_step(num_steps):
    scheduler, options = variance_preserving(
        DDPMScheduler, num_steps, "leading", "epsilon", variance_type="fixed_large"
    )
    diffusion = fg.GaussianDiffusion(constant, (1,), variance="beta", **options)
    assert_same(diffusion, scheduler, num_steps)
    posterior = fg.GaussianDiffusion(constant, (1,), **options)
    with pytest.raises(AssertionError):
        assert_same(posterior, scheduler, num_steps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_ddim(eta, spacing, prediction):
    scheduler, options = variance_preserving(DDIMScheduler, 50, spacing, prediction)
    diffusion = fg.GaussianDiffusion(constant, (1,), eta=eta, **options)
    assert_same(diffusion, scheduler, 50, eta=eta)
    other = fg.GaussianDiffusion(constant, (1,), eta=0.7, **options)
    with pytest.raises(AssertionError):
        assert_same(other, scheduler, 50, eta=eta)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize("num_steps", [50, 7])
def test_euler_ancestral(num_steps):
    scheduler = EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(num_steps)
    table = scheduler.alphas_cumprod.double()
    trained = ((1 - table) / table).sqrt().flip(0)
    visited = trained[[999 - int(t) for t in scheduler.timesteps]]
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), visited, rtol=1e-6, atol=0)
    scheduler.sigmas = torch.cat([visited, torch.zeros(1, dtype=torch.float64)])
    scheduler.is_scale_input_called = True

    def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x - sigma.double()[:, None] * OUTPUT  # OUTPUT is the noise

    theirs = their_table(scheduler)
    for sigmas in (trained, visited):  # as many levels of the whole table, or those alone
        diffusion = fg.KarrasDiffusion(denoised, (1,), sigmas=sigmas)
        torch.testing.assert_close(our_table(diffusion, num_steps), theirs, rtol=1e-6, atol=1e-6)
    diffusion = fg.KarrasDiffusion(denoised, (1,), sigmas=visited, eta=0.95)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(our_table(diffusion, num_steps), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("eta", "stochastic"), [(0, False), (1, True)])
@pytest.mark.parametrize("num_steps", [28, 4])
def test_flow_match_euler(num_steps, eta, stochastic):
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps))
    theirs = their_table(scheduler)
    diffusion = fg.FlowMatching(constant, (1,), eta=eta)
    torch.testing.assert_close(our_table(diffusion, num_steps), theirs, rtol=1e-6, atol=1e-6)
    other = fg.FlowMatching(constant, (1,), eta=0.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(our_table(other, num_steps), theirs, rtol=1e-6, atol=1e-6)
