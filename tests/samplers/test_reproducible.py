"""The same samples whatever the split, the batch shape, the savings, the threads or the backend."""

from __future__ import annotations

import pickle

import exact
import pytest
import torch

import fastguide as fg
from fastguide.evaluation.savings import ALL


def svdd(value="posterior_mean", num_candidates=5, alpha=0.5, **options) -> fg.SVDD:
    return fg.SVDD(
        exact.diffusion(**options), exact.reward, value, num_candidates=num_candidates, alpha=alpha
    )


def samples(sampler, n=64, **options) -> torch.Tensor:
    return sampler.sample(n, num_steps=exact.STEPS, progress=False, **options).samples


VALUES = ["posterior_mean", "exact", "samples"]


def value_of(name: str):
    if name == "exact":
        return exact.TableValue(exact.exact_values(0.5))
    if name == "samples":
        return fg.values.PosteriorSamples(exact.reward, num_samples=2, alpha=0.5)
    return name


@pytest.mark.parametrize("time_conditioned", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_every_saving_gives_the_same_bits(name, time_conditioned):
    def run(savings):
        sampler = svdd(value_of(name), time_conditioned=time_conditioned)
        return sampler.sample(2000, num_steps=exact.STEPS, progress=False, savings=savings)

    everything = run("all")
    for savings in ["none", *sorted(ALL), *(ALL - {saving} for saving in ALL)]:
        other = run(savings)
        assert torch.equal(everything.samples, other.samples), savings
        assert torch.equal(everything.rewards, other.rewards), savings


@pytest.mark.parametrize("name", VALUES)
def test_reference_gives_the_same_bits(name):
    compiled = samples(svdd(value_of(name)), 2000)
    with fg.use_backend("reference"):
        assert torch.equal(compiled, samples(svdd(value_of(name)), 2000))


def test_any_split_of_the_chains_gives_the_same_bits():
    whole = samples(svdd(), 64)
    one_by_one = [samples(svdd(), 1, first_chain=chain) for chain in range(64)]
    assert torch.equal(whole, torch.cat(one_by_one))
    parts = [samples(svdd(), n, first_chain=c) for c, n in ((0, 1), (1, 30), (31, 33))]
    assert torch.equal(whole, torch.cat(parts))


def test_any_batch_shape_gives_the_same_bits():
    whole = samples(svdd(), 64)
    for limits in ({"max_rows": 1}, {"max_rows": 7}, {"fixed_rows": 5}, {"cache_bytes": 0}):
        assert torch.equal(whole, samples(svdd(), 64, **limits)), limits


def test_thread_count_does_not_matter():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = samples(svdd(), 500)
        torch.set_num_threads(2)
        assert torch.equal(one, samples(svdd(), 500))
    finally:
        torch.set_num_threads(before)


def test_seeds_and_chains_differ():
    assert not torch.equal(samples(svdd(), seed=0), samples(svdd(), seed=1))
    assert not torch.equal(samples(svdd(), seed=2**63), samples(svdd(), seed=2**64 - 1))
    assert not torch.equal(samples(svdd()), samples(svdd(), first_chain=64))


def test_one_candidate_is_the_plain_chain():
    d = exact.diffusion()
    plain = samples(fg.Unguided(d), 2000)
    assert torch.equal(plain, samples(svdd(num_candidates=1), 2000))
    assert torch.equal(plain, samples(fg.BestOfN(d, exact.reward, 1), 2000))


def test_candidate_zero_is_the_plain_chain():
    """A value that always prefers nothing keeps the first candidate under argmax."""
    flat = svdd(lambda x, t: torch.zeros(len(x)), num_candidates=7, alpha=0)
    flat.reward = lambda x: torch.zeros(len(x))
    assert torch.equal(samples(fg.Unguided(exact.diffusion()), 2000), samples(flat, 2000))


def test_caller_owned_loop_gives_the_same_bits():
    run = svdd().start(64, num_steps=exact.STEPS)
    moves = [state.step for state in run]
    assert moves == [1, 2, 3, 4, 5]
    assert torch.equal(run.result().samples, samples(svdd()))


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_pickled_state_continues_bit_for_bit(stop_after):
    run = svdd().start(64, num_steps=exact.STEPS)
    for state in run:
        if state.step == stop_after:
            data = pickle.dumps(run.snapshot())
            break
    resumed = svdd().start(64, num_steps=exact.STEPS, state=pickle.loads(data))
    for _ in resumed:
        pass
    result = resumed.result()
    assert torch.equal(result.samples, samples(svdd()))
    assert result.trace.values.shape == (5, 64)


def test_checkpoint_resumes_after_an_interrupt(tmp_path):
    calls = []

    def interrupt(step, state):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samples(svdd(), 200, checkpoint=tmp_path, callback=interrupt)
    result = svdd().sample(200, num_steps=exact.STEPS, progress=False, checkpoint=tmp_path)
    assert torch.equal(result.samples, samples(svdd(), 200))
    assert result.stopped is None
    # finished: a further call returns at once
    again = svdd().sample(200, num_steps=exact.STEPS, progress=False, checkpoint=tmp_path)
    assert torch.equal(result.samples, again.samples)
    assert again.cost.denoiser_rows == result.cost.denoiser_rows


def test_a_resumed_run_remembers_rewards(tmp_path):
    seen: list[torch.Tensor] = []

    def reward(x):
        seen.append(x)
        return exact.reward(x)

    def stop(step, state):
        return step < 2

    def sampler():
        return fg.SVDD(exact.diffusion(), reward, num_candidates=5, alpha=0.5)

    sampler().sample(64, num_steps=4, progress=False, checkpoint=tmp_path, callback=stop)
    sampler().sample(64, num_steps=4, progress=False, checkpoint=tmp_path)
    rows = torch.cat(seen)
    assert len(rows) == len(rows.unique(dim=0))
