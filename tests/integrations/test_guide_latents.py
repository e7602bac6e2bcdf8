"""States that a pipeline slices, packs, edits or rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from guiding import Spy, brightness, build, images_of
from pipelines_tiny import CASES, WARNINGS

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers import guide

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


def test_first_frame_given_from_outside() -> None:
    name = "ltx-image-euler-sde"
    case = CASES[name]
    pipe = case.build()
    decoded: list[Tensor] = []
    own = pipe.vae.decode
    pipe.vae.decode = lambda z, *args, **kw: decoded.append(z) or own(z, *args, **kw)
    pipe(**case.call)
    frame = decoded[0][:1, :, :1]
    del pipe.vae.decode

    def with_frame(latents: Tensor) -> Tensor:
        vae = pipe.vae
        scaled = pipe._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        scaled = torch.cat([frame.expand(len(scaled), -1, -1, -1, -1), scaled], dim=2)
        return (vae.decode(scaled, None, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    frames, result = run(name, pipe=pipe, decode=with_frame)
    torch.testing.assert_close(brightness(frames), result.rewards, atol=1e-5, rtol=0)


def test_callback_that_edits_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    def clear(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors["latents"].clone()
        assert len(latents) == 6
        latents[:, 3] = 0.25
        return {"latents": latents}

    for dtype in (torch.float32, torch.bfloat16):
        pipe = build("sd-euler-a").to(dtype)
        spy = Spy(monkeypatch, pipe.scheduler)
        edited, _ = run("sd-euler-a", dict(callback_on_step_end=clear), pipe)
        plain, _ = run("sd-euler-a", pipe=pipe)
        (steps,) = spy.steps
        edits = [bool((each.arguments["sample"][:, 3] == 0.25).all()) for each in steps]
        assert edits == [False, *[True] * 4, *[False] * 5]
        assert not torch.equal(edited, plain)


@pytest.mark.parametrize("name", ["sd-euler-a", "flux-euler-sde", "wan-dpm-sde", "dit-ddpm"])
def test_low_precision_keeps_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build(name).to(torch.bfloat16)
    spy = Spy(monkeypatch, pipe.scheduler)
    images, result = run(name, pipe=pipe)
    assert images.isfinite().all()
    latents = result.candidates.latents
    assert latents.dtype == torch.float32
    (steps,) = spy.steps
    for asked in steps:
        assert asked.arguments["sample"].dtype == torch.float32
        assert asked.arguments["model_output"].dtype == torch.float32
    last = steps[-1].arguments["sample"]
    assert (last != last.bfloat16().float()).any(), "states are kept as they were computed"


def test_callable_decoder_gets_packed_latents() -> None:
    shapes = set()

    def decode(latents: Tensor) -> Tensor:
        shapes.add(tuple(latents.shape[1:]))
        return latents

    run("flux-euler-sde", decode=decode)
    assert shapes == {(16, 16)}


def test_callable_decoder_of_pictures_equals_the_pipelines_own() -> None:
    pipe = build("sd-euler-a")

    def decode(latents: Tensor) -> Tensor:
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)

    own, _ = run("sd-euler-a", pipe=pipe)
    given, result = run("sd-euler-a", pipe=pipe, decode=decode)
    assert torch.equal(own, given)
    assert result.cost.decoder_rows == 4 * 6 + 2 + 2


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["sd-euler-a", "flux-euler-sde"])
def test_latents_given_by_the_user(name: str, rows: int) -> None:
    shape = (4, 8, 8) if name.startswith("sd") else (16, 16)
    latents = torch.randn(rows, *shape)
    pipe = build(name)
    due, _ = run(name, dict(latents=latents.expand(2, *shape)), pipe)
    found, _ = run(name, dict(latents=latents), pipe)
    other, _ = run(name, pipe=pipe)
    torch.testing.assert_close(found, due, atol=1e-6, rtol=0)
    assert (found - other).abs().max() > 1e-3
    with pytest.raises(ArgumentError, match="one row or one per image, 2, got 3"):
        run(name, dict(latents=torch.randn(3, *shape)), pipe)
