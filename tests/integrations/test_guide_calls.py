"""Calls of a guided pipeline: how many rows, which noise, how they end, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from guiding import as_is, brightness, build, counted, images_of, known_pipeline
from pipelines_tiny import CASES, WARNINGS
from pipelines_tiny_parts import PROMPTS

from fastguide.errors import (
    ArgumentError,
    NonFiniteError,
)
from fastguide.integrations.diffusers import guide

pytestmark = WARNINGS
Tensor = torch.Tensor


def run(name: str, call: dict[str, Any] | None = None, pipe: Any = None, **settings: Any) -> Any:
    """A guided call of a case, and what is known of it."""
    case = CASES[name]
    pipe = case.build() if pipe is None else pipe
    settings = dict(reward=brightness, num_candidates=3, alpha=0.01) | settings
    with guide(pipe, **settings) as g:
        out = pipe(**case.call | (call or {}))
    return images_of(case, out), g.result


# -- noise ---------------------------------------------------------------------------------------


ALONE: list[tuple[str, dict[str, Any]]] = [
    ("sd-euler-a", dict()),
    ("flux-dpm-sde", dict(method="smc", alpha=0.001)),
    ("sd-img2img-euler-a", dict(method="smc", alpha=0.001)),
    ("dit-ddpm", dict(method="nested_smc", num_particles=2, num_candidates=2)),
    ("sd-dpm-sde", dict(method="nested_smc", num_particles=2, num_candidates=2)),
    ("cogvideox-dpm", dict(method="beam", num_particles=2, num_candidates=2, alpha=None)),
    ("ltx2-euler-sde", dict(method="fk", interval=2)),
]


@pytest.mark.parametrize(("name", "settings"), ALONE, ids=[name for name, _ in ALONE])
def test_an_image_of_a_batch_is_the_image_alone(name: str, settings: dict[str, Any]) -> None:
    case = CASES[name]
    pipe = case.build()
    both, result = run(name, pipe=pipe, seed=3, **settings)
    assert result.chains.tolist() == [0, 1]
    one = {case.repeats: case.call[case.repeats][1:]}
    alone, result = run(name, one, pipe, seed=3, first_chain=1, **settings)
    assert result.chains.tolist() == [1]
    torch.testing.assert_close(alone[0], both[1], atol=1e-3, rtol=0)
    other, _ = run(name, one, pipe, seed=3, **settings)
    assert (other[0] - both[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["sd-img2img-euler-a", "sd-inpaint9-ddim", "ltx-image-euler-sde"])
def test_encoded_images_are_not_drawn_by_chain(name: str) -> None:
    """One image of one row looks like a draw for all rows, and is none."""
    case = CASES[name]
    pipe = case.build()
    plain = dict(method="unguided", reward=None, num_candidates=None, alpha=None)
    both, _ = run(name, pipe=pipe, **plain)
    alone, _ = run(name, dict(prompt=case.call["prompt"][1:]), pipe, first_chain=1, **plain)
    torch.testing.assert_close(alone[0], both[1], atol=1e-3, rtol=0)


def test_seeds_and_generators() -> None:
    pipe = build("sd-euler-a")
    first, _ = run("sd-euler-a", pipe=pipe, seed=1)
    torch.manual_seed(99)
    again, _ = run("sd-euler-a", dict(generator=torch.Generator().manual_seed(9)), pipe, seed=1)
    assert torch.equal(first, again)
    other, _ = run("sd-euler-a", pipe=pipe, seed=2)
    assert not torch.equal(first, other)
    with pytest.raises(ArgumentError, match="generator: a list of generators"):
        run("sd-euler-a", dict(generator=[torch.Generator() for _ in range(2)]), pipe)


def test_copies_of_a_particle_part_again() -> None:
    """After a resampling that leaves one ancestor, its copies draw different noise."""

    calls = []

    def favours_one(latents: Tensor) -> Tensor:
        calls.append(len(latents))
        return 100.0 * (torch.arange(len(latents)) % 8 == 3).double() * (len(calls) < 5)

    pipe = build("ddpm-free")
    settings = dict(method="smc", num_candidates=8, alpha=1.0, decode=as_is)
    with guide(pipe, favours_one, **settings) as g:
        pipe(batch_size=2, num_inference_steps=6, output_type="pt")
    latents = g.result.candidates.latents.flatten(2)
    for group in latents:
        gaps = torch.cdist(group, group) + torch.eye(len(group)) * 1e9
        assert gaps.min() > 0.1


# -- rows ----------------------------------------------------------------------------------------


MANY_NETWORKS = ["sd-controlnet-ddim", "sd-checked-euler-a", "ltx2-euler-sde"]


@pytest.mark.parametrize("name", ["sd-euler-a", "flux-euler-sde", "qwen-euler-sde", *MANY_NETWORKS])
@pytest.mark.parametrize("most", [4, 5])
def test_max_rows(name: str, most: int) -> None:
    case = CASES[name]
    pipe = case.build()
    due, free = run(name, pipe=pipe)
    sizes: list[int] = []

    def reward(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return brightness(images)

    with contextlib.ExitStack() as stack:
        watched = [
            stack.enter_context(counted(network, method))
            for network, method in (
                (getattr(pipe, case.denoiser), "forward"),
                (getattr(pipe, "controlnet", None), "forward"),
                (getattr(pipe, "safety_checker", None), "forward"),
                (pipe.vae, "decode"),
            )
            if network is not None
        ]
        found, result = run(name, pipe=pipe, max_rows=most, reward=reward)
    torch.testing.assert_close(found, due, atol=1e-4, rtol=0)
    assert max(sizes) == most
    for calls in watched:
        assert calls.rows
        assert max(calls.rows) <= most
    assert max(watched[0].rows) == most
    assert result.cost.denoiser_rows == free.cost.denoiser_rows
    assert result.cost.decoder_rows == free.cost.decoder_rows


def test_max_rows_of_as_many_residuals() -> None:
    """A ControlNet's list of four residuals, of four rows each, is no list of rows."""
    name = "sd-controlnet-ddim"
    call = dict(prompt=PROMPTS[0])
    due, _ = run(name, call, num_candidates=5)
    found, _ = run(name, call, num_candidates=5, max_rows=4)
    torch.testing.assert_close(found, due, atol=1e-4, rtol=0)


