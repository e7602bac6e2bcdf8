"""The shipped `glyphs` task: what its models know, and how it takes what it is given."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import fastguide as fg
from fastguide.errors import ArgumentError, CheckpointError, DtypeError, ShapeError
from fastguide.zoo import PictureTask, glyphs, glyphs_data
from fastguide.zoo.measure_glyphs import measure

Tensor = torch.Tensor
FILES = [*glyphs.MODELS, "references"]


@pytest.fixture(scope="module")
def task() -> PictureTask:
    """The shipped task."""
    return fg.zoo.load("glyphs")


@pytest.fixture(scope="module")
def drawn(task: PictureTask) -> Tensor:
    """200 of the reference drawings, as samples."""
    return task.encode(task.references[::4][:200])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint folder."""
    return shutil.copytree(glyphs.WEIGHTS, tmp_path / "glyphs")


# --- files and card


def test_task_is_complete(task: PictureTask) -> None:
    assert task.name == "glyphs"
    assert task.diffusion.shape == (1, 28, 28)
    assert len(task.card["data"]["alphabets"]) == 8
    due = {"aesthetic", "ink"} | {f"alphabet:{name}" for name in task.card["data"]["alphabets"]}
    assert set(task.rewards) == set(task.oracles) == due
    assert task.reward is task.rewards["aesthetic"]
    assert task.oracle is task.oracles["aesthetic"]
    assert task.reward.network is not task.oracle.network
    for network in (task.diffusion.denoiser, task.reward.network, task.oracle.network):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert task.references.dtype == torch.uint8
    assert task.references.shape == (task.card["references"]["drawings"], 28, 28)


def test_loading_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    fg.zoo.load("glyphs")
    assert torch.equal(torch.get_rng_state(), state)


def test_card_describes_the_files(task: PictureTask) -> None:
    entries = [*task.card["models"].values(), task.card["references"]]
    assert {path.name for path in glyphs.WEIGHTS.iterdir()} == {
        "card.json",
        *(entry["file"] for entry in entries),
    }
    for entry in entries:
        raw = (glyphs.WEIGHTS / entry["file"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
        assert len(raw) == entry["bytes"]
    assert sum(path.stat().st_size for path in glyphs.WEIGHTS.iterdir()) < 4e6


def test_card_meets_its_promises(task: PictureTask) -> None:
    card = task.card
    assert "Lake" in card["data"]["publication"]
    assert "omniglot" in card["data"]["accession"]
    for split in ("by_character", "by_drawing"):
        assert sum(card["split"]["parts"][split].values()) == card["data"]["rows"]
    metrics = card["metrics"]
    assert metrics["denoiser"]["squared_error"] < 0.14
    assert set(metrics["denoiser"]["bands"]) == {
        "0.0-0.2",
        "0.2-0.4",
        "0.4-0.6",
        "0.6-0.8",
        "0.8-1.0",
    }
    for half in glyphs.HALVES:
        assert metrics[f"aesthetic-{half}"]["auc"] > 0.95
        assert metrics[f"alphabet-{half}"]["accuracy"] > 0.75
    assert metrics["samples"]["clean"] > 0.5
    distances = metrics["nearest_distance"]
    assert distances["other_drawings"][2] < distances["held_out_characters"][2]
    assert card["models"]["denoiser"]["mflop_per_row"] < 60


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found(copy: Path, name: str) -> None:
    path = copy / f"{name}.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors was changed or damaged"):
        fg.zoo.load("glyphs", folder=copy)


def test_broken_card(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_text())
    del card["references"]
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"does not describe the glyphs models .*references"):
        fg.zoo.load("glyphs", folder=copy)


# --- what goes in and out


def test_images_survive_the_way_there_and_back(task: PictureTask) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(7)[: 2 * 784].view(2, 28, 28)
    samples = task.encode(images)
    assert samples.shape == (2, 1, 28, 28)
    assert samples.dtype == torch.float32
    assert (samples.min(), samples.max()) == (-1, 1)
    assert torch.equal(task.decode(samples), images)
    assert torch.equal(task.decode(3 * samples), task.decode((3 * samples).clamp(-1, 1)))


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([[0.0]], DtypeError, r"samples must be a tensor \[B, 1, 28, 28\], got list"),
        (torch.zeros(2, 28, 28), ShapeError, r"samples must be .*, got \[2, 28, 28\]"),
        (torch.zeros(2, 3, 28, 28), ShapeError, r"got \[2, 3, 28, 28\]"),
        (torch.zeros(2, 1, 28, 28).byte(), DtypeError, r"got torch\.uint8; .*task\.encode"),
    ],
)
def test_bad_samples_are_named(task: PictureTask, samples, error, message: str) -> None:
    takers = [*list(task.rewards.values())[:3], task.decode, task.nearest_distance]
    for taker in takers:
        with pytest.raises(error, match=message):
            taker(samples)


