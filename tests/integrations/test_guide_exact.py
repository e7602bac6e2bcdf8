"""Guided pipelines against a loop written out, the native samplers, and laws in closed form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import exact_gaussian as exact
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from guiding import Forced, as_is, brightness, build, counted, known_pipeline
from pipelines_tiny import CASES, WARNINGS

import fastguide as fg
from fastguide import ops
from fastguide.integrations.diffusers import guide
from fastguide.integrations.diffusers.methods import METHODS
from fastguide.rng import Purpose

pytestmark = WARNINGS
Tensor = torch.Tensor
STEPS = 6


# -- textbook SVDD -------------------------------------------------------------------------------


@torch.no_grad()
def textbook(
    pipe: Any, reward: Callable[[Tensor], Tensor], chain: int, num: int, alpha: float, seed: int
) -> tuple[Tensor, list[float]]:
    """SVDD of one image on DDPM, candidate by candidate; its sample and the values it chose."""
    scheduler, unet = pipe.scheduler, pipe.unet
    side = unet.config.sample_size
    shape = (unet.config.in_channels, side, side)
    size = int(np.prod(shape))
    table = scheduler.alphas_cumprod.double().tolist()
    stride = len(table) // STEPS
    times = [stride * i for i in reversed(range(STEPS))]
    ids = torch.tensor([chain])

    def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        eps = unet(x[None], t).sample[0]
        x0 = (x - (1 - table[t]) ** 0.5 * eps) / table[t] ** 0.5
        return (x0.clamp(-1, 1) if scheduler.config.clip_sample else x0), eps

    x = ops.philox_normal(seed, ids, 0, Purpose.PRIOR, num_elements=size).view(shape)
    values = []
    for step, t in enumerate(times):
        x0, _ = predict(x, t)
        before, after = table[t], table[t - stride] if t >= stride else 1.0
        beta = 1 - before / after
        mean = after**0.5 * beta / (1 - before) * x0
        mean = mean + (1 - beta) ** 0.5 * (1 - after) / (1 - before) * x
        if t == 0:
            return mean, values
        deviation = (beta * (1 - after) / (1 - before)) ** 0.5
        noise = ops.philox_normal(
            seed, ids, step, Purpose.NOISE, num_elements=size, num_candidates=num
        ).view(num, *shape)
        candidates = mean + deviation * noise
        scores = torch.stack([reward(predict(c, t - stride)[0][None])[0] for c in candidates])
        picked = ops.select(
            scores.double()[None], alpha=alpha, seed=seed, chains=ids, step=step
        ).index
        values.append(float(scores[picked]))
        x = candidates[int(picked)]
    raise AssertionError


@pytest.mark.parametrize("alpha", [0.0, 0.02])
@pytest.mark.parametrize("name", ["ddpm-free", "ddpm-clipped"])
def test_textbook_svdd(name: str, alpha: float) -> None:
    num, images, seed = 4, 3, 11
    pipe = build(name)
    with guide(pipe, brightness, num_candidates=num, alpha=alpha, seed=seed, decode=as_is) as g:
        pipe(batch_size=images, num_inference_steps=STEPS, output_type="pt")
    found = g.result.candidates.latents[:, 0]
    chosen = set()
    for chain in range(images):
        sample, values = textbook(pipe, brightness, chain, num, alpha, seed)
        torch.testing.assert_close(found[chain], sample, rtol=1e-5, atol=1e-5)
        due = torch.tensor(values)
        torch.testing.assert_close(g.result.trace.values[:-1, chain], due, rtol=1e-5, atol=1e-5)
        chosen.add(round(values[-1], 6))
    assert len(chosen) == images
    other, _ = textbook(pipe, brightness, 0, num + 1, alpha, seed)
    assert not torch.allclose(found[0], other, atol=1e-2), "another M gives another image"


# -- the native samplers -------------------------------------------------------------------------

SIZES = {
    "svdd": dict(num_candidates=4, alpha=0.0),
    "svdd soft": dict(num_candidates=4, alpha=0.05),
    "smc": dict(num_particles=4, alpha=0.2),
    "fk": dict(num_particles=4, alpha=0.2, interval=2),
    "best_of_n": dict(num_candidates=4),
    "beam": dict(num_particles=2, num_candidates=3),
    "nested_smc": dict(num_particles=3, num_candidates=2, alpha=0.2),
    "svddr": dict(num_particles=3, num_candidates=2, alpha=0.2, replaced=0.4),
    "tds": dict(num_particles=3, alpha=0.2),
    "dps": dict(alpha=0.2),
}
IMAGES = 2


def native(method: str, pipe: Any, reward: Callable[[Tensor], Tensor] = brightness) -> Any:
    """The sampler of the same name on the pipeline's UNet and schedule, with its diffusion."""
    side = pipe.unet.config.sample_size
    diffusion = fg.GaussianDiffusion(
        lambda x, t: pipe.unet(x, t).sample,
        (pipe.unet.config.in_channels, side, side),
        alphas_cumprod=pipe.scheduler.alphas_cumprod,
        timestep_spacing="leading",
    )
    return METHODS[method.split()[0]](diffusion, reward, **SIZES[method])


