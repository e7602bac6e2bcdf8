"""Every tiny pipeline, guided: winners in its own type, and nothing left behind."""

from __future__ import annotations

import filecmp
import importlib
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from guiding import build, images_of, noisy, stacked
from PIL import Image
from pipelines_tiny import CASES, WARNINGS
from pipelines_tiny_parts import Case

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers import guide
from fastguide.samplers import SVDD

pytestmark = WARNINGS
Tensor = torch.Tensor

REFUSED = {
    "sd-heun": "two model calls",
    "sd-pndm": "one each|once each|DDIMScheduler",
}
GUIDED = {name: case for name, case in CASES.items() if name not in REFUSED}
every_case = pytest.mark.parametrize("case", GUIDED.values(), ids=GUIDED.keys())


def tint(images: Tensor) -> Tensor:
    """A reward that knows channels, rows and columns apart: [B, C, ...] in [0, 1] -> [B]."""
    assert images.dtype == torch.float32
    assert images.dim() in (4, 5)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    height, width = images.shape[-2:]
    top = images[..., : height // 2, :].flatten(1).mean(1)
    left = images[..., : width // 2].flatten(1).mean(1)
    return 10 * (images[:, 0].flatten(1).mean(1) + 0.5 * top - 0.7 * left)


def seeded_call(pipe: Any, case: Case) -> Tensor:
    """An unguided call whose every draw is seeded."""
    torch.manual_seed(3)
    return images_of(case, pipe(**case.call, generator=torch.Generator().manual_seed(4)))


@every_case
def test_winners(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy: list[Tensor] = []
    own = SVDD.select

    def select(policy: Any, selection: Any) -> Any:
        choice = own(policy, selection)
        chosen = selection.values.flatten()[choice.index]
        assert torch.equal(chosen, selection.values.max(dim=1).values)
        greedy.append(selection.values)
        return choice

    monkeypatch.setattr(SVDD, "select", select)
    pipe = case.build()
    kind = type(pipe(**case.call))
    with guide(pipe, tint, num_candidates=3, alpha=0.0, **noisy(case)) as g:
        out = pipe(**case.call)
    assert type(out) is kind
    found = images_of(case, out)
    assert len(found) == case.groups
    if case.name != "ltx-image-euler-sde":  # the steps never see its first frame
        again = tint(found if case.output == "images" else found.transpose(1, 2))
        torch.testing.assert_close(again, out.rewards, atol=1e-3, rtol=1e-3)
    assert g.result.stopped is None
    assert g.result.trace is out.trace
    assert out.candidates.latents.shape[0] == case.groups
    assert greedy
    for values in greedy:
        assert values.shape == (case.groups, 3)
        assert (values.max(1).values > values.min(1).values).all(), "candidates differ"
    assert out.trace.values[-1].tolist() == out.rewards.tolist()
    if "ddim" not in case.name:  # the last step ends at the prediction that was valued before it
        torch.testing.assert_close(*out.trace.values[-2:], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("eta", [None, 1.0])
def test_refused(name: str, eta: float | None) -> None:
    pipe = build(name)
    with (
        pytest.raises(ArgumentError, match=type(pipe.scheduler).__name__) as caught,
        guide(pipe, tint, num_candidates=3, eta=eta),
    ):
        pipe(**CASES[name].call)
    assert re.search(r"use |exchange it|replace it", str(caught.value))
    for path in re.findall(r"fastguide\.integrations\.diffusers\.(\w+)", str(caught.value)):
        assert hasattr(importlib.import_module("fastguide.integrations.diffusers"), path)


@pytest.mark.parametrize("name", [*REFUSED, "sd-unipc", "flux-euler"])
def test_the_fix_that_messages_name(name: str) -> None:
    from fastguide.integrations.diffusers import stochastic_scheduler

    pipe = build(name)
    pipe.scheduler = stochastic_scheduler(pipe)
    with guide(pipe, tint, num_candidates=3, alpha=0.0):
        out = pipe(**CASES[name].call)
    assert out.rewards.shape == (2,)


@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
@pytest.mark.parametrize(
    "name", ["ddpm-free", "sd-checked-euler-a", "flux-dpm-sde", "wan-euler-sde"]
)
def test_output_types(name: str, output_type: str) -> None:
    case = CASES[name]
    if name.startswith("ddpm") and output_type == "latent":
        return
    pipe = case.build()
    call = case.call | dict(output_type=output_type)
    plain = getattr(pipe(**call), case.output)
    with guide(pipe, tint, num_candidates=2) as g:
        out = pipe(**call)
        (first, *_) = pipe(**call, return_dict=False)
    found = getattr(out, case.output)
    assert type(found) is type(plain)
    assert len(found) == len(plain) == case.groups
    assert type(found[0]) is type(plain[0])
    if output_type == "latent":
        shape = g.result.candidates.latents[:, 0].shape
        assert found.shape == shape
    if output_type == "pil" and case.output == "images":
        assert all(isinstance(each, Image.Image) for each in found)
    assert torch.equal(stacked(found), stacked(first)), "a tuple holds the same images"
    if name.startswith("sd-checked"):
        assert out.nsfw_content_detected in ([False, False], None)


# -- nothing is left behind ----------------------------------------------------------------------


def drawers() -> dict[str, Any]:
    """The `randn_tensor` that each module of diffusers calls."""
    return {
        name: vars(module)["randn_tensor"]
        for name, module in sys.modules.items()
        if name.startswith("diffusers") and "randn_tensor" in vars(module)
    }


def traces_of(pipe: Any) -> dict[str, Any]:
    """Classes of the pipeline and its parts, their attributes' names, and their methods."""
    parts = {
        name: part
        for name, part in vars(pipe).items()
        if isinstance(part, torch.nn.Module) or hasattr(part, "set_timesteps")
    }
    parts |= {"": pipe}
    found = {}
    for name, part in parts.items():
        found[name] = (type(part), frozenset(vars(part)), type(part).__dict__.get("__call__"))
        for method in ("forward", "decode", "step"):
            bound = getattr(part, method, None)
            found[f"{name}.{method}"] = getattr(bound, "__func__", bound)
    return found


class Halt(Exception):
    """Raised by a reward."""


@every_case
def test_restored(case: Case) -> None:
    pipe = case.build()
    before = seeded_call(pipe, case)
    traces, drawing, gradients = traces_of(pipe), drawers(), torch.is_grad_enabled()
    calls = []

    def halting(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            assert isinstance(pipe, traces[""][0])
            assert traces_of(pipe) != traces
            raise Halt
        return tint(images)

    with pytest.raises(Halt), guide(pipe, halting, num_candidates=2, **noisy(case)):
        pipe(**case.call)
    assert len(calls) == 2
    assert traces_of(pipe) == traces
    assert drawers() == drawing
    with guide(pipe, tint, num_candidates=2, **noisy(case)):
        pipe(**case.call)
    assert traces_of(pipe) == traces
    assert drawers() == drawing
    assert torch.is_grad_enabled() == gradients
    assert torch.equal(seeded_call(pipe, case), before)


@pytest.mark.parametrize(
    "name", ["ddpm-free", "sd-controlnet-ddim", "flux-euler", "ltx2-euler-sde"]
)
def test_save_pretrained_writes_the_same(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = build(name)
    pipe.save_pretrained(tmp_path / "outside")
    with guide(pipe, tint):
        pipe.save_pretrained(tmp_path / "inside")
    names = sorted(p.relative_to(tmp_path / "outside") for p in (tmp_path / "outside").rglob("*"))
    there = sorted(p.relative_to(tmp_path / "inside") for p in (tmp_path / "inside").rglob("*"))
    assert there == names
    for each in names:
        if (tmp_path / "outside" / each).is_file():
            assert filecmp.cmp(tmp_path / "outside" / each, tmp_path / "inside" / each, False)


@pytest.mark.parametrize("name", ["ddpm-free", "sd-euler-a", "wan-euler-sde"])
def test_another_thread_draws_its_own_noise(name: str) -> None:
    case = CASES[name]
    pipe, other = case.build(), case.build()
    with guide(pipe, tint, num_candidates=2):
        alone = images_of(case, pipe(**case.call))
    found: list[Tensor] = []

    def draw() -> Tensor:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(5)
        return images_of(case, other(**case.call, generator=generator))

    def work() -> None:
        found.append(draw())

    def busy(images: Tensor) -> Tensor:
        if not found:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        return tint(images)

    due = draw()
    with guide(pipe, busy, num_candidates=2):
        together = images_of(case, pipe(**case.call))
    assert torch.equal(found[0], due)
    assert torch.equal(together, alone)


def test_two_guided_pipelines_at_once() -> None:
    """Each thread's noise, steps and results are its own; the last one out restores the rest."""
    names = ("sd-euler-a", "sd-checked-euler-a", "flux-euler")
    drawing = drawers()
    meet = threading.Barrier(len(names), timeout=60)
    alone, together = {}, {}

    pipes = {name: build(name) for name in names}

    def run(name: str, reward: Any, found: dict[str, Tensor]) -> None:
        case, pipe = CASES[name], pipes[name]
        with guide(pipe, reward, num_candidates=2, seed=len(name), **noisy(case)):
            found[name] = images_of(case, pipe(**case.call))

    for name in names:
        run(name, tint, alone)

    def meeting(images: Tensor) -> Tensor:
        meet.wait()
        return tint(images)

    threads = [threading.Thread(target=run, args=(name, meeting, together)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together.keys() == alone.keys()
    for name in names:
        assert torch.equal(together[name], alone[name]), name
    assert drawers() == drawing


@pytest.mark.parametrize("name", ["ddpm-free", "sd-euler-a"])
def test_a_reward_that_samples_draws_its_own_noise(name: str) -> None:
    case = CASES[name]
    pipe, other = case.build(), case.build()
    call = case.call | {case.count: 2}

    def draw() -> Tensor:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(5)
        return images_of(case, other(**call, generator=generator))

    due, found = draw(), []

    def busy(images: Tensor) -> Tensor:
        found.append(draw())
        return tint(images)

    with guide(pipe, tint, num_candidates=2):
        alone = images_of(case, pipe(**case.call))
    with guide(pipe, busy, num_candidates=2):
        together = images_of(case, pipe(**case.call))
    assert found
    assert all(torch.equal(each, due) for each in found)
    assert torch.equal(together, alone)
