"""What `guide` refuses, and how its messages read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from guiding import brightness, build, images_of
from pipelines_tiny import CASES, WARNINGS
from pipelines_tiny_parts import PROMPTS

from fastguide.errors import (
    ArgumentError,
    DtypeError,
    FastguideError,
    ShapeError,
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


# -- what is refused -----------------------------------------------------------------------------


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (dict(method="sdd"), ArgumentError, "method must be one of unguided, best_of_n, svdd"),
    (dict(num_candidates=0), ArgumentError, "num_candidates must be at least 1, got 0"),
    (dict(num_candidates=2.5), DtypeError, "num_candidates must be an int, got float"),
    (dict(alpha=-1.0), ArgumentError, "alpha must not be negative"),
    (dict(method="smc", alpha=0.0), ArgumentError, "alpha must be positive"),
    (dict(eta=1.5), ArgumentError, r"eta must lie in \[0, 1\] or be None, got 1.5"),
    (dict(eta=float("nan")), ArgumentError, "eta must lie in"),
    (dict(window=(0.5, 0.5)), ArgumentError, r"window must be \(start, stop\)"),
    (dict(window=(-0.1, 1.0)), ArgumentError, "window must be"),
    (dict(interval=0), ArgumentError, "interval must be an int of at least 1, got 0"),
    (dict(interval=1.5), ArgumentError, "interval must be an int"),
    (dict(seed=-1), ArgumentError, "seed must lie in"),
    (dict(seed="a"), DtypeError, "seed must be an int"),
    (dict(first_chain=-1), ArgumentError, "first_chain must not be negative, got -1"),
    (dict(max_rows=0), ArgumentError, "max_rows must be at least 1 or None, got 0"),
    (dict(on_invalid="skip"), ArgumentError, "on_invalid must be 'raise' or 'reject'"),
    (dict(reward=None), DtypeError, "method 'svdd' needs a reward"),
    (dict(reward=3), DtypeError, "reward must be a callable"),
    (dict(resampler="ssp"), ArgumentError, "resampler: method 'svdd' has no such setting"),
    (dict(num_particles=2), ArgumentError, "num_particles: method 'svdd' has no such setting"),
    (dict(method="smc", num_particles=2), ArgumentError, "has one size"),
    (dict(method="smc", resampler="x"), ArgumentError, "resampler must be one of"),
    (dict(method="das"), ArgumentError, "num_steps: method 'das' needs it"),
    (dict(method="dps", num_candidates=2), ArgumentError, "num_candidates: method 'dps'"),
    (dict(value="lookahead"), ArgumentError, "value must be 'posterior_mean'"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), BAD, ids=lambda each: str(each)[:40])
def test_bad_settings(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    pipe = build("ddpm-free")
    given = dict(reward=brightness, num_candidates=3) | settings
    if settings.get("method") in ("das",):
        del given["num_candidates"]
    with pytest.raises(kind, match=message), guide(pipe, **given):
        pytest.fail("bad settings are reported before any work")
    assert type(pipe).__name__ == "DDPMPipeline"


@pytest.mark.parametrize("pipe", [None, lambda prompt: prompt, object()])
def test_what_is_no_pipeline(pipe: Any) -> None:
    with (
        pytest.raises(DtypeError, match="must be a diffusers pipeline with a scheduler"),
        guide(pipe, brightness),
    ):
        pass


@pytest.mark.parametrize(
    ("reward", "kind", "message"),
    [
        (lambda images: images.flatten(1).mean(1, keepdim=True), ShapeError, r"\.squeeze\(-1\)"),
        (lambda images: images.mean(), ShapeError, "one number per row"),
        (lambda images: ["a"] * len(images), DtypeError, "must return 6 numbers"),
    ],
)
def test_what_a_reward_returns(reward: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        run("sd-euler-a", reward=reward)


def test_decoders() -> None:
    with pytest.raises(DtypeError, match="decode must be 'vae' or a callable"):
        run("sd-euler-a", decode="tiny")
    shapes = set()

    def value(latents: Tensor, t: Tensor) -> Tensor:
        shapes.add((tuple(latents.shape[1:]), t.dtype, tuple(t.shape) == (len(latents),)))
        return latents.flatten(1).mean(1)

    _, result = run("sd-euler-a", value=value)
    assert shapes == {((4, 8, 8), torch.float32, True)}
    assert result.cost.decoder_rows == 2 + 2, "values of latents decode nothing"


def test_feature_caches_are_refused() -> None:
    pipe = build("flux-euler-sde")
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ArgumentError, match=r"pipe\.transformer\.disable_cache\(\) first"):
        run("flux-euler-sde", pipe=pipe)
    pipe.transformer.disable_cache()
    images, _ = run("flux-euler-sde", pipe=pipe)
    assert len(images) == 2


def test_messages_name_a_way_out() -> None:
    """Every error of a call says more than what is wrong."""
    pipe = build("sd-euler-a")
    for call, settings in (
        (dict(latents=torch.zeros(3, 4, 8, 8)), {}),
        (dict(generator=[torch.Generator()] * 2), {}),
        (dict(num_images_per_prompt=0), {}),
        (dict(eta=0.0), dict(pipe=build("sd-ddim"), name="sd-ddim")),
        (dict(prompt=PROMPTS, image=None), dict(pipe=build("sd-heun"), name="sd-heun")),
    ):
        name = settings.pop("name", "sd-euler-a")
        call = {key: value for key, value in call.items() if value is not None}
        with pytest.raises(FastguideError) as caught:
            run(name, call, **dict(pipe=pipe) | settings)
        assert re.search(r"must (have|be)|leave it away|pass |use |exchange", str(caught.value))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eta": "a"}, "eta: expected a number"),
        ({"window": 0.5}, "window must be two numbers"),
        ({"window": ("a", 1)}, "window: expected a number"),
        ({"max_rows": 2.5}, "max_rows must be an int or None"),
    ],
)
def test_other_types_are_named(arguments, words):
    pipe = CASES["ddpm-free"].build()
    with pytest.raises(TypeError, match=words), guide(pipe, lambda x: x, **arguments):
        pass


def test_a_scheduler_that_cannot_take_eta_is_to_be_exchanged():
    case = CASES["sd-pndm"]
    pipe = case.build()
    with (
        guide(pipe, lambda x: x.flatten(1).mean(1), num_candidates=2),
        pytest.raises(ValueError, match=r"are the same; exchange it: pipe\.scheduler"),
    ):
        pipe(**case.call)
