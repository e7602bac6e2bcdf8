"""Paths of pipelines: recorded, replayed with exact ratios, and differentiated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from pipelines_tiny import CASES, WARNINGS

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers import differentiable, guide, replay, stochastic_scheduler

pytestmark = WARNINGS

REFUSED = {"sd-heun", "sd-pndm"}
REPLAYED = sorted(set(CASES) - REFUSED - {"ltx2-euler-sde"})


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).mean(dim=1)


def noise(name: str) -> dict[str, float]:
    return {} if CASES[name].stochastic else {"eta": 1.0}


def recorded(name: str, **settings):
    case = CASES[name]
    pipe = case.build()
    settings = {"method": "unguided", "seed": 3, **noise(name), **settings}
    reward = None if settings["method"] == "unguided" else brightness
    with guide(pipe, reward, record=True, **settings) as run:
        pipe(**case.call)
    assert run.result is not None
    return pipe, case, run.result


@pytest.mark.parametrize("name", REPLAYED)
def test_ratio_is_one_before_anything_is_learned(name: str) -> None:
    pipe, case, result = recorded(name)
    path = result.trajectory
    with torch.no_grad(), replay(pipe, path) as run:
        pipe(**case.call)
    ratio = (run.log_probs - path.log_probs).exp()
    assert run.log_probs.shape == path.log_probs.shape == (len(path.states) - 1, case.groups)
    assert (ratio - 1).abs().max() <= 1e-6
    assert path.log_probs.abs().sum() > 0


@pytest.mark.parametrize("name", ["ddpm-free", "sd-dpm-sde", "flux-euler", "cogvideox-dpm"])
def test_ratio_moves_when_the_denoiser_does(name: str) -> None:
    pipe, case, result = recorded(name)
    path = result.trajectory
    with torch.no_grad():
        for parameter in getattr(pipe, case.denoiser).parameters():
            parameter.mul_(1.001)
        with replay(pipe, path) as run:
            pipe(**case.call)
    assert (run.log_probs - path.log_probs).abs().max() > 1e-4


def test_log_probabilities_are_those_of_the_schedulers_gaussian() -> None:
    pipe, case, result = recorded("ddpm-free")
    path, scheduler = result.trajectory, pipe.scheduler
    scheduler.set_timesteps(case.call["num_inference_steps"])
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps[:-1]):
            x, following = path.states[i], path.states[i + 1]
            before, after = (
                float(scheduler.alphas_cumprod[int(s)]) for s in (t, scheduler.timesteps[i + 1])
            )
            x0 = (x - math.sqrt(1 - before) * pipe.unet(x, t).sample) / math.sqrt(before)
            ratio = before / after
            mean = math.sqrt(after) * (1 - ratio) / (1 - before) * x0
            mean = mean + math.sqrt(ratio) * (1 - after) / (1 - before) * x
            s = math.sqrt((1 - after) / (1 - before) * (1 - ratio))
            due = torch.distributions.Normal(mean.double(), s).log_prob(following.double())
            torch.testing.assert_close(
                path.log_probs[i], due.flatten(1).sum(dim=1), rtol=1e-5, atol=1e-3
            )
    assert float(path.log_probs[-1].abs().max()) == 0.0  # the last step has no noise


@pytest.mark.parametrize("name", ["sd-euler-a", "flux-euler-sde"])
def test_gradients_of_one_pass_and_of_a_pass_per_step_agree(name: str) -> None:
    pipe, case, result = recorded(name)
    path = result.trajectory
    parameters = [p for p in getattr(pipe, case.denoiser).parameters() if p.requires_grad]
    with replay(pipe, path) as run:
        pipe(**case.call)
    whole = torch.autograd.grad(run.log_probs.sum(), parameters, allow_unused=True)
    seen: list[int] = []

    def learn(step: int, log_prob: torch.Tensor) -> None:
        seen.append(step)
        if log_prob.requires_grad:
            log_prob.sum().backward()

    with replay(pipe, path, on_step=learn):
        pipe(**case.call)
    assert seen == list(range(len(path.log_probs)))
    for parameter, due in zip(parameters, whole, strict=True):
        if due is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, due, rtol=1e-3, atol=1e-3)


def test_gradient_of_a_replay_is_that_of_its_log_probability() -> None:
    pipe, case, result = recorded("ddpm-free")
    weight = next(p for p in pipe.unet.parameters() if p.dim() == 4)

    def log_prob() -> torch.Tensor:
        with replay(pipe, result.trajectory) as run:
            pipe(**case.call)
        return run.log_probs.sum()

    (gradient,) = torch.autograd.grad(log_prob(), weight)
    direction = gradient / gradient.norm()
    step = 1e-3
    with torch.no_grad():
        weight.add_(step * direction)
        above = log_prob()
        weight.sub_(2 * step * direction)
        below = log_prob()
        weight.add_(step * direction)
    slope = float((above - below) / (2 * step))
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.02)


@pytest.mark.parametrize("name", ["sd-euler-a", "sd-dpm-sde"])
@pytest.mark.parametrize("method", ["svdd", "smc", "nested_smc"])
def test_a_guided_path_ends_at_the_winner(name: str, method: str) -> None:
    sizes = {"num_candidates": 4, "alpha": 0.001}
    if method == "nested_smc":
        sizes["num_particles"] = 2
    pipe, case, result = recorded(name, method=method, **sizes)
    path, last = result.trajectory, result.candidates
    flat = last.latents.flatten(2)
    near = (flat - path.states[-1].flatten(1)[:, None]).abs().amax(dim=2)
    assert bool((near.amin(dim=1) == 0).all())
    rewards = last.rewards.gather(1, near.argmin(dim=1)[:, None])[:, 0]
    torch.testing.assert_close(rewards, result.rewards)
    # the batch has other rows than the replay, which rounding alone tells apart; a multistep
    # scheduler remembers earlier states, which must have been those of the same path
    with torch.no_grad(), replay(pipe, path) as run:
        pipe(**case.call)
    torch.testing.assert_close(run.log_probs, path.log_probs, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "name", ["ddpm-free", "sd-ddim", "sd-dpm-sde", "flux-euler", "wan-dpm-sde"]
)
def test_differentiable_samples_are_the_unguided_ones(name: str) -> None:
    pipe, case, result = recorded(name)
    with differentiable(pipe, seed=3, **noise(name)):
        output = pipe(**case.call)
    torch.testing.assert_close(
        output.latents.detach(), result.trajectory.states[-1], rtol=1e-4, atol=1e-4
    )
    assert output.pixels.requires_grad
    brightness(output.pixels).sum().backward()
    network = getattr(pipe, case.denoiser)
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0
    others = [getattr(pipe, each, None) for each in ("text_encoder", "vae")]
    for other in others:
        if other is not None:
            assert all(p.grad is None and p.requires_grad for p in other.parameters())


def backprop_gradient(pipe, case, parameter: torch.Tensor, **settings) -> torch.Tensor:
    with differentiable(pipe, seed=3, **settings):
        output = pipe(**case.call)
    (gradient,) = torch.autograd.grad(brightness(output.pixels).sum(), parameter)
    return gradient


def test_reward_gradient_is_that_of_the_sample() -> None:
    case = CASES["ddpm-free"]
    pipe = case.build()
    weight = next(p for p in pipe.unet.parameters() if p.dim() == 4)
    gradient = backprop_gradient(pipe, case, weight, decode=torch.sin)
    direction = gradient / gradient.norm()

    def reward(step: float) -> float:
        with torch.no_grad():
            weight.add_(step * direction)
            with differentiable(pipe, seed=3, decode=torch.sin):
                output = pipe(**case.call)
            weight.sub_(step * direction)
        return float(brightness(output.pixels.double()).sum())

    slope = (reward(2e-3) - reward(-2e-3)) / 4e-3
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.05)


def test_recomputing_changes_nothing_and_truncation_does() -> None:
    case = CASES["ddpm-free"]
    pipe = case.build()
    weight = next(p for p in pipe.unet.parameters() if p.dim() == 4)
    steps = case.call["num_inference_steps"]
    whole = backprop_gradient(pipe, case, weight)
    again = backprop_gradient(pipe, case, weight, recompute=True)
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-6)
    all_of_them = backprop_gradient(pipe, case, weight, last_steps=steps)
    torch.testing.assert_close(all_of_them, whole, rtol=1e-5, atol=1e-6)
    last = backprop_gradient(pipe, case, weight, last_steps=1)
    assert (last - whole).norm() > 0.01 * whole.norm()


def test_what_does_not_fit_a_path_is_refused() -> None:
    pipe, case, result = recorded("ddpm-free")
    path = result.trajectory
    with replay(pipe, path), pytest.raises(ArgumentError, match="this call makes 2"):
        pipe(**case.call | {"batch_size": 2})
    with replay(pipe, path), pytest.raises(ArgumentError, match="6 steps, and this call 3"):
        pipe(**case.call | {"num_inference_steps": 3})
    other = replace(path, states=path.states + 1)
    with replay(pipe, other), pytest.raises(ArgumentError, match="states are not the recorded"):
        pipe(**case.call)
    with (
        pytest.raises(ArgumentError, match="last_steps must be at least 1"),
        differentiable(pipe, last_steps=0),
    ):
        pass
    case = CASES["ltx2-euler-sde"]
    two = case.build()
    with differentiable(two), pytest.raises(ArgumentError, match="two schedulers"):
        two(**case.call)


@pytest.mark.parametrize("name", ["sd-heun", "sd-pndm", "sd-unipc", "flux-euler", "wan-dpm-sde"])
def test_stochastic_schedulers_guide(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    pipe.scheduler = stochastic_scheduler(pipe)
    with guide(pipe, brightness, num_candidates=2, alpha=0.0) as run:
        pipe(**case.call)
    assert run.result is not None
    assert run.result.stopped is None
