"""Every example runs, at a small size, and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastguide import zoo


def load(root: Path, name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(root / "examples" / f"{name}.py")))


def test_every_example_is_tested(root: Path) -> None:
    names = {path.stem for path in (root / "examples").glob("*.py")}
    assert names == {"own_model", "own_reward", "guide_pipeline"}


def test_own_model(root, capsys):
    results = load(root, "own_model").main(num_samples=16, num_steps=24)
    means = {name: float(result.rewards.mean()) for name, result in results.items()}
    assert means["unguided"] < means["best of 10"]
    assert means["unguided"] < means["SVDD"]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_own_reward(root, capsys):
    example = load(root, "own_reward")
    result = example.main(num_samples=3, num_steps=8)
    task = zoo.load("utr")
    assert all(text.endswith(example.ENDING) for text in task.decode(result.samples))
    assert torch.isfinite(result.rewards).all()
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["sd-euler-a", "flux-euler"])
def test_guide_pipeline(root, tmp_path, capsys, name):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines_tiny import CASES

    case = CASES[name]
    case.build().save_pretrained(tmp_path / "model")
    call = {key: value for key, value in case.call.items() if key not in ("prompt", "output_type")}
    rewards = load(root, "guide_pipeline").main(
        str(tmp_path / "model"),
        "two cats",
        num_candidates=8,
        alpha=0.0,
        out=str(tmp_path / "out"),
        **call,
    )
    assert rewards[1] > rewards[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"best_of_n_1.png", "svdd_8.png"}
    assert "kB; denoiser" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["own_model", "own_reward", "guide_pipeline"])
def test_examples_say_how_to_run_them(root, name):
    assert f"python examples/{name}.py" in (root / "examples" / f"{name}.py").read_text()
