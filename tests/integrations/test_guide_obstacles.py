"""What pipelines do that guidance must cope with, or refuse with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from guiding import Choices, Spy, brightness, build, counted, images_of
from pipelines_tiny import CASES, WARNINGS
from pipelines_tiny_parts import PROMPTS, picture
from pipelines_tiny_unet import stable_diffusion

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers import guide
from fastguide.integrations.diffusers.transition import gather_history
from fastguide.samplers import SMC, SVDD

pytestmark = WARNINGS
Tensor = torch.Tensor


def run(name: str, call: dict[str, Any] | None = None, pipe: Any = None, **settings: Any) -> Any:
    """A guided call of a case, and what is known of it."""
    case = CASES[name]
    pipe = case.build() if pipe is None else pipe
    settings = dict(num_candidates=3, alpha=0.01) | settings
    with guide(pipe, brightness, **settings) as g:
        out = pipe(**case.call | (call or {}))
    return images_of(case, out), g.result


# -- conditioning --------------------------------------------------------------------------------


PREDICTING = ["ddpm-clipped", "sd-euler-a", "sd-ddim", "sd-lcm", "dit-ddpm", "cogvideox-dpm"]
PREDICTING += ["sd-dpm-sde", "pixart-dpm-sde", "sana-dpm-sde", "flux-dpm-sde", "wan-dpm-sde"]


@pytest.mark.parametrize("name", PREDICTING)
def test_predictions_are_those_of_the_scheduler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one denoiser call or two, classifier-free guidance, and every kind of output."""
    seen: list[Tensor] = []

    def keep(latents: Tensor) -> Tensor:
        seen.append(latents)
        return latents

    case = CASES[name]
    pipe = case.build()
    spy = Spy(monkeypatch, pipe.scheduler)
    with guide(pipe, brightness, num_candidates=3, alpha=0.01, decode=keep):
        pipe(**case.call)
    (steps,) = spy.steps
    assert len(seen) == len(steps)
    for valued, asked in zip(seen[:-1], steps[1:], strict=True):
        if asked.after:
            predicted = asked.after[-1]
        elif isinstance(asked.result, tuple):
            predicted = asked.result[1]
        else:
            predicted = asked.result.pred_original_sample
        assert len(valued) == 3 * case.groups
        groups = valued.unflatten(0, (case.groups, 3))
        gap = (groups - predicted[: case.groups, None]).abs().flatten(2).amax(2)
        assert (gap.amin(1) < 1e-4 * predicted.abs().max()).all(), "one of the candidates"
        assert (gap.amax(1) > 1e-3).all(), "and not another"


def test_doubled_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = []
    pipe = build("dit-ddpm")
    with guide(pipe, brightness, num_candidates=3):
        kind = type(pipe.scheduler)
        own = kind.step
        monkeypatch.setattr(
            kind, "step", lambda *args, **kw: returned.append(own(*args, **kw)) or returned[-1]
        )
        pipe(**CASES["dit-ddpm"].call)
    for result in returned:
        first, second = result.prev_sample.chunk(2)
        assert len(first) == 6
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    "name", ["sana-dpm-sde", "qwen-euler-sde", "ltx-image-euler-sde", "ltx2-euler-sde"]
)
def test_masks_in_another_order_are_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"differs among the rows of one image.*each prompt"):
        run(name, dict(prompt=PROMPTS))
    only = dict(prompt=PROMPTS[0])
    if "negative_prompt" in CASES[name].call:
        only["negative_prompt"] = "a"
    images, _ = run(name, only)
    assert len(images) == 1


@pytest.mark.parametrize("method", ["svdd", "smc"])
@pytest.mark.parametrize("name", ["sd-img2img-euler-a", "sd-inpaint-euler-a", "sd-inpaint9-ddim"])
def test_lists_of_images_are_refused(name: str, method: str) -> None:
    other = picture().rotate(90)
    with pytest.raises(ArgumentError, match="once for each image"):
        run(name, dict(image=[picture(), other]), method=method)
    images, _ = run(name, dict(prompt=PROMPTS[0], image=[other]), method=method)
    assert len(images) == 1


def test_list_of_control_images() -> None:
    name, images = "sd-controlnet-ddim", [picture(), picture().rotate(90)]
    both, _ = run(name, dict(image=images))
    for k in range(2):
        alone, _ = run(name, dict(prompt=PROMPTS[k], image=images[k]), first_chain=k)
        torch.testing.assert_close(alone[0], both[k], atol=1e-4, rtol=0)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("name", ["sd-euler-a", "sdxl-euler-a", "sd3-euler-sde", "flux-euler-sde"])
