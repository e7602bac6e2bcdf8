"""Every error names the argument, the value that came, and the fix."""

from __future__ import annotations

import exact
import pytest
import torch

import fastguide as fg
from fastguide.errors import (
    ArgumentError,
    CheckpointError,
    DtypeError,
    NonFiniteError,
    OutOfMemoryError,
    ShapeError,
)


def run(sampler, n=8, **options):
    return sampler.sample(n, num_steps=exact.STEPS, progress=False, **options)


def with_denoiser(denoiser, **options) -> fg.SVDD:
    diffusion = fg.MaskedDiffusion(denoiser, 3, 2)
    return fg.SVDD(diffusion, exact.reward, num_candidates=4, alpha=0.5, **options)


def with_reward(reward, **options) -> fg.SVDD:
    return fg.SVDD(exact.diffusion(), reward, num_candidates=4, alpha=0.5, **options)


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        (lambda x: torch.zeros(2, 3, 2), ShapeError, r"denoiser must return logits \[1, 3, 2\]"),
        (lambda x: torch.zeros(len(x), 3, 4), ShapeError, r"\(or 3 columns\), got \[1, 3, 4\]"),
        (lambda x: torch.zeros(len(x), 3), ShapeError, r"got \[1, 3\]"),
        (lambda x: torch.zeros(len(x), 3, 2, dtype=torch.int64), DtypeError, "int64"),
        (lambda x: [[0.0]], DtypeError, "got list"),
    ],
)
def test_denoiser_output(output, error, text):
    # the first call has one row: all chains start from the same state
    with pytest.raises(error, match=text):
        run(with_denoiser(lambda x, t: output(x)))


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        (lambda x: torch.zeros(len(x), 1), ShapeError, r"drop the last dimension with .squeeze"),
        (lambda x: torch.zeros(len(x) + 1), ShapeError, r"one number per row, \[\d+\], got"),
        (lambda x: 1.0, ShapeError, r"got \[\]"),
        (lambda x: ["good"] * len(x), DtypeError, "numbers"),
        (lambda x: torch.zeros(len(x), dtype=torch.bool), DtypeError, "real numbers"),
    ],
)
def test_reward_output(output, error, text):
    with pytest.raises(error, match=text):
        run(with_reward(output))


def test_reward_may_return_lists_and_arrays():
    tensor = run(with_reward(exact.reward)).samples
    assert torch.equal(tensor, run(with_reward(lambda x: exact.reward(x).tolist())).samples)
    assert torch.equal(tensor, run(with_reward(lambda x: exact.reward(x).numpy())).samples)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_reward_names_step_and_chain(bad):
    def reward(x):
        return exact.reward(x).masked_fill(exact.clean_index(x) == 5, bad)

    with pytest.raises(NonFiniteError, match=r"reward returned .* at step \d+ for chain \d+, cand"):
        run(with_reward(reward), first_chain=100)


def test_non_finite_denoiser_names_step_and_chain():
    def denoiser(x, t):
        logits = exact.denoiser(x, t).clone()
        logits[(x != 2).sum(1) == 2] = torch.nan
        return logits

    with pytest.raises(NonFiniteError, match=r"denoiser returned NaN.* at step 0 for chain"):
        run(with_denoiser(denoiser), 64)


def test_denoiser_that_allows_nothing():
    with pytest.raises(NonFiniteError, match="no allowed token at step 0"):
        run(with_denoiser(lambda x, t: torch.full((len(x), 3, 2), -torch.inf)))


def test_rejected_candidates_are_never_chosen():
    def reward(x):
        return exact.reward(x).masked_fill(x[:, 0] == 1, torch.nan)

    sampler = fg.SVDD(exact.diffusion(), reward, num_candidates=20, alpha=0.5, on_invalid="reject")
    result = run(sampler, 500)
    assert bool((result.samples[:, 0] == 0).all())
    assert bool(result.rewards.isfinite().all())


def test_step_without_a_valid_candidate_falls_back_and_is_counted():
    def value(x, t):
        return torch.full((len(x),), torch.nan)

    sampler = fg.SVDD(
        exact.diffusion(), exact.reward, value, num_candidates=4, alpha=0.5, on_invalid="reject"
    )
    result = run(sampler, 50)
    assert result.trace.invalid_steps.tolist() == [50, 50, 50, 50, 0]


