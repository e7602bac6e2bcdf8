"""Task `utr`: samples, rewards, denoiser, and the figures of its card on real data."""

from __future__ import annotations

import pytest
import torch

from fastguide.errors import ArgumentError, DtypeError, ShapeError
from fastguide.zoo import Task, train_utr, utr_data


@pytest.fixture
def samples() -> torch.Tensor:
    """64 random 5'UTRs [64, 50]."""
    return torch.randint(0, 4, (64, 50))


def test_encode_and_decode_are_inverse(task: Task, samples: torch.Tensor) -> None:
    assert torch.equal(task.encode(task.decode(samples)), samples)
    sequences = ["ACGT" * 12 + "AC", "T" * 50]
    assert task.decode(task.encode(sequences)) == sequences
    assert task.encode(["ACGT" * 12 + "AC"])[0, :4].tolist() == [0, 1, 2, 3]
    assert task.encode([]).shape == (0, 50)
    assert task.encode([]).dtype == torch.int64


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ("A" * 50, r"must be a list of strings"),
        (["A" * 50, "A" * 49], r"sequences\[1\] has 49 letters; the utr models read 50"),
        (["A" * 50, "A" * 10 + "U" + "A" * 39], r"sequences\[1\] has 'U' at position 10"),
        (["a" * 50], r"sequences\[0\] has 'a' at position 0"),
        (["A" * 49 + "Å"], r"has 'Å' at position 49; the letters are A, C, G, T"),
    ],
)
def test_encode_says_what_is_wrong(task: Task, sequences: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        task.encode(sequences)


def test_masked_and_foreign_tokens_are_refused(task: Task, samples: torch.Tensor) -> None:
    masked = samples.clone()
    masked[3, 7] = 4
    for function in (task.reward, task.oracle, task.decode):
        with pytest.raises(ArgumentError, match=r"samples\[3, 7\] is 4, which is the mask"):
            function(masked)
        with pytest.raises(ArgumentError, match=r"is -1, which is no nucleotide"):
            function(samples - (samples == samples[0, 0]) * (samples + 1))
        with pytest.raises(ShapeError, match=r"samples must be \[B, 50\], got \[64, 49\]"):
            function(samples[:, 1:])
        with pytest.raises(DtypeError, match=r"got torch.float32; give probabilities to .soft"):
            function(samples.float())
        with pytest.raises(DtypeError, match=r"samples must be a tensor \[B, 50\], got list"):
            function(samples.tolist())


def test_rewards_are_loads_without_gradient(task: Task, samples: torch.Tensor) -> None:
    for reward in (task.reward, task.oracle):
        load = reward(samples)
        assert load.shape == (64,)
        assert load.dtype == torch.float32
        assert not load.requires_grad
        assert 0 < float(load.min()) < float(load.max()) < 10
        assert torch.equal(load, reward.heads(samples).mean(dim=1))
        assert reward(samples[:0]).shape == (0,)
        assert reward.deterministic
        torch.testing.assert_close(reward(samples[5:6]), load[5:6], rtol=0, atol=1e-5)
        assert torch.equal(reward(samples.int()), load)


def test_rewards_correlate_but_are_not_the_same(task: Task) -> None:
    samples = torch.randint(0, 4, (500, 50))
    guide, judge = task.reward(samples), task.oracle(samples)
    assert 0.9 < torch.corrcoef(torch.stack([guide, judge]))[0, 1] < 0.9999
    assert (guide - judge).abs().mean() > 0.02


def test_an_upstream_start_codon_lowers_the_load(task: Task) -> None:
    # out of frame with the coding sequence, in a strong context, with no stop before it
    plain = "CAAGCACACACAAGCAGCCACCACCGCCAACAACAACAACAACAACAACA"
    start = plain[:22] + "ATGG" + plain[26:]
    low, high = task.oracle(task.encode([start, plain])).tolist()
    assert high - low > 1


def test_soft_rewards_agree_at_one_hot_rows(task: Task, samples: torch.Tensor) -> None:
    one_hot = torch.nn.functional.one_hot(samples, 4).float().requires_grad_()
    for reward in (task.reward, task.oracle):
        load = reward.soft(one_hot)
        torch.testing.assert_close(load, reward(samples))
        (gradient,) = torch.autograd.grad(load.sum(), one_hot)
        assert gradient.abs().sum() > 0
    with pytest.raises(ShapeError, match=r"probs must be \[B, 50, 4\], got \[64, 50, 5\]"):
        task.reward.soft(torch.zeros(64, 50, 5))
    with pytest.raises(DtypeError, match=r"probs must be floating point"):
        task.reward.soft(torch.zeros(64, 50, 4, dtype=torch.int64))


def test_soft_denoiser_agrees_at_one_hot_rows(task: Task, samples: torch.Tensor) -> None:
    x = samples.masked_fill(torch.rand(64, 50) < 0.5, 4)
    t = torch.zeros(64)
    denoiser = task.diffusion.denoiser
    one_hot = torch.nn.functional.one_hot(x, 5).float().requires_grad_()
    logits = denoiser.soft(one_hot, t)
    assert logits.shape == (64, 50, 4)
    torch.testing.assert_close(logits, denoiser(x, t))
    (gradient,) = torch.autograd.grad(logits.sum(), one_hot)
    assert gradient.abs().sum() > 0


def test_denoiser_ignores_time_and_neighbouring_rows(task: Task, samples: torch.Tensor) -> None:
    x = samples.masked_fill(torch.rand(64, 50) < 0.5, 4)
    denoiser = task.diffusion.denoiser
    logits = denoiser(x, torch.zeros(64))
    assert torch.equal(logits, denoiser(x, torch.rand(64)))
    alone = torch.cat([denoiser(row[None], torch.zeros(1)) for row in x[:8]])
    torch.testing.assert_close(alone, logits[:8], rtol=1e-4, atol=1e-5)


def test_unguided_prior_is_rich_in_gc(task: Task) -> None:
    # native human 5'UTRs are; a uniform model is not
    x = torch.full((1, 50), 4)
    probs = task.diffusion.logits(x, torch.zeros(1)).softmax(dim=-1).mean(dim=(0, 1))
    assert 0.55 < float(probs[1] + probs[2]) < 0.66


def test_split_keeps_relatives_together(measurements: utr_data.Measurements) -> None:
    halves = {part: set() for part in ("test", "guide", "judge")}
    for part, sequence in zip(measurements.part.tolist(), _kmers(measurements.tokens), strict=True):
        halves[part.removesuffix("-valid")] |= sequence
    assert not halves["test"] & halves["guide"]
    assert not halves["test"] & halves["judge"]
    assert not halves["guide"] & halves["judge"]


@pytest.mark.slow
def test_card_figures_on_real_data(task: Task, measurements: utr_data.Measurements) -> None:
    card = task.card
    assert measurements.count() == card["split"]["parts"]
    found = train_utr.measure(task, measurements)
    assert found["denoiser"]["bits_per_nucleotide"] <= 1.88
    assert found["denoiser"]["bits_per_nucleotide"] == pytest.approx(
        card["metrics"]["denoiser"]["bits_per_nucleotide"], abs=2e-4
    )
    for name in ("guide", "judge"):
        assert found[name]["random"]["pearson"] >= 0.93
        assert found[name]["human"]["pearson"] >= 0.87
        for library in utr_data.LIBRARIES:
            assert found[name][library]["pearson"] == pytest.approx(
                card["metrics"][name][library]["pearson"], abs=2e-4
            )


def test_bound_of_a_few_held_out_rows(task: Task, measurements: utr_data.Measurements) -> None:
    # a wide tolerance: 100 rows, 8 masks each
    rows = measurements.rows("test", library="human")[:100]
    bits = -task.diffusion.elbo(measurements.tokens[rows], num_masks=8) / (50 * 0.6931)
    assert 1.80 < float(bits.mean()) < 1.94


def _kmers(tokens: torch.Tensor) -> list[set[int]]:
    """The 20-mers of each row, as numbers in base 4."""
    powers = 4 ** torch.arange(utr_data.GROUP_KMER)
    windows = tokens.unfold(1, utr_data.GROUP_KMER, 1)
    return [set(row) for row in (windows * powers).sum(dim=-1).tolist()]