class Witness:
    """What passes through a method's `select`: its values, log-ratios and choices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
        self.seen: list[tuple[int, Tensor, Tensor | None, Tensor]] = []
        own = kind.select

        def select(policy: Any, selection: Any) -> Any:
            choice = own(policy, selection)
            ratio = selection.log_ratio
            self.seen.append((selection.step.index, selection.values, ratio, choice.index))
            return choice

        monkeypatch.setattr(kind, "select", select)

    def take(self) -> list[tuple[int, Tensor, Tensor | None, Tensor]]:
        seen, self.seen = self.seen, []
        return seen


def native_run(sampler: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> tuple[Any, list]:
    """A native run, and its states as rows: the initial ones, then all candidates of each step."""
    rows: list[Tensor] = []
    diffusion = sampler.diffusion
    start, propose = diffusion.start, diffusion.propose_shifted

    def starting(*args: Any, **kwargs: Any) -> Any:
        batch = start(*args, **kwargs)
        rows.append(batch.x)
        return batch

    def proposing(*args: Any, **kwargs: Any) -> Any:
        made = propose(*args, **kwargs)
        rows.append(made[0].x)
        return made

    monkeypatch.setattr(diffusion, "start", starting)
    monkeypatch.setattr(diffusion, "propose_shifted", proposing)
    result = sampler.sample(IMAGES, num_steps=STEPS, seed=seed, savings="none", progress=False)
    return result, rows


@pytest.mark.parametrize("method", SIZES)
def test_step_by_step_as_native(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = 5
    plain = build("ddpm-free")
    sampler = native(method, plain)
    witness = Witness(monkeypatch, type(sampler))
    due, rows = native_run(sampler, monkeypatch, seed)
    choices = witness.take()
    width = sampler.num_particles * sampler.num_candidates
    wide = [each.repeat_interleave(IMAGES * width // len(each), dim=0) for each in rows]

    pipe = Forced(plain.unet, plain.scheduler)
    with guide(
        pipe, brightness, method=method.split()[0], seed=seed, decode=as_is, **SIZES[method]
    ) as g:
        pipe(batch_size=IMAGES, num_inference_steps=STEPS, states=wide[:-1])
    for step, moved in enumerate(pipe.moved[:-1]):
        torch.testing.assert_close(moved, wide[step + 1], rtol=1e-5, atol=1e-5)
    found = witness.take()
    assert [each[0] for each in found] == [each[0] for each in choices]
    assert method == "best_of_n" or len(choices) >= STEPS // 2
    for (step, values, ratio, index), (_, its_values, its_ratio, its_index) in zip(
        choices, found, strict=True
    ):
        torch.testing.assert_close(its_values, values, rtol=1e-5, atol=1e-5)
        assert (ratio is None) == (its_ratio is None)
        if ratio is not None:
            torch.testing.assert_close(its_ratio, ratio, rtol=1e-4, atol=1e-4)
        if method == "svdd" and values.shape[1] > 1:
            top = values.topk(2, dim=1).values
            clear = top[:, 0] - top[:, 1] > 1e-4
            assert clear.any()
            assert torch.equal(its_index[clear], index[clear]), step
        else:
            assert torch.equal(its_index, index), step
    torch.testing.assert_close(g.result.rewards, due.rewards, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pipe.moved[-1][::width], due.samples, rtol=1e-5, atol=1e-5)
    for name in ("log_weights", "log_z"):
        if getattr(due, name) is not None and method != "svddr":
            mine = getattr(g.result.candidates, name)
            torch.testing.assert_close(mine, getattr(due, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", SIZES)
def test_end_to_end_as_native(method: str) -> None:
    pipe = build("ddpm-free")
    sampler = native(method, pipe)
    due = sampler.sample(IMAGES, num_steps=STEPS, seed=8, savings="none", progress=False)
    with guide(
        pipe, brightness, method=method.split()[0], seed=8, decode=as_is, **SIZES[method]
    ) as g:
        out = pipe(batch_size=IMAGES, num_inference_steps=STEPS, output_type="pt")
    torch.testing.assert_close(out.images, (due.samples / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.rewards, due.rewards, atol=1e-4, rtol=1e-4)
    assert torch.equal(g.result.chains, due.chains)


def flux_flow(pipe: Any, prompts: list[str]) -> tuple[fg.FlowMatching, dict[str, Tensor]]:
    """The flow of a Flux pipeline on its packed latents, and the conditioning of its prompts."""
    text, pooled, text_ids = pipe.encode_prompt(
        prompts, prompt_2=None, device="cpu", num_images_per_prompt=1, max_sequence_length=16
    )
    image_ids = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)

    def velocity(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        return pipe.transformer(
            hidden_states=x,
            timestep=t,
            guidance=torch.full((len(x),), 3.5),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]

    return fg.FlowMatching(velocity, (16, 16), eta=0.6), {"text": text, "pooled": pooled}


def test_flow_as_native() -> None:
    case = CASES["flux-euler"]
    pipe = case.build()
    diffusion, cond = flux_flow(pipe, case.call["prompt"])
    settings = dict(num_candidates=4, alpha=0.0)
    sampler = fg.SVDD(diffusion, brightness, **settings)
    with torch.no_grad():
        due = sampler.sample(2, num_steps=5, seed=3, cond=cond, progress=False)
    latents = diffusion.start(torch.arange(2), None, 3).x
    with guide(pipe, brightness, eta=0.6, seed=3, decode=as_is, **settings):
        out = pipe(**case.call | dict(latents=latents, output_type="latent"))
    torch.testing.assert_close(out.images, due.samples, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.rewards, due.rewards, atol=1e-5, rtol=1e-5)


# -- laws in closed form -------------------------------------------------------------------------


def gaussian_pipeline() -> Any:
    """The exact denoiser of a pixel that is N(.7, .8^2), on the schedule of `exact_gaussian`."""
    return known_pipeline(exact.prediction(), exact.BETA[1:])


def pixel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of [B, 1] as one of images of one pixel."""
    return lambda x, *t: function(x.flatten(1), *t)