def test_last_selection_without_a_valid_candidate_is_an_error():
    nan = lambda x: torch.full((len(x),), torch.nan)  # noqa: E731
    sampler = fg.SVDD(
        exact.diffusion(),
        nan,
        exact.TableValue(exact.mean_values()),
        num_candidates=4,
        alpha=0.5,
        on_invalid="reject",
    )
    with pytest.raises(NonFiniteError, match=r"chain 7 .*last selection|final sample of chain 7"):
        run(sampler, 1, first_chain=7)


def test_rejected_denoiser_outputs_are_avoided():
    def denoiser(x, t):
        logits = exact.denoiser(x, t).clone()
        logits[(x[:, 0] == 1) & (x == 2).any(1)] = torch.nan
        return logits

    diffusion = fg.MaskedDiffusion(denoiser, 3, 2)
    sampler = fg.SVDD(diffusion, exact.reward, num_candidates=20, alpha=0.5, on_invalid="reject")

    def watch(step, state):
        unusable = (state.x[:, 0] == 1) & (state.x == 2).any(1)
        assert not bool(unusable.any())

    assert bool(run(sampler, 200, callback=watch).rewards.isfinite().all())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda d: fg.SVDD(d, exact.reward, alpha=-0.1), "alpha must not be negative"),
        (lambda d: fg.SVDD(d, exact.reward, num_candidates=0), "num_candidates must be at least 1"),
        (lambda d: fg.BestOfN(d, exact.reward, 0), "num_candidates must be at least 1"),
        (lambda d: fg.SVDD(d, exact.reward, "oracle"), "value must be 'posterior_mean'"),
        (lambda d: fg.SVDD(d, exact.reward, on_invalid="drop"), "on_invalid must be"),
        (lambda d: fg.values.PosteriorMean(exact.reward, x0="mean"), "x0 must be"),
        (lambda d: fg.values.PosteriorSamples(exact.reward, 0, alpha=1), "num_samples must be"),
        (lambda d: fg.values.PosteriorSamples(exact.reward, 4, alpha=0), "alpha must be positive"),
        (lambda d: exact.diffusion(schedule="cubic"), "schedule must be one of"),
        (lambda d: exact.diffusion(schedule=lambda t: 1 - t), "non-decreasing"),
        (lambda d: exact.diffusion(final="best"), "final must be"),
        (lambda d: exact.diffusion(temperature=0), "temperature must be positive"),
        (lambda d: exact.diffusion(forbidden_tokens=[0, 1]), "leaves no token"),
        (lambda d: exact.diffusion(forbidden_tokens=[5]), r"must lie in \[0, 2\)"),
        (lambda d: exact.diffusion(mask_token=-1), "mask_token must not be negative"),
        (lambda d: exact.diffusion(guidance_scale=2.0), "needs null_cond"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ArgumentError, match=text):
        make(exact.diffusion())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda d: fg.SVDD(d, 3.0), "reward must be a callable"),
        (lambda d: fg.SVDD(exact.denoiser, exact.reward), "diffusion must be a fastguide"),
        (lambda d: fg.SVDD(d, exact.reward, num_candidates=2.5), "num_candidates must be an int"),
        (lambda d: fg.MaskedDiffusion(None, 3, 2), "denoiser must be callable"),
        (lambda d: fg.values.PosteriorMean(exact.reward, "soft"), "needs a reward with a method"),
    ],
)
def test_bad_types(make, text):
    with pytest.raises(DtypeError, match=text):
        make(exact.diffusion())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"seed": -1}, ArgumentError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 1.5}, DtypeError, "seed must be an int"),
        ({"first_chain": 2**32 - 4}, ArgumentError, "chain ids must lie in"),
        ({"max_rows": 0}, ArgumentError, "max_rows must be at least 1"),
        ({"max_rows": 4, "fixed_rows": 8}, ArgumentError, "fixed_rows=8 is more than max_rows=4"),
        ({"savings": "most"}, ArgumentError, "unknown: \\['most'\\]"),
        ({"max_seconds": 0}, ArgumentError, "max_seconds must be positive"),
        ({"prompt": torch.zeros(3)}, DtypeError, "prompt must be an integer tensor"),
        ({"prompt": torch.zeros(4, dtype=torch.int64)}, ShapeError, r"prompt must be \[B, 3\]"),
        ({"prompt": torch.tensor([0, 7, 2])}, ArgumentError, r"prompt\[0, 1\] is 7; tokens are"),
        ({"prompt": torch.full((3, 3), 2)}, ShapeError, "got 3 rows for 8 chains"),
        ({"cond": {"c": torch.zeros(3, 1)}}, ShapeError, "leading dimension 1 or num_samples=8"),
        ({"cond": {"c": 1}}, DtypeError, r"cond\['c'\] must be a tensor"),
    ],
)
def test_bad_run_options(options, error, text):
    called = []

    def denoiser(x, t):
        called.append(len(x))
        return exact.denoiser(x, t)

    with pytest.raises(error, match=text):
        run(with_denoiser(denoiser), **options)
    assert not called


