"""What the models of task `glyphs` are worth, on drawings that they have not seen."""

from __future__ import annotations

from typing import Any, cast

import torch

from fastguide.samplers import Unguided
from fastguide.zoo import glyphs
from fastguide.zoo.glyphs_data import FAULTS, Drawings, degrade
from fastguide.zoo.task import PictureTask

Tensor = torch.Tensor

BANDS = 5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def measure(task: PictureTask, drawings: Drawings, samples: int, num_steps: int) -> dict[str, Any]:
    """Held-out metrics of a loaded task.

    Args:
        task: as loaded.   drawings: what it was trained on, with the splits.
        samples: unguided samples to assess.   num_steps: of their sampling.

    Returns:
        denoiser: squared error of the velocity per pixel, on test characters, on as many training
        drawings, and per band of noise; aesthetic-*: area under the curve of test characters
        against spoilt copies, over all and per fault; alphabet-*: accuracy and cross-entropy on
        test drawings; samples: what the judges say of unguided samples, and of test drawings
        beside them; nearest_distance: quantiles of several kinds of drawings.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = Unguided(task.diffusion).sample(samples, num_steps=num_steps, progress=False).samples
        metrics = {"denoiser": _denoiser(task, drawings)}
        for half, rewards in zip(glyphs.HALVES, (task.rewards, task.oracles), strict=True):
            metrics[f"aesthetic-{half}"] = _aesthetic(rewards["aesthetic"], drawings)
            metrics[f"alphabet-{half}"] = _alphabet(_classifier(rewards), drawings)
        metrics["samples"] = _samples(task, made, drawings) | {"num_steps": num_steps}
        metrics["nearest_distance"] = _distances(task, made, drawings)
    return metrics


def describe(metrics: dict[str, Any]) -> str:
    """The metrics as a few lines of text."""
    error, made = metrics["denoiser"], metrics["samples"]
    lines = [
        f"denoiser   squared error {error['squared_error']:.4f} on {error['rows']} drawings of "
        f"held-out characters, {error['training_error']:.4f} on training ones"
    ]
    for half in glyphs.HALVES:
        lines.append(
            f"{half:<10} aesthetic AUC {metrics[f'aesthetic-{half}']['auc']:.4f}, "
            f"alphabet accuracy {metrics[f'alphabet-{half}']['accuracy']:.4f}"
        )
    lines.append(
        f"unguided   the judge finds {made['clean']:.0%} of {made['rows']} samples clean, and "
        f"{made['clean_drawings']:.0%} of held-out drawings"
    )
    lines += [
        f"{'distance':<10} {name.replace('_', ' ')}: median {quantiles[2]:.2f}"
        for name, quantiles in metrics["nearest_distance"].items()
        if name != "quantiles"
    ]
    return "\n".join(lines)


def _denoiser(task: PictureTask, drawings: Drawings) -> dict[str, Any]:
    def errors(rows: Tensor) -> Tensor:
        """[BANDS, n]: each drawing once in each band, at a level drawn there."""
        x = drawings.samples(rows)
        levels = (torch.arange(BANDS)[:, None] + torch.rand(BANDS, len(rows))) / BANDS
        network = task.diffusion.denoiser
        return torch.stack([glyphs.velocity_error(network, x, level) for level in levels])

    test = errors(drawings.rows("by_character", "test"))
    trained = errors(drawings.rows("by_character", *glyphs.HALVES)[: test.shape[1]])
    return {
        "squared_error": _round(test.mean()),
        "training_error": _round(trained.mean()),
        "rows": test.shape[1],
        "bands": {
            f"{i / BANDS:.1f}-{(i + 1) / BANDS:.1f}": _round(band.mean())
            for i, band in enumerate(test)
        },
    }


def _aesthetic(reward: Any, drawings: Drawings) -> dict[str, Any]:
    clean = drawings.samples(drawings.rows("by_character", "test"))
    spoilt = [reward(degrade(clean, torch.full((len(clean),), i))) for i in range(len(FAULTS))]
    scores = reward(clean)
    return {
        "auc": _round(_auc(scores, torch.cat(spoilt))),
        "rows": len(clean),
        "auc_by_fault": {
            name: _round(_auc(scores, part)) for name, part in zip(FAULTS, spoilt, strict=True)
        },
    }


def _alphabet(classifier: glyphs.Alphabet, drawings: Drawings) -> dict[str, Any]:
    test = drawings.rows("by_drawing", "test")
    log_p, due = classifier.log_probs(drawings.samples(test)), drawings.alphabet[test]
    return {
        "accuracy": _round((log_p.argmax(dim=1) == due).float().mean()),
        "cross_entropy": _round(-log_p.gather(1, due[:, None]).mean()),
        "rows": len(test),
        "chance": _round(due.bincount().max() / len(due)),
    }


def _samples(task: PictureTask, made: Tensor, drawings: Drawings) -> dict[str, Any]:
    """What the rewards say of unguided samples, and of drawings of test characters beside them."""
    real = drawings.samples(drawings.rows("by_character", "test"))
    both = torch.stack([task.reward(made), task.oracle(made)])
    return {
        "rows": len(made),
        "clean": _round((task.oracle(made) > 0).float().mean()),
        "clean_drawings": _round((task.oracle(real) > 0).float().mean()),
        "aesthetic": _round(task.oracle(made).mean()),
        "aesthetic_drawings": _round(task.oracle(real).mean()),
        "aesthetic_agreement": _round(torch.corrcoef(both)[0, 1]),
        "ink": _round(task.oracles["ink"](made).mean()),
        "ink_drawings": _round(task.oracles["ink"](real).mean()),
    }


def _distances(task: PictureTask, made: Tensor, drawings: Drawings) -> dict[str, list[float]]:
    """Quantiles of the distance to the nearest reference, of three kinds of drawings."""
    test = drawings.rows("by_character", "test")
    trained = drawings.rows("by_character", *glyphs.HALVES)
    trained_distance = task.nearest_distance(drawings.samples(trained))
    return {
        "quantiles": list(QUANTILES),
        "held_out_characters": _quantiles(task.nearest_distance(drawings.samples(test))),
        # rounding to 16 grey levels keeps a reference within this distance of itself
        "other_drawings": _quantiles(trained_distance[trained_distance > 0.5]),
        "samples": _quantiles(task.nearest_distance(made)),
    }


def _classifier(rewards: Any) -> glyphs.Alphabet:
    return cast(
        glyphs.Alphabet, next(r for name, r in rewards.items() if name.startswith("alphabet"))
    )


def _auc(better: Tensor, worse: Tensor) -> Tensor:
    """Share of pairs in the right order, ties half."""
    order = torch.sign(better[:, None] - worse)
    return (order.mean() + 1) / 2


def _quantiles(values: Tensor) -> list[float]:
    return [_round(value, 3) for value in values.quantile(torch.tensor(QUANTILES))]


def _round(value: Tensor, digits: int = 4) -> float:
    return round(float(value), digits)