def test_prompt_embeds(name: str, copies: int) -> None:
    pipe = build(name)
    names = {"sd": 2, "sdxl": 4, "sd3": 4, "flux": 2}[name.split("-")[0]]
    labels = ["prompt_embeds", "negative_prompt_embeds"]
    labels += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    if name.startswith("flux"):
        made = pipe.encode_prompt(PROMPTS, None, device="cpu", max_sequence_length=16)
        labels = ["prompt_embeds", "pooled_prompt_embeds"]
    elif name.startswith("sd3"):
        made = pipe.encode_prompt(PROMPTS, None, None, device="cpu", max_sequence_length=16)
    elif name.startswith("sdxl"):
        made = pipe.encode_prompt(PROMPTS, device="cpu")
    else:
        made = pipe.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["", ""])
    given = dict(zip(labels[:names], made[:names], strict=True)) | dict(prompt=None)
    count = dict(num_images_per_prompt=copies)
    due, _ = run(name, count, pipe)
    found, result = run(name, given | count, pipe)
    assert len(found) == 2 * copies
    torch.testing.assert_close(found, due, atol=1e-5, rtol=0)
    assert result.chains.tolist() == list(range(2 * copies))


@pytest.mark.parametrize("negative", ["a fish", ["a fish"]])
def test_prompt_embeds_with_a_negative_prompt(negative: Any) -> None:
    pipe = build("sd-euler-a")
    embeds, _ = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, False)
    due, _ = run("sd-euler-a", dict(prompt=PROMPTS[0], negative_prompt="a fish"), pipe)
    given = dict(prompt=None, prompt_embeds=embeds, negative_prompt=negative)
    found, _ = run("sd-euler-a", given, pipe)
    torch.testing.assert_close(found, due, atol=1e-5, rtol=0)


def test_several_images_of_a_prompt() -> None:
    images, result = run("sd-euler-a", dict(num_images_per_prompt=2, guidance_scale=20.0))
    assert len(images) == 4
    for k, prompt in enumerate([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]):
        alone, _ = run("sd-euler-a", dict(prompt=prompt, guidance_scale=20.0), first_chain=k)
        torch.testing.assert_close(alone[0], images[k], atol=1e-3, rtol=0)
    assert result.rewards.shape == (4,)


