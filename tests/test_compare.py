"""Metrics against numbers worked out by hand, the matching of rows, and a whole comparison."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_task
import torch

from fastguide import report
from fastguide.errors import ArgumentError
from fastguide.report import metrics

SMALL = report.Settings(
    alphas=(0.0, 0.25, 1.0),
    num_samples=12,
    num_candidates=4,
    num_steps=8,
    num_reference=40,
    num_masks=8,
)


@pytest.fixture(scope="module")
def comparison() -> report.Comparison:
    return report.compare(tiny_task.task(), SMALL, progress=False)


def test_distances_by_hand():
    samples = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [1, 1, 2, 0], [0, 1, 2, 3]])
    assert metrics.hamming_distances(samples).tolist() == [
        [0, 1, 2, 0],
        [1, 0, 1, 1],
        [2, 1, 0, 2],
        [0, 1, 2, 0],
    ]
    found = metrics.diversity(samples)
    assert found.distinct == 3
    assert found.mean_distance == pytest.approx((1 + 2 + 0 + 1 + 1 + 2) / 6)
    assert found.nearest_distance == pytest.approx((0 + 1 + 1 + 0) / 4)


def test_diversity_of_one_and_of_none():
    one = metrics.diversity(torch.tensor([[1, 2]]))
    assert one.distinct == 1
    assert math.isnan(one.mean_distance)
    assert math.isnan(one.nearest_distance)
    assert metrics.diversity(torch.zeros(0, 2, dtype=torch.int64)).distinct == 0


def test_composition_and_information_by_hand():
    shares = metrics.composition(["AC", "AG", "AC", "AT"], "ACGT")
    np.testing.assert_allclose(shares, [[1, 0, 0, 0], [0, 0.5, 0.25, 0.25]])
    np.testing.assert_allclose(metrics.information(shares), [2, 2 - 1.5])
    with pytest.raises(ArgumentError, match=r"all of one length; got 2 of lengths \[1, 2\]"):
        metrics.composition(["A", "AC"], "ACGT")


def test_errors_of_averages():
    assert metrics.mean_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    assert math.isnan(metrics.mean_error(np.array([1.0])))
    assert metrics.median_error(np.full(9, 2.5)) == 0
    normal = np.random.default_rng(1).normal(size=400)
    # asymptotically sqrt(pi / 2) times the error of the mean
    assert metrics.median_error(normal) == pytest.approx(1.2533 / 20, rel=0.25)
    assert metrics.median_error(normal) == metrics.median_error(normal)


def test_shares():
    assert metrics.share_of(["ATGA", "GGCC"], "GC") == pytest.approx(5 / 8)
    assert math.isnan(metrics.share_of([], "GC"))


def test_upstream_starts():
    # the next codon starts after the last letter: frame 0 is three, six, ... letters before it
    sequences = ["CCATGAAA", "CCCATGAA", "ATGATGAT", "CATCATCA", "ATG", "TG", "GATGATGC"]
    in_frame = [True, False, False, False, True, False, False]
    out_of_frame = [False, True, True, False, False, False, True]
    for sequence, inside, outside in zip(sequences, in_frame, out_of_frame, strict=True):
        assert metrics.upstream_starts([sequence], in_frame=True) == inside
        assert metrics.upstream_starts([sequence], in_frame=False) == outside
    assert metrics.upstream_starts(sequences, in_frame=True) == pytest.approx(2 / 7)
    assert math.isnan(metrics.upstream_starts([], in_frame=True))


def fake_rows(rows_of):
    """best_of(N) whose result ran rows_of(N) denoiser rows, and the list of N that were run."""
    asked = []

    def best_of(num):
        asked.append(num)
        return SimpleNamespace(cost=SimpleNamespace(denoiser_rows=rows_of(num)))

    return best_of, asked


@pytest.mark.parametrize("due", [1, 19, 20, 21, 119, 120, 121, 300])
@pytest.mark.parametrize("rows_of", [lambda n: 10 * n, lambda n: int(30 * n**0.75)])
def test_matching_finds_the_smallest(due, rows_of):
    best_of, asked = fake_rows(rows_of)
    known = {1: best_of(1), 10: best_of(10)}
    num, result, how = report.match_rows(due, known, best_of)
    smallest = next(n for n in range(2, 1000) if rows_of(n) >= due)
    assert num == smallest
    assert result.cost.denoiser_rows == how["denoiser_rows"] == rows_of(num)
    assert len(asked) < 8
    if num > 2:
        assert how["denoiser_rows_one_fewer"] < due


def test_matching_runs_one_fewer_when_in_doubt():
    best_of, asked = fake_rows(lambda n: 20 * n)
    known = {1: best_of(1), 10: best_of(10)}
    num, _, how = report.match_rows(121, known, best_of)
    assert (num, how["one_fewer_is"]) == (7, "measured")
    assert asked == [1, 10, 7, 6]
    num, _, how = report.match_rows(139, known, best_of)
    assert (num, how["one_fewer_is"], how["denoiser_rows_one_fewer"]) == (7, "interpolated", 120)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"methods": ("svdd", "nothing")}, "methods must be some of unguided.*got nothing"),
        ({"methods": ()}, "got none"),
        ({"methods": ("matched",)}, "'matched' is matched to SVDD"),
        ({"alphas": ()}, "at least one temperature for SVDD, got none"),
        (
            {"methods": ("smc",), "alphas": (0.0,)},
            r"at least one positive temperature for SMC, got \[0.0\]",
        ),
        ({"rows_per_design": 0}, "rows_per_design must be positive and finite, got 0"),
        ({"seconds_per_design": float("inf")}, "seconds_per_design must be positive and finite"),
        (
            {"methods": ("svdd",), "rows_per_design": 9, "seconds_per_design": 1},
            "two budgets; give one",
        ),
        ({"rows_per_design": 9}, "'matched' has no place under a budget"),
        ({"alphas": (0.1, 0.1)}, r"alphas must differ.*\[0.1, 0.1\]"),
        ({"num_samples": 1}, "num_samples must be at least 2.*got 1"),
        ({"num_reference": 3}, "num_reference must be at least num_samples=64.*got 3"),
    ],
)
def test_settings_explain_themselves(options, text):
    with pytest.raises(ArgumentError, match=text):
        report.Settings(**{"alphas": (0.1,), **options})


def test_methods_come_in_fixed_order(comparison):
    keys = [made.key for made in comparison.designs]
    assert keys == [
        "unguided",
        "best_of_4",
        "best_of_n_matched",
        "svdd_alpha_0",
        "svdd_alpha_0.25",
        "svdd_alpha_1",
    ]


def test_matched_method_costs_as_much(comparison):
    runs = [made for made in comparison.designs if made.key.startswith("svdd")]
    dearest = max(runs, key=lambda made: made.result.cost.denoiser_rows)
    rival = next(made for made in comparison.designs if made.key == "best_of_n_matched")
    assert comparison.matching["target"] == dearest.label
    assert comparison.matching["target_denoiser_rows"] == dearest.result.cost.denoiser_rows
    assert rival.result.cost.denoiser_rows >= dearest.result.cost.denoiser_rows
    assert f"Best of {comparison.matching['num_candidates']}" in rival.label


def test_designs_are_assessed(comparison):
    for made in comparison.designs:
        samples = made.result.samples
        assert made.sequences == tiny_task.decode(samples)
        np.testing.assert_allclose(made.guide, tiny_task.reward(samples))
        np.testing.assert_allclose(made.judge, tiny_task.oracle(samples))
        bound = tiny_task.task().diffusion.elbo(samples, num_masks=8, seed=0)
        np.testing.assert_allclose(made.bound, bound)


def test_reference_holds_the_unguided_designs(comparison):
    plain, reference = comparison.designs[0], comparison.reference
    assert len(reference.sequences) == 40
    assert reference.sequences[:12] == plain.sequences
    assert comparison.natural_limit == np.quantile(reference.bound / tiny_task.LENGTH, 0.05)


def test_naturalness_is_reported_either_way(comparison):
    lines = report.findings(comparison)
    assert len(lines) == 2 + 3
    assert lines[0].startswith("At equal denoiser rows (")
    assert lines[1].startswith("Designs stay natural at every alpha")
    for line, figures in zip(lines[2:], comparison.figures()[3:], strict=True):
        assert figures["natural"]
        assert figures["bound_median_nats_per_site"] >= comparison.natural_limit
        assert f", above {comparison.natural_limit:.3f}, the 5% quantile of 40" in line


def test_lost_naturalness_is_said(comparison):
    """The bound of some designs, and then of all of them, is made worse than it is."""
    worse = [
        dataclasses.replace(made, bound=made.bound - (made.key == "svdd_alpha_0") * 100)
        for made in comparison.designs
    ]
    found = dataclasses.replace(comparison, designs=worse)
    lines = report.findings(found)
    assert lines[1] == "Designs stay natural at alpha 0.25 and 1; they do not at 0."
    assert ", below " in lines[2]
    assert lines[2].endswith("100% of its designs lie below.")
    worse = [dataclasses.replace(made, bound=made.bound - 100) for made in comparison.designs]
    lines = report.findings(dataclasses.replace(comparison, designs=worse))
    assert lines[1].startswith("Designs stay natural at no alpha that was run: 0, 0.25 and 1.")


def test_unnatural_designs_are_said_to_be_so(comparison):
    made = comparison.designs[-1]
    worse = made.figures(float(made.bound_per_site.max()) + 1)
    assert not worse["natural"]
    assert worse["share_below_limit"] == 1


def test_chosen_methods_only():
    settings = report.Settings(
        methods=("svdd",), alphas=(0.5,), num_samples=4, num_steps=4, num_reference=4, num_masks=2
    )
    said, kept = [], []
    found = report.compare(
        tiny_task.task(),
        settings,
        progress=False,
        say=said.append,
        keep=lambda made: kept.append(made.key),
    )
    assert [made.key for made in found.designs] == ["svdd_alpha_0.5"]
    assert kept == ["unguided", "svdd_alpha_0.5"]
    assert said == ["Unguided", "SVDD, alpha 0.5"]
    assert found.matching is None
    assert len(report.findings(found)) == 2