def law_run(reward: Callable[[Tensor], Tensor], images: int, **settings: Any) -> Any:
    pipe = gaussian_pipeline()
    with guide(pipe, pixel(reward), alpha=exact.ALPHA, decode=as_is, seed=1, **settings) as g:
        pipe(batch_size=images, num_inference_steps=exact.STEPS, output_type="pt")
    return g.result


def test_unguided_law() -> None:
    pipe = gaussian_pipeline()
    with guide(pipe, None, method="unguided", seed=2) as g:
        pipe(batch_size=20_000, num_inference_steps=exact.STEPS, output_type="pt")
    mean, var = exact.ddpm().law()
    assert max(map(abs, exact.z_scores(g.result.candidates.latents, mean, var))) < 5
    assert max(map(abs, exact.z_scores(g.result.candidates.latents, mean + 0.05, var))) > 5


@pytest.mark.parametrize(
    ("method", "name", "sizes"),
    [
        ("smc", "linear", dict(num_particles=16)),
        ("smc", "quadratic", dict(num_particles=16, resampler="ssp")),
        ("smc", "linear", dict(num_particles=16, interval=4, window=(0.2, 0.9))),
        ("nested_smc", "quadratic", dict(num_particles=8, num_candidates=2)),
        ("fk", "linear", dict(num_particles=16, interval=5)),
        ("tds", "quadratic", dict(num_particles=16)),
    ],
)
def test_weighted_particles_target_the_tilted_law(
    method: str, name: str, sizes: dict[str, Any]
) -> None:
    reward, target = {
        "linear": (exact.linear_reward, exact.linear_target),
        "quadratic": (exact.quadratic_reward, exact.quadratic_target),
    }[name]
    groups = 1000
    found = law_run(reward, groups, method=method, **sizes).candidates
    mean, var, log_z = target(exact.ddpm())
    x = found.latents.double().view(groups, -1)
    scale, weight = (found.log_z - log_z).exp(), found.log_weights.exp()

    def misses(scale: Tensor, weight: Tensor) -> list[float]:
        """Standard errors off the target's mean and variance; Z times each is unbiased."""
        moments = ((x - mean), (x - mean) ** 2 - var)
        draws = [scale * (weight * moment).sum(1) for moment in moments]
        return [abs(float(each.mean() / each.std() * groups**0.5)) for each in draws]

    assert abs(float((scale.mean() - 1) / scale.std() * groups**0.5)) < 5
    assert max(misses(scale, weight)) < 5
    equal = torch.full_like(weight, 1 / weight.shape[1])
    assert max(misses(torch.ones_like(scale), equal)) > 5
    if method != "tds":  # whose groups differ far more than the particles of one
        assert max(misses(scale, equal)) > 5, "the weights of the last rewards are not needed"


