"""Fine-tuning by report and command line: figures against the library, files, texts, exit codes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import tiny_task
import torch
from safetensors.torch import load_file
from torch import nn

import fastguide as fg
from fastguide import report, zoo
from fastguide.cli import finetune as command
from fastguide.cli import main
from fastguide.errors import ArgumentError
from fastguide.finetune import PPO


class Denoiser(nn.Module):
    """The tiny task's table as a network: logits of a letter from its left neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(5, 4, bias=False)
        self.table.weight.data.copy_(tiny_task.TABLE.T)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.soft(nn.functional.one_hot(x, 5).float(), t)

    def soft(self, onehot: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        left = nn.functional.pad(onehot, (0, 0, 1, 0))[:, :-1].clone()
        left[:, 0, 4] = 1
        return self.table(left)


class Reward:
    """Guides: counts G."""

    deterministic = True

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples == 2).sum(1).float()

    def soft(self, probs: torch.Tensor) -> torch.Tensor:
        return probs[..., 2].sum(1)


def task() -> zoo.Task:
    diffusion = fg.MaskedDiffusion(Denoiser(), tiny_task.LENGTH, 4)
    return dataclasses.replace(tiny_task.task(), diffusion=diffusion, reward=Reward())


SMALL = {
    "num_iterations": 6,
    "batch_size": 16,
    "num_steps": 4,
    "learning_rate": 0.1,
    "num_samples": 12,
    "sample_steps": 6,
    "num_candidates": 3,
    "num_reference": 20,
    "num_masks": 4,
}


def small(method: str, **options: object) -> report.TuningSettings:
    return dataclasses.replace(report.TUNINGS[method], **{**SMALL, **options})


@pytest.fixture(scope="module")
def tuning(tmp_path_factory) -> tuple[report.Tuning, Path]:
    folder = tmp_path_factory.mktemp("tuning")
    said: list[str] = []
    made = report.tune(
        task(),
        small("backprop", alpha=0.5),
        checkpoint=folder / "training",
        save=folder / "model.safetensors",
        progress=False,
        say=said.append,
    )
    assert said[0] == "Training: backprop, 6 iterations"
    assert "held_out" in said[1]
    return made, folder


@pytest.mark.parametrize("method", report.TUNINGS)
def test_every_method_tunes_toward_the_reward(method):
    settings = small(method, num_iterations=12, num_reference=12)
    if "rounds" in settings.options:
        settings = dataclasses.replace(settings, options={**settings.options, "rounds": 3})
    made = report.tune(task(), settings, progress=False)
    plain = made.comparison.designs[0]
    assert made.tuned.guide.mean() > plain.guide.mean() + 0.5
    assert made.divergence.mean() > 0.05
    assert made.figures()["iterations"] == 12


def test_tuned_samples_are_those_of_the_saved_weights(tuning):
    made, folder = tuning
    network = Denoiser()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    diffusion = fg.MaskedDiffusion(network, tiny_task.LENGTH, 4)
    due = fg.Unguided(diffusion, Reward()).sample(12, num_steps=6, progress=False)
    assert torch.equal(due.samples, made.tuned.result.samples)
    np.testing.assert_allclose(made.tuned.guide, Reward()(due.samples))
    np.testing.assert_allclose(made.tuned.judge, tiny_task.oracle(due.samples))
    # naturalness is the pre-trained model's opinion
    bound = task().diffusion.elbo(due.samples, num_masks=4, seed=0)
    np.testing.assert_allclose(made.tuned.bound, bound)


@torch.no_grad()
def test_divergence_by_hand(tuning):
    """A row of the table decides the letter, so a step's KL is a sum over tables of rows."""
    made, folder = tuning
    tuned = load_file(folder / "model.safetensors")["table.weight"].T.log_softmax(-1).double()
    natural = tiny_task.TABLE.log_softmax(-1).double()
    each = (tuned.exp() * (tuned - natural)).sum(-1)
    network = Denoiser()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    diffusion = fg.MaskedDiffusion(network, tiny_task.LENGTH, 4)
    run = fg.Unguided(diffusion, Reward()).start(12, num_steps=6)
    due = torch.zeros(12, dtype=torch.float64)
    x = torch.full((12, tiny_task.LENGTH), 4)
    for step, state in zip(diffusion.steps(6), run, strict=True):
        left = nn.functional.pad(x, (1, 0), value=4)[:, :-1]
        due += step.params[0] * (each[left] * (x == 4)).sum(1)
        x = state.x.view(12, -1)
    np.testing.assert_allclose(made.divergence, due, rtol=1e-5)


def test_comparison_is_the_one_of_compare(tuning):
    made, _ = tuning
    keys = [one.key for one in made.comparison.designs]
    assert keys == ["unguided", "best_of_3", "svdd_alpha_0.5", "tuned"]
    due = report.compare(task(), made.settings.rivals(), progress=False)
    for one, other in zip(due.designs, made.comparison.designs, strict=False):
        assert one.sequences == other.sequences
    assert made.guided.key == "svdd_alpha_0.5"


def test_the_judge_decides_nothing():
    """A judge that only gets worse stops nothing, and is in the history."""
    falling = dataclasses.replace(task(), oracle=lambda samples: -Reward()(samples))
    found, plain = (report.tune(one, small("ppo"), progress=False) for one in (falling, task()))
    assert found.history.stopped is None
    assert found.history.column("reward").tolist() == plain.history.column("reward").tolist()
    assert found.history.column("held_out").tolist() == (-plain.history.column("reward")).tolist()