def test_bad_images_and_arguments_are_named(task: PictureTask) -> None:
    with pytest.raises(DtypeError, match=r"images must be a tensor of uint8.*got torch\.float32"):
        task.encode(torch.zeros(1, 28, 28))
    with pytest.raises(ShapeError, match=r"images must be \[B, 28, 28\], got \[28, 28\]"):
        task.encode(torch.zeros(28, 28, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match=r"target must be per cent .* got 101"):
        glyphs.Ink(101)
    with pytest.raises(ArgumentError, match=r"alphabet must be one of \['a'\], got 'b'"):
        glyphs.Alphabet(torch.nn.Identity(), ["a"], "b", "guide")


# --- rewards


def test_rewards_are_rows_alone_in_float32(task: PictureTask, drawn: Tensor) -> None:
    for reward in (*task.rewards.values(), *task.oracles.values()):
        values = reward(drawn[:9])
        assert values.shape == (9,)
        assert values.dtype == torch.float32
        assert reward.deterministic
        torch.testing.assert_close(reward(drawn[4:6]), values[4:6], rtol=1e-4, atol=1e-4)
        assert torch.equal(reward(drawn[:9].double()), values)


def test_rewards_have_gradients_of_the_right_size(task: PictureTask, drawn: Tensor) -> None:
    """Against finite differences in one direction, away from the edges of the range."""
    generator = torch.Generator().manual_seed(0)
    for reward in (task.rewards["aesthetic"], task.rewards["alphabet:Greek"], glyphs.Ink(30.0)):
        x = (0.8 * drawn[:16]).requires_grad_()
        direction = torch.randn(x.shape, generator=generator)
        (gradient,) = torch.autograd.grad(reward(x).sum(), x)
        predicted = (gradient * direction).sum(dim=(1, 2, 3))
        step = 1e-3
        with torch.no_grad():
            found = (reward(x + step * direction) - reward(x - step * direction)) / (2 * step)
        assert gradient.flatten(1).any(dim=1).all()
        assert torch.corrcoef(torch.stack([predicted, found]))[0, 1] > 0.99


def test_ink_is_counted(task: PictureTask, drawn: Tensor) -> None:
    ink = task.rewards["ink"]
    half = torch.full((1, 1, 28, 28), -1.0)
    half[..., :7] = 1
    assert ink(half).item() == pytest.approx(25)
    assert ink(3 * half).item() == pytest.approx(25)
    assert glyphs.Ink(target=20)(half).item() == pytest.approx(-5)
    assert 6 < ink(drawn).mean() < 10


def test_every_fault_lowers_the_aesthetic_score(task: PictureTask, drawn: Tensor) -> None:
    """On reference drawings, by guide and judge."""
    torch.manual_seed(0)
    for reward in (task.reward, task.oracle):
        clean = reward(drawn)
        assert (clean > 0).float().mean() > 0.8
        for index, name in enumerate(glyphs_data.FAULTS):
            spoilt = reward(glyphs_data.degrade(drawn, torch.full((len(drawn),), index)))
            assert (spoilt < clean).float().mean() > 0.75, name
            assert spoilt.mean() < clean.mean() - 1, name


def test_alphabets_of_references_are_told(task: PictureTask) -> None:
    x, counts = task.encode(task.references), torch.tensor(task.card["references"]["per_alphabet"])
    due = torch.arange(len(counts)).repeat_interleave(counts)
    assert counts.max() / counts.sum() < 0.3
    for rewards in (task.rewards, task.oracles):
        log_probs = rewards["alphabet:Greek"].log_probs(x)
        torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(len(x)))
        assert (log_probs.argmax(dim=1) == due).float().mean() > 0.8
        for index, name in enumerate(task.card["data"]["alphabets"]):
            column = log_probs[:, index]
            alone = rewards[f"alphabet:{name}"](x[:3])
            torch.testing.assert_close(alone, column[:3], rtol=1e-4, atol=1e-4)
            assert column[due == index].mean() > column[due != index].mean() + 3


def test_nearest_distance_knows_its_references(task: PictureTask, drawn: Tensor) -> None:
    assert task.nearest_distance(drawn).max() < 0.02
    noise = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    moved = drawn[:20].roll(2, dims=-1)
    near, far = task.nearest_distance(moved), task.nearest_distance(noise)
    assert near.min() > 0.2
    assert near.max() < far.min()
    low, *_, high = task.card["metrics"]["nearest_distance"]["held_out_characters"]
    assert near.median() < high
    assert far.min() > high > low > 0