# -- schedulers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["smc", "svdd"])
@pytest.mark.parametrize("name", ["sd-dpm-sde", "flux-dpm-sde"])
def test_history_follows_ancestors(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build(name)
    spy = Spy(monkeypatch, pipe.scheduler)
    choices = Choices(monkeypatch, {"smc": SMC, "svdd": SVDD}[method])
    num = 4
    run(name, pipe=pipe, method=method, num_candidates=num, alpha=1e-4)
    (steps,) = spy.steps
    width = num if method == "svdd" else 1
    moved = 0
    for s in range(1, len(steps)):
        index = choices.made[s - 1] // width
        moved += int((index != torch.arange(len(index))).sum())
        assert torch.equal(steps[s].before[-1], steps[s - 1].after[-1][index])
        assert len(steps[s].arguments["sample"]) == len(index)
    assert method == "svdd" or moved > 0, "no particle was replaced"


def test_the_end_of_the_window_clears_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build("sd-unipc")
    spy = Spy(monkeypatch, pipe.scheduler)
    run("sd-unipc", pipe=pipe, eta=1.0, window=(0.0, 0.4))
    (steps,) = spy.steps
    assert [len(each.before) for each in steps] == [0, 1, 0, 1, 2]


def test_gathered_history() -> None:
    kept = torch.arange(6.0).view(3, 2)
    scheduler = build("sd-dpm-sde").scheduler
    scheduler.set_timesteps(3)
    table = scheduler.timesteps
    scheduler.model_outputs = [None, kept]
    scheduler.sample = kept + 1
    gather_history(scheduler, 3, torch.tensor([2, 0, 2, 1]))
    due = kept[[2, 0, 2, 1]]
    assert scheduler.model_outputs[0] is None
    assert torch.equal(scheduler.model_outputs[1], due)
    assert torch.equal(scheduler.sample, due + 1)
    assert scheduler.timesteps is table, "as many as there are rows, and no state"


@pytest.mark.parametrize("method", ["smc", "svdd"])
def test_history_in_the_pipeline_follows_ancestors(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build("cogvideox-dpm")
    spy = Spy(monkeypatch, pipe.scheduler)
    choices = Choices(monkeypatch, {"smc": SMC, "svdd": SVDD}[method])
    num = 4
    run("cogvideox-dpm", pipe=pipe, method=method, num_candidates=num, alpha=1e-4)
    (steps,) = spy.steps
    width = num if method == "svdd" else 1
    for s in range(1, len(steps)):
        index = choices.made[s - 1] // width
        old = steps[s].arguments["old_pred_original_sample"]
        assert torch.equal(old, steps[s - 1].result[1][index])


def test_second_order_chooses_where_it_starts_a_step() -> None:
    pipe = build("sd-kdpm2-a")
    with counted(pipe.unet) as calls:
        _, result = run("sd-kdpm2-a", pipe=pipe)
    # candidates exist between the second call of a step and the first of the next
    assert calls.rows == [4, 4, 12, 4, 12, 4, 12, 4, 12]
    valued = result.trace.values.isfinite().all(1).tolist()
    assert valued == [False, True, False, True, False, True, False, True, True]


def test_sound_follows_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build("ltx2-euler-sde")
    spy = Spy(monkeypatch, pipe.scheduler)
    choices = Choices(monkeypatch, SVDD)
    noise: list[Tensor] = []
    with guide(pipe, brightness, num_candidates=3, alpha=0.0):
        kind = type(pipe.scheduler)
        own = kind.step

        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            result = own(scheduler, *args, **kwargs)
            if result[0].shape[1:] == (5, 4):
                noise.append(result[0])
            return result

        monkeypatch.setattr(kind, "step", step)
        out = pipe(**CASES["ltx2-euler-sde"].call)
    _, sound = spy.steps
    assert len(out.audio) == 2
    for s in range(1, len(sound)):
        index = choices.made[s - 1]
        assert torch.equal(sound[s].arguments["sample"], noise[s - 1][index])
        assert (noise[s - 1][0] != noise[s - 1][1]).any(), "candidates of the sound differ"


def test_the_winner_keeps_its_own_sound() -> None:
    case = CASES["ltx2-euler-sde"]
    pipe = case.build()
    sounds = []
    for k in range(3):

        def prefers(frames: Tensor, k: int = k) -> Tensor:
            return (torch.arange(len(frames)) % 3 == k).double()

        with guide(pipe, prefers, method="best_of_n", num_candidates=3):
            sounds.append(pipe(**case.call).audio)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (sounds[i] - sounds[j]).abs().flatten(1).amax(1).min() > 0


def test_eta_is_the_schedulers_own_noise() -> None:
    due, _ = run("flux-euler-sde")
    found, _ = run("flux-euler", eta=1.0)
    torch.testing.assert_close(found, due, atol=1e-5, rtol=0)
    less, _ = run("flux-euler", eta=0.5)
    assert (less - due).abs().max() > 1e-3


def test_eta_in_place_of_ddims() -> None:
    due, _ = run("sd-ddim", dict(eta=0.7))
    found, _ = run("sd-ddim", dict(eta=0.0), eta=0.7)
    torch.testing.assert_close(found, due, atol=1e-4, rtol=0)


def test_eta_makes_euler_ancestral() -> None:
    call = CASES["sd-euler-a"].call
    made = []
    for kind, settings in ((EulerAncestralDiscreteScheduler, {}), (EulerDiscreteScheduler, {})):
        pipe = stable_diffusion(kind, steps_offset=1)
        settings = {} if made else settings
        eta = {} if kind is EulerAncestralDiscreteScheduler else {"eta": 1.0}
        made.append(run("sd-euler-a", call, pipe, **eta)[0])
    torch.testing.assert_close(made[1], made[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["flux-euler", "sd-unipc", "sd-heun", "sd-ddim"])
def test_without_noise_is_refused(name: str) -> None:
    call = dict(eta=0.0) if name == "sd-ddim" else None
    message = r"adds no noise.*exchange it: pipe\.scheduler = "
    with pytest.raises(ArgumentError, match=message) as caught:
        run(name, call)
    assert ("pass eta=1.0" in str(caught.value)) == (name != "sd-heun"), "where that works"
    with pytest.raises(ArgumentError, match=message):
        run(name, call, method="smc")
    if name != "sd-heun":
        with pytest.raises(ArgumentError, match=message):
            run(name, call, eta=0.0)
        with pytest.raises(ArgumentError, match=message):
            run(name, call, window=(0.4, 0.8))


@pytest.mark.parametrize("name", ["flux-euler", "sd-unipc", "sd-heun"])
def test_best_of_n_needs_no_noise(name: str) -> None:
    images, result = run(name, method="best_of_n", alpha=None)
    assert len(images) == 2
    best = result.candidates.rewards.max(1).values
    assert torch.equal(result.rewards, best)


class Own(EulerAncestralDiscreteScheduler):
    """Draws noise in a way of its own."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        prev, x0 = super().step(model_output, timestep, sample, **kwargs)
        return prev + torch.randn_like(prev), x0


def test_noise_drawn_elsewhere_is_refused() -> None:
    pipe = stable_diffusion(Own, steps_offset=1)
    with pytest.raises(ArgumentError, match="Own draws noise in a way of its own"):
        run("sd-euler-a", pipe=pipe)


def test_signature_and_class_stay_recognisable() -> None:
    import copy
    import inspect

    pipe = build("sd-ddim")
    before = inspect.signature(pipe.scheduler.step), inspect.signature(type(pipe).__call__)
    with guide(pipe, brightness):
        assert isinstance(pipe.scheduler, DDIMScheduler)
        assert type(pipe.scheduler).__name__ == "DDIMScheduler"
        after = inspect.signature(pipe.scheduler.step), inspect.signature(type(pipe).__call__)
        assert after == before
        assert isinstance(copy.deepcopy(pipe.scheduler), DDIMScheduler)