def test_break_even_by_hand(tuning):
    made, _ = tuning
    for designs, seconds in ((made.tuned, 6.0), (made.guided, 30.0)):
        designs.result.cost.seconds["total"] = seconds
    paid = dataclasses.replace(made, seconds={"training": 101.0, "training_cpu": 150.0})
    # 0.5 s against 2.5 s a design
    assert paid.figures()["designs_to_break_even"] == 51
    assert "after 51 designs" in report.tuning_findings(paid)[-1]
    made.tuned.result.cost.seconds["total"] = 30.0
    assert paid.figures()["designs_to_break_even"] == math.inf
    assert report.tuning_findings(paid)[-1].endswith("training never pays for itself here.")


def test_limits_stop_training():
    made = report.tune(task(), small("ppo", kl_budget=1e-4), progress=False)
    assert made.history.stopped == "kl_budget"
    assert made.figures()["iterations"] < 6
    assert "the divergence was beyond its budget" in report.tuning_findings(made)[0]
    made = report.tune(task(), small("ppo", max_minutes=1e-9), progress=False)
    assert made.figures()["iterations"] == 1
    assert "its minutes were over" in report.tuning_findings(made)[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "sgd"}, "method must be one of backprop, ppo.*got 'sgd'"),
        ({"max_minutes": 0}, "max_minutes must be positive, got 0"),
        ({"kl_budget": -1}, "kl_budget must be positive, got -1"),
        ({"method": "nft", "kl_budget": 1}, "nft does not know its divergence"),
    ],
)
def test_settings_explain_themselves(options, text):
    with pytest.raises(ArgumentError, match=text):
        dataclasses.replace(small("ppo"), **options)


def test_every_method_has_defaults_and_an_option():
    assert get_args(get_type_hints(command.Finetune)["method"]) == tuple(report.TUNERS)
    assert tuple(report.TUNINGS) == tuple(report.TUNERS)
    assert all(settings.method == name for name, settings in report.TUNINGS.items())
    blind = {name for name, method in report.TUNERS.items() if not method.knows_kl}
    assert blind == {"rwmle", "nft"}


# -- the command -------------------------------------------------------------------------------

OPTIONS = ("--num-iterations", 4, "--batch-size", 8, "--num-steps", 4, "--num-samples", 4)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task `tiny` in place of the shipped ones, and a small comparison."""
    monkeypatch.setattr(zoo, "load", lambda name, *, folder=None: task())
    few = {"sample_steps": 6, "num_reference": 8, "num_masks": 2, "num_candidates": 3}
    for name, settings in report.TUNINGS.items():
        monkeypatch.setitem(report.TUNINGS, name, dataclasses.replace(settings, **few))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_finetune_writes_a_report(shipped, tmp_path, capsys):
    assert run("finetune", "tiny", "--method", "ppo", *OPTIONS, "--out", tmp_path) == 0
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names >= {
        *("report.html", "summary.json", "history.jsonl", "designs.fasta", "designs.csv"),
        *("model.safetensors", "curves.png", "rewards.png", "diversity.png"),
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"]["method"] == "ppo"
    assert summary["settings"]["num_iterations"] == 4
    assert summary["training"]["iterations"] == 4
    assert [one["key"] for one in summary["methods"]][-1] == "tuned"
    assert summary["methods"][-1]["kl_nats_per_path"] > 0
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in history] == [0, 1, 2, 3]
    assert {"reward", "held_out", "kl", "clip_fraction", "seconds"} <= history[0].keys()
    with (tmp_path / "designs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows].count("tuned") == 4
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ('id="curves"', "Tuned by ppo", summary["findings"][2].split("±")[0]):
        assert text in page
    shown = capsys.readouterr()
    assert "KL," in shown.out
    assert "Training by ppo at alpha" in shown.out
    assert "model.safetensors" in shown.err


def interrupt(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_interrupted_training_goes_on(shipped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_tuning", lambda tuning, out: out / "report.html")
    options = ("finetune", "tiny", "--method", "ppo", *OPTIONS)
    assert run(*options, "--out", tmp_path / "due") == 0
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "collect", interrupt)
        assert run(*options, "--out", tmp_path / "found") == 130
        assert "too short for anything to be kept" in capsys.readouterr().err
    collect, calls = PPO.collect, []

    def third(self, *args):
        calls.append(args)
        return interrupt() if len(calls) == 3 else collect(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr("fastguide.finetune.method.SAVE_EVERY_SECONDS", 0.0)
        patch.setattr(PPO, "collect", third)
        assert run(*options, "--out", tmp_path / "found") == 130
    state = tmp_path / "found" / "training"
    assert f"is in {state}; the same command goes on from there" in capsys.readouterr().err
    assert run(*options, "--out", tmp_path / "found") == 0
    due, found = (load_file(tmp_path / name / "model.safetensors") for name in ("due", "found"))
    assert all(torch.equal(due[name], found[name]) for name in due)
    assert run(*options, "--out", tmp_path / "found", "--alpha", 0.7) == 2
    assert "belongs to another run; it differs in alpha" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--alpha", 0), "alpha must be positive"),
        (("--adapter", "half"), "adapter must be 'lora' or 'full', got 'half'"),
        (("--num-samples", 1), "num_samples must be at least 2"),
        (("--method", "rwmle", "--kl-budget", 1), "rwmle does not know its divergence"),
        (("--num-iterations", 0), "num_iterations must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line_and_code_2(shipped, tmp_path, capsys, options, text):
    assert run("finetune", "tiny", "--out", tmp_path, *options) == 2
    assert text in capsys.readouterr().err


def test_pictures_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(zoo, "PictureTask", zoo.Task)
    monkeypatch.setattr(zoo, "load", lambda name, *, folder=None: task())
    assert run("finetune", "glyphs", "--out", tmp_path / "out") == 2
    assert "'glyphs' makes pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