# --- the diffusion


def test_denoiser_predicts_better_than_guesses(task: PictureTask, drawn: Tensor) -> None:
    """Its guess of the sample errs less than the best guess for each pixel by itself.

    At the most noise, nothing is left to see, and both are close to the mean drawing.
    """
    torch.manual_seed(0)
    for level, share in ((0.1, 0.3), (0.3, 0.3), (0.5, 0.5), (0.7, 0.8), (0.95, 1.05)):
        levels = torch.full((len(drawn),), level)
        abar = glyphs.cosine_table()[int(level * 1000)].item()
        velocity = glyphs.velocity_error(task.diffusion.denoiser, drawn, levels).mean().item()
        error = (1 - abar) * velocity
        # linear, from the mean and the variance of every pixel
        variance = drawn.var(dim=0)
        linear = (variance * (1 - abar) / (abar * variance + 1 - abar)).mean().item()
        assert error < share * linear, level


def test_unguided_samples_look_like_drawings(task: PictureTask) -> None:
    result = fg.Unguided(task.diffusion).sample(16, num_steps=24, seed=0, progress=False)
    assert result.samples.shape == (16, 1, 28, 28)
    assert result.samples.dtype == torch.float32
    # little is left beyond the range, and most pixels are paper or ink
    assert (result.samples.abs() > 1.25).float().mean() < 0.01
    assert ((result.samples.abs() - 1).abs() < 0.2).float().mean() > 0.8
    assert 4 < task.oracles["ink"](result.samples).mean() < 14
    assert (task.oracle(result.samples) > 0).float().mean() > 0.4
    again = fg.Unguided(task.diffusion).sample(16, num_steps=24, seed=0, progress=False)
    assert torch.equal(again.samples, result.samples)
    other = fg.Unguided(task.diffusion).sample(16, num_steps=24, seed=1, progress=False)
    assert not torch.equal(other.samples, result.samples)


def test_guidance_raises_its_reward_and_the_judge_agrees(task: PictureTask) -> None:
    run = dict(num_steps=12, seed=0, progress=False)
    for name in ("aesthetic", "alphabet:Latin"):
        guide, judge = task.rewards[name], task.oracles[name]
        plain = fg.Unguided(task.diffusion, guide).sample(8, **run)
        sampler = fg.SVDD(task.diffusion, guide, num_candidates=6, alpha=0.0)
        guided = sampler.sample(8, **run)
        assert guided.rewards.mean() > plain.rewards.mean() + 1
        assert judge(guided.samples).mean() > judge(plain.samples).mean()
        assert torch.equal(sampler.sample(8, **run).samples, guided.samples)


def test_gradients_guide(task: PictureTask) -> None:
    reward = glyphs.Ink(target=16)
    run = dict(num_steps=12, seed=0, progress=False)
    plain = fg.Unguided(task.diffusion, reward).sample(4, **run)
    guided = fg.DPS(task.diffusion, reward, alpha=0.5).sample(4, **run)
    assert guided.rewards.mean() > plain.rewards.mean() + 1


# --- the data, where they are found


@pytest.mark.slow
def test_card_is_what_is_measured(task: PictureTask) -> None:
    folder = os.environ.get("FASTGUIDE_DATA")
    if not folder or not (Path(folder) / "omniglot28.npz").exists():
        pytest.skip("FASTGUIDE_DATA names no folder with omniglot28.npz; see docs/data.md")
    drawings = glyphs_data.read(Path(folder) / "omniglot28.npz")
    assert drawings.sha256 == task.card["data"]["sha256"]
    due = task.card["metrics"]
    found = measure(task, drawings, due["samples"]["rows"], due["samples"]["num_steps"])
    for name, metrics in due.items():
        for key, value in metrics.items():
            if isinstance(value, float):
                assert found[name][key] == pytest.approx(value, rel=0.02, abs=0.02), (name, key)


def test_classifiers_know_held_out_drawings(task: PictureTask) -> None:
    folder = os.environ.get("FASTGUIDE_DATA")
    if not folder or not (Path(folder) / "omniglot28.npz").exists():
        pytest.skip("FASTGUIDE_DATA names no folder with omniglot28.npz; see docs/data.md")
    drawings = glyphs_data.read(Path(folder) / "omniglot28.npz")
    for rewards, other in ((task.rewards, "judge"), (task.oracles, "guide")):
        rows = drawings.rows("by_drawing", other)
        log_probs = rewards["alphabet:Greek"].log_probs(drawings.samples(rows))
        right = log_probs.argmax(dim=1) == drawings.alphabet[rows]
        assert right.float().mean() > 0.75