def test_svdd_law() -> None:
    num, images = 4, 10_000
    found = law_run(exact.linear_reward, images, num_candidates=num).candidates.latents
    slopes = exact.SLOPE * exact.gains()
    mean, var = exact.svdd_linear_law(exact.ddpm(), num, slopes=slopes)
    assert max(map(abs, exact.z_scores(found[:, 0], mean, var))) < 5
    other = exact.svdd_linear_law(exact.ddpm(), 2 * num, slopes=slopes)
    assert max(map(abs, exact.z_scores(found[:, 0], *other))) > 5


def test_svdd_of_many_candidates_and_the_exact_value_nears_the_tilted_law() -> None:
    chain, num, images = exact.ddpm(), 64, 400
    value = pixel(exact.LinearValue(chain))
    result = law_run(exact.linear_reward, images, num_candidates=num, value=value)
    mean = exact.linear_target(chain)[0]
    found = result.candidates.latents[:, 0]
    due = exact.svdd_linear_law(chain, num)
    assert max(map(abs, exact.z_scores(found, *due))) < 5
    assert abs(due[0] - mean) < 0.05 * abs(mean - chain.law()[0])
    assert max(map(abs, exact.z_scores(found, *chain.law()))) > 5
    assert result.rewards.shape == (images,)


# -- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm-free", "sd-euler-a", "flux-euler-sde", "wan-euler-sde"])
def test_rows(name: str) -> None:
    case, num = CASES[name], 3
    pipe = case.build()
    images = 2
    call = case.call if case.groups == images else case.call | {"batch_size": images}
    steps = call["num_inference_steps"]
    with ExitStack() as stack:
        denoiser = stack.enter_context(counted(getattr(pipe, case.denoiser)))
        decoder = getattr(pipe, "vae", None)
        decoded = None if decoder is None else stack.enter_context(counted(decoder, "decode"))
        pipe(**call)
        per_image = denoiser.total // (steps * images)  # two with classifier-free guidance
        denoiser.rows.clear()
        if decoded is not None:
            decoded.rows.clear()
        with guide(pipe, brightness, num_candidates=num) as g:
            pipe(**call)
    cost = g.result.cost
    assert denoiser.total == cost.denoiser_rows
    assert denoiser.total == per_image * (images + (steps - 1) * num * images)
    assert cost.denoiser_rows_requested == per_image * steps * num * images
    if decoded is None:
        assert cost.decoder_rows == 0
        return
    assert decoded.total == cost.decoder_rows
    assert decoded.rows[-1] == images, "of the winners alone"
    scored = (steps - 1) * num * images + images  # candidates, then the final latents
    assert cost.decoder_rows == scored + images
    assert cost.reward_rows == scored