def test_num_steps_and_num_samples():
    sampler = fg.Unguided(exact.diffusion())
    with pytest.raises(ArgumentError, match="num_steps must be at least 1, got 0"):
        sampler.sample(1, num_steps=0)
    with pytest.raises(ArgumentError, match="num_samples must not be negative"):
        sampler.sample(-1, num_steps=4)
    with pytest.raises(DtypeError, match="num_steps must be an int, got float"):
        sampler.sample(1, num_steps=4.0)
    assert sampler.sample(0, num_steps=4, progress=False).samples.shape == (0, 3)


def test_out_of_memory_names_the_rows_that_fit():
    def denoiser(x, t):
        if len(x) > 5:
            raise torch.OutOfMemoryError("tried to allocate 1 PiB")
        return exact.denoiser(x, t)

    prompt = torch.tensor(exact.STATES)
    with pytest.raises(OutOfMemoryError, match=r"denoiser ran out of memory on 19 rows; .*=4,"):
        run(with_denoiser(denoiser), 27, prompt=prompt)


def test_other_runtime_errors_pass_through():
    def denoiser(x, t):
        raise RuntimeError("my own bug")

    with pytest.raises(RuntimeError, match="my own bug"):
        run(with_denoiser(denoiser))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, r"differs in seed \(saved 0, now 1\)"),
        ({"num_steps": 5}, r"num_steps \(saved 4, now 5\)"),
        ({"prompt": torch.tensor([2, 2, 0])}, "prompt"),
    ],
)
def test_checkpoint_of_another_run(tmp_path, change, text):
    sampler = with_reward(exact.reward)
    sampler.sample(4, num_steps=4, progress=False, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=text):
        sampler.sample(4, **{"num_steps": 4, **change}, progress=False, checkpoint=tmp_path)


def test_checkpoint_of_other_weights(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor(bias))

        def forward(self, x, t):
            return exact.denoiser(x, t) + self.bias

    run(with_denoiser(Net(0.0)), checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="differs in denoiser"):
        run(with_denoiser(Net(1.0)), checkpoint=tmp_path)


def test_tampered_checkpoint(tmp_path):
    run(with_reward(exact.reward), checkpoint=tmp_path)
    (file,) = tmp_path.glob("state-*.pt")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="was changed or cut short"):
        run(with_reward(exact.reward), checkpoint=tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(with_reward(exact.reward), checkpoint=tmp_path)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match=r"checkpoint=.* cannot be written"):
        run(with_reward(exact.reward), checkpoint=tmp_path / "file" / "sub")
    result = run(with_reward(exact.reward))
    with pytest.raises(ArgumentError, match="cannot be written"):
        result.save(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot read a result from"):
        fg.Result.load(tmp_path)


def test_every_error_is_a_fastguide_error():
    for error in (ArgumentError, ShapeError, DtypeError, NonFiniteError, OutOfMemoryError):
        assert issubclass(error, fg.FastguideError)
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(DtypeError, TypeError)