@pytest.mark.parametrize("eta", [None, 0.8])
@pytest.mark.parametrize(
    ("window", "wide"),
    [
        ((0.0, 1.0), [0, 1, 1, 1, 1]),
        ((0.4, 0.8), [0, 0, 0, 1, 1]),
        ((0.4, 1.0), [0, 0, 0, 1, 1]),
        ((0.0, 0.2), [0, 1, 0, 0, 0]),
    ],
)
def test_window(window: tuple[float, float], wide: list[int], eta: float | None) -> None:
    name = "flux-euler-sde" if eta is None else "flux-euler"
    pipe = build(name)
    with counted(pipe.transformer) as calls:
        _, result = run(name, pipe=pipe, window=window, eta=eta)
    assert calls.rows == [6 if each else 2 for each in wide]
    chosen = result.trace.values.isfinite().all(1).tolist()
    assert chosen[:-1] == [bool(each) for each in wide[1:]]
    assert chosen[-1], "the last images are rewarded"


def test_outside_the_window_the_scheduler_is_left_alone() -> None:
    """With eta in a window behind the start, the run begins as the pipeline's own ODE."""
    pipe = build("flux-euler")
    noise = torch.randn(2, 16, 16)
    due: list[Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        due.append(tensors["latents"])
        return {}

    call = dict(latents=noise, callback_on_step_end=keep)
    pipe(**CASES["flux-euler"].call | call)
    plain, due = due, []
    run("flux-euler", call, pipe, eta=1.0, window=(0.4, 1.0))
    for step in range(2):
        torch.testing.assert_close(due[step][::3], plain[step], atol=1e-5, rtol=0)
        assert torch.equal(due[step][0], due[step][2])
    assert not torch.equal(due[2][0], due[2][1])


@pytest.mark.parametrize("name", ["sd-euler-a", "sd-dpm-sde"])
@pytest.mark.parametrize("interval", [1, 2, 3])
def test_interval(name: str, interval: int) -> None:
    _, result = run(name, interval=interval, num_candidates=4)
    chosen = result.trace.values[:-1].isfinite().all(1).tolist()
    assert chosen == [step % interval == 0 for step in range(1, 5)]
    assert result.cost.denoiser_rows == 2 * (2 + 4 * 8)
    latents = result.candidates.latents
    assert latents.shape[1] == (1 if 4 % interval == 0 else 4), "those of the last steps compete"


@pytest.mark.parametrize("method", ["svdd", "smc", "fk", "beam", "nested_smc", "svddr"])
def test_interval_of_every_method(method: str) -> None:
    settings: dict[str, Any] = dict(method=method, interval=2)
    if method in ("beam", "nested_smc", "svddr"):
        settings |= dict(num_particles=2)
    if method == "beam":
        settings |= dict(alpha=None)
    _, result = run("sd-euler-a", **settings)
    chosen = result.trace.values[:-1].isfinite().all(1).tolist()
    assert chosen == [False, True, False, True]


# -- how a call ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_interrupts_restore(error: type[BaseException]) -> None:
    pipe = build("sd-euler-a")
    own = pipe.unet.forward
    kinds = type(pipe), type(pipe.scheduler)
    calls = []

    def reward(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise error
        return brightness(images)

    with pytest.raises(error), guide(pipe, reward, num_candidates=2):
        pipe(**CASES["sd-euler-a"].call)
    assert (type(pipe), type(pipe.scheduler)) == kinds
    assert pipe.unet.forward == own
    assert "forward" not in vars(pipe.unet)


def test_an_error_leaves_the_context_usable() -> None:
    pipe = build("sd-euler-a")
    broken = [True]

    def reward(images: Tensor) -> Tensor:
        if broken.pop() if broken else False:
            raise RuntimeError
        return brightness(images)

    with guide(pipe, reward, num_candidates=3, alpha=0.01) as g:
        with pytest.raises(RuntimeError):
            pipe(**CASES["sd-euler-a"].call)
        assert g.result is None
        out = pipe(**CASES["sd-euler-a"].call)
    due, _ = run("sd-euler-a", pipe=pipe)
    assert torch.equal(out.images, due)


@pytest.mark.parametrize("name", ["sd-euler-a", "flux-euler-sde"])
def test_interrupted_pipeline(name: str) -> None:
    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    images, result = run(name, dict(callback_on_step_end=stop))
    assert len(images) == 2
    assert images.isfinite().all()
    assert "ended before its last scheduler step" in result.stopped
    assert result.candidates is None
    assert result.rewards is None
    assert len(result.trace.time) == 1


def bad_in(call: int, rows: list[int], number: float) -> Any:
    """A reward that returns `number` for some rows of one of its calls."""
    calls = []

    def reward(images: Tensor) -> Tensor:
        calls.append(len(images))
        scores = brightness(images).double()
        if len(calls) == call:
            scores[rows] = number
        return scores

    return reward


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_reward_that_is_not_finite(number: float) -> None:
    message = rf"reward returned {number} at step 1 for chain 1, candidate 2.*on_invalid='reject'"
    with pytest.raises(NonFiniteError, match=message):
        run("sd-euler-a", reward=bad_in(2, [5], number))
    with pytest.raises(NonFiniteError, match="chain 8, candidate 2"):
        run("sd-euler-a", reward=bad_in(2, [5], number), first_chain=7)
    _, result = run("sd-euler-a", reward=bad_in(2, [3, 4], number), alpha=0.0, on_invalid="reject")
    assert result.rewards.isfinite().all()
    assert result.trace.invalid_steps.tolist() == [0] * 5
    _, result = run(
        "sd-euler-a", reward=bad_in(2, [3, 4, 5], number), alpha=0.0, on_invalid="reject"
    )
    assert result.trace.invalid_steps.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(("method", "call", "rows"), [("svdd", 5, [0, 1]), ("smc", 6, [0, 1, 2])])
def test_last_reward_that_is_not_finite(method: str, call: int, rows: list[int]) -> None:
    reward = bad_in(call, rows, float("nan"))
    with pytest.raises(NonFiniteError, match=r"chain 0 .*(not finite|invalid).*fix"):
        run("sd-euler-a", reward=reward, method=method, on_invalid="reject")


def test_denoiser_that_is_not_finite() -> None:
    calls = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        out = x.clone()
        if len(calls) == 3:
            out[4] = float("nan")
        return out

    betas = torch.linspace(1e-3, 0.2, 10).numpy()
    pipe = known_pipeline(predict, betas)
    with (
        pytest.raises(NonFiniteError, match="step 1 for chain 1, candidate 1"),
        guide(pipe, brightness, num_candidates=3),
    ):
        pipe(batch_size=2, num_inference_steps=5)
    calls.clear()
    with guide(pipe, brightness, num_candidates=3, on_invalid="reject"):
        out = pipe(batch_size=2, num_inference_steps=5, output_type="pt")
    assert out.images.isfinite().all()


def test_one_guided_pipeline_inside_another() -> None:
    outer, inner = build("sd-euler-a"), build("sd-dpm-sde")
    due_inner, _ = run("sd-dpm-sde", pipe=inner, seed=4)
    due_outer, _ = run("sd-euler-a", pipe=outer)
    made = []

    def reward(images: Tensor) -> Tensor:
        made.append(run("sd-dpm-sde", pipe=inner, seed=4)[0])
        return brightness(images)

    found, _ = run("sd-euler-a", pipe=outer, reward=reward)
    assert torch.equal(found, due_outer)
    assert all(torch.equal(each, due_inner) for each in made)


def test_an_outer_wrapper_is_still_there() -> None:
    pipe = build("sd-euler-a")
    with counted(pipe.unet) as calls:
        placed = vars(pipe.unet)["forward"]
        run("sd-euler-a", pipe=pipe)
        assert vars(pipe.unet)["forward"] is placed
    assert calls.total == 2 * (2 + 4 * 6)


def test_guided_twice() -> None:
    """The inner context decides; the outer one goes on where it ends."""
    pipe = build("sd-euler-a")
    due, _ = run("sd-euler-a", pipe=pipe)
    with guide(pipe, brightness, num_candidates=2, alpha=0.02) as outer:
        alone = pipe(**CASES["sd-euler-a"].call).images
        outer.result = None
        inner, _ = run("sd-euler-a", pipe=pipe)
        assert outer.result is None
        again = pipe(**CASES["sd-euler-a"].call).images
    assert torch.equal(inner, due)
    assert torch.equal(again, alone)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["ddpm-free", "sd-euler-a", "sd-ddim", "flux-euler-sde"])
def test_few_steps(name: str, steps: int) -> None:
    images, result = run(name, dict(num_inference_steps=steps))
    assert result.stopped is None
    assert result.rewards.shape == (len(images),)
    assert result.trace.values.shape == (steps, len(images))


def test_run_that_ends_early() -> None:
    """A base model that leaves the last steps to a refiner."""
    call = dict(denoising_end=0.6, output_type="latent")
    latents, result = run("sdxl-euler-a", call)
    assert latents.shape == (2, 4, 8, 8)
    assert "ended before its last scheduler step" in result.stopped
    assert result.trace.values.isfinite().all()
