"""Loading: what a task offers, and what happens when files are not what their card says."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

import fastguide.zoo
from fastguide.errors import ArgumentError, CheckpointError
from fastguide.zoo import Task, utr

MODELS = ("denoiser", "guide", "judge")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint folder."""
    return shutil.copytree(utr.WEIGHTS, tmp_path / "utr")


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"no task 'utrr'; known tasks: utr, glyphs"):
        fastguide.zoo.load("utrr")
    assert fastguide.zoo.names() == ("utr", "glyphs")


def test_loading_is_quick() -> None:
    start = time.thread_time()
    fastguide.zoo.load("utr")
    assert time.thread_time() - start < 1


def test_loading_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    fastguide.zoo.load("utr")
    assert torch.equal(torch.get_rng_state(), state)


def test_task_is_complete(task: Task) -> None:
    assert task.name == "utr"
    assert (task.diffusion.length, task.diffusion.vocab_size, task.diffusion.mask_token) == (
        50,
        4,
        4,
    )
    assert not task.diffusion.time_conditioned
    for network in (task.diffusion.denoiser, task.reward.network, task.oracle.network):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_one_flipped_bit_is_found(copy: Path, name: str) -> None:
    path = copy / f"{name}.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    expected = json.loads((copy / "card.json").read_text())["models"][name]["sha256"]
    with pytest.raises(CheckpointError, match=rf"{name}.safetensors was changed.*{expected}") as e:
        fastguide.zoo.load("utr", folder=copy)
    assert "reinstall fastguide" in str(e.value)


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "judge.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*judge\.safetensors"):
        fastguide.zoo.load("utr", folder=copy)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 100])
def test_unreadable_weights_with_the_right_hash(copy: Path, content: bytes) -> None:
    _replace(copy, "guide", content)
    with pytest.raises(CheckpointError, match=r"guide\.safetensors does not hold this model"):
        fastguide.zoo.load("utr", folder=copy)


def test_weights_of_another_model(copy: Path) -> None:
    _replace(copy, "guide", (copy / "denoiser.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"guide\.safetensors does not hold this model"):
        fastguide.zoo.load("utr", folder=copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON card"),
        ("[]", "is not a card"),
        ('{"models": {}}', "does not describe the utr models"),
        ('{"models": {"denoiser": 1, "guide": 1, "judge": 1}}', "does not describe"),
    ],
)
def test_broken_card(copy: Path, text: str, message: str) -> None:
    (copy / "card.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        fastguide.zoo.load("utr", folder=copy)


def test_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*card\.json"):
        fastguide.zoo.load("utr", folder=tmp_path)


def test_card_is_complete(task: Task) -> None:
    card = task.card
    assert "Sample et al. 2019" in card["data"]["publication"]
    assert "GSE114002" in card["data"]["accession"]
    parts = card["split"]["parts"]
    assert set(parts) == {"test", "guide", "guide-valid", "judge", "judge-valid"}
    rows = {name: sum(part[name] for part in parts.values()) for name in ("random", "human")}
    assert rows == card["data"]["rows"]
    assert card["recipe"]["denoiser_fit"]["epochs"] > 0
    for name in MODELS:
        assert card["models"][name]["file"] == f"{name}.safetensors"
        assert card["metrics"][name]


def test_card_meets_its_promises(task: Task) -> None:
    metrics, models = task.card["metrics"], task.card["models"]
    assert metrics["denoiser"]["bits_per_nucleotide"] <= 1.88
    for name in ("guide", "judge"):
        assert metrics[name]["random"]["pearson"] >= 0.93
        assert metrics[name]["human"]["pearson"] >= 0.87
    assert 20 <= models["denoiser"]["mflop_per_row"] <= 120
    sizes = {name: (utr.WEIGHTS / models[name]["file"]).stat().st_size for name in MODELS}
    assert sizes == {name: models[name]["bytes"] for name in MODELS}
    assert sum(sizes.values()) < 6e6


def _replace(folder: Path, name: str, content: bytes) -> None:
    """Put `content` in place of a model's file and its hash into the card."""
    card = json.loads((folder / "card.json").read_text())
    card["models"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    (folder / f"{name}.safetensors").write_bytes(content)
