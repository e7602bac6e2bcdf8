"""The recipe of the `glyphs` weights: one denoiser and four classifiers, in under an hour.

Every network is trained on one thread in its own process from its own seed, so the weights depend
on the seed, the data, the machine's instruction set and the torch version, but not on how many
processes run at once. Nothing was chosen by the test parts.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fastguide.zoo import glyphs, glyphs_data
from fastguide.zoo.checkpoint import make_folder, save_weights, store_model, write_card
from fastguide.zoo.fitting import Fit, State, fit_network, processes
from fastguide.zoo.glyphs_data import Drawings, degrade, move
from fastguide.zoo.measure_glyphs import describe, measure

Tensor = torch.Tensor


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside data and seed.

    Attributes:
        denoiser, classifier: constructor arguments of `UNet` and `PictureClassifier`.
        denoiser_fit, aesthetic_fit, alphabet_fit: optimisation.
        references: drawings of each training character that are stored.
        samples, num_steps: unguided samples that the metrics are about, and their steps.
    """

    denoiser: dict[str, Any] = field(
        default_factory=lambda: dict(patch=2, channels=[32, 96], heads=3, features=64)
    )
    classifier: dict[str, Any] = field(
        default_factory=lambda: dict(channels=[16, 32, 64], dropout=0.2)
    )
    denoiser_fit: Fit = field(
        default_factory=lambda: Fit(
            epochs=210,
            batch_size=64,
            learning_rate=1.5e-3,
            warmup=0.05,
            weight_decay=0.01,
            average=0.999,
        )
    )
    aesthetic_fit: Fit = field(default_factory=lambda: Fit(epochs=40, batch_size=64))
    alphabet_fit: Fit = field(default_factory=lambda: Fit(epochs=20, batch_size=64))
    references: int = 4
    samples: int = 256
    num_steps: int = 50


def train(
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    threads: int = 2,
    progress: bool = True,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Train the networks of task `glyphs`, measure them on held-out drawings, write all of it.

    Args:
        data: file of NumPy arrays images, alphabet, character; docs/data.md says how to make it.
        out: folder for a file of weights per network, the references, and card.json.
        seed: of initial weights, order of rows, noise, moves and faults.
        threads: networks trained at once, one thread each.
        progress: print a line per epoch on the standard error stream.
        recipe: None takes the recipe of the shipped weights.

    Returns:
        The card.

    Raises:
        ArgumentError: the data cannot be read, or `out` cannot be written.
    """
    recipe = recipe or Recipe()
    data, out = Path(data), Path(out)
    drawings = glyphs_data.read(data)
    make_folder(out)
    start = time.perf_counter()
    states = fit_all(data, recipe, seed, threads, progress)
    return finish(out, recipe, drawings, states, seed, time.perf_counter() - start)


def fit_all(
    data: Path, recipe: Recipe, seed: int, threads: int, progress: bool
) -> dict[str, State]:
    """Fit every network, `threads` at once; their states by name."""
    fits = {"denoiser": fit_denoiser, "aesthetic": fit_aesthetic, "alphabet": fit_alphabet}
    with processes(threads) as submit:
        # the longest job first
        jobs = {
            name: submit(fits[name.split("-")[0]], data, recipe, name, 1000 * seed + i, progress)
            for i, name in enumerate(glyphs.MODELS)
        }
        return {name: job() for name, job in jobs.items()}


def finish(
    out: Path,
    recipe: Recipe,
    drawings: Drawings,
    states: dict[str, State],
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """Write the fitted networks, measure what was written, and return the card."""
    models = {}
    for name, state in states.items():
        config = _config(name, recipe, drawings)
        with torch.random.fork_rng(devices=[]):
            model = glyphs.build(name, config)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        models[name] = store_model(out, name, model, config, _flops(name, model))
    card = _card(drawings, recipe, seed, models, seconds)
    card["references"] = _store_references(out, recipe, drawings)
    write_card(out, card)
    card["metrics"] = measure(glyphs.load(out), drawings, recipe.samples, recipe.num_steps)
    write_card(out, card)
    print(describe(card["metrics"]))
    return card


def fit_denoiser(data: Path, recipe: Recipe, name: str, seed: int, progress: bool) -> State:
    """Fit the denoiser on all characters but the test ones."""
    drawings = glyphs_data.read(data)
    size = recipe.denoiser_fit.batch_size

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        # one level in each of `size` equal intervals
        levels = (torch.arange(size) + torch.rand(size)) / size
        return glyphs.velocity_error(model, move(drawings.samples(batch)), levels).mean()

    def validate(model: nn.Module) -> str:
        test = drawings.rows("by_character", "test")
        levels = torch.linspace(0, 1, len(test) + 1)[:-1][torch.randperm(len(test))]
        return f"error {glyphs.velocity_error(model, drawings.samples(test), levels).mean():.4f}"

    torch.manual_seed(seed)
    return fit_network(
        glyphs.build(name, _config(name, recipe, drawings)),
        drawings.rows("by_character", *glyphs.HALVES),
        loss,
        recipe.denoiser_fit,
        name=name,
        validate=validate,
        progress=progress,
    )


def fit_aesthetic(data: Path, recipe: Recipe, name: str, seed: int, progress: bool) -> State:
    """Fit an aesthetic head on one half of the characters: each drawing and a spoilt copy."""
    drawings = glyphs_data.read(data)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        clean = move(drawings.samples(batch))
        logits = model(torch.cat([clean, degrade(clean)]))[:, 0]
        return functional.binary_cross_entropy_with_logits(
            logits, torch.cat([torch.ones(len(batch)), torch.zeros(len(batch))])
        )

    def validate(model: nn.Module) -> str:
        return f"cross-entropy {loss(model, drawings.rows('by_character', 'test')):.3f} nats"

    torch.manual_seed(seed)
    return fit_network(
        glyphs.build(name, _config(name, recipe, drawings)),
        drawings.rows("by_character", name.split("-")[1]),
        loss,
        recipe.aesthetic_fit,
        name=name,
        validate=validate,
        progress=progress,
    )


def fit_alphabet(data: Path, recipe: Recipe, name: str, seed: int, progress: bool) -> State:
    """Fit a classifier of alphabets on one half of the drawings of every character."""
    drawings = glyphs_data.read(data)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(move(drawings.samples(batch)))
        return functional.cross_entropy(logits, drawings.alphabet[batch])

    def validate(model: nn.Module) -> str:
        test = drawings.rows("by_drawing", "test")
        right = model(drawings.samples(test)).argmax(dim=1) == drawings.alphabet[test]
        return f"accuracy {right.float().mean():.3f}"

    torch.manual_seed(seed)
    return fit_network(
        glyphs.build(name, _config(name, recipe, drawings)),
        drawings.rows("by_drawing", name.split("-")[1]),
        loss,
        recipe.alphabet_fit,
        name=name,
        validate=validate,
        progress=progress,
    )


def _config(name: str, recipe: Recipe, drawings: Drawings) -> dict[str, Any]:
    """Constructor arguments of the network of that name."""
    if name == "denoiser":
        return recipe.denoiser
    outputs = 1 if name.startswith("aesthetic") else len(drawings.alphabets)
    return {"outputs": outputs, **recipe.classifier}


def _flops(name: str, model: nn.Module) -> int:
    """Floating-point operations of one row, 2 per multiply-add."""
    inputs = [torch.zeros(1, *glyphs.SHAPE)] + [torch.zeros(1)] * (name == "denoiser")
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def _store_references(out: Path, recipe: Recipe, drawings: Drawings) -> dict[str, Any]:
    """Write the first drawings of every training character; the entry in the card."""
    seen: dict[int, int] = {}
    rows = []
    for row in drawings.rows("by_character", *glyphs.HALVES).tolist():
        character = int(drawings.character[row])
        seen[character] = seen.get(character, 0) + 1
        if seen[character] <= recipe.references:
            rows.append(row)
    rows.sort(key=lambda row: int(drawings.alphabet[row]))
    references = glyphs.References(len(rows))
    references.store(drawings.images[rows])
    path = out / "references.safetensors"
    sha256 = save_weights(path, references)
    return {
        "file": path.name,
        "sha256": sha256,
        "bytes": path.stat().st_size,
        "drawings": len(rows),
        "per_alphabet": drawings.alphabet[rows].bincount().tolist(),
        "what": f"the first {recipe.references} drawings of each training character, "
        f"by alphabet, at {glyphs.GREYS} grey levels",
        "distance": "Euclidean, of ink shares in 0..1, both pictures blurred by a Gaussian of "
        f"{glyphs.BLUR:g} pixel",
    }


def _card(
    drawings: Drawings,
    recipe: Recipe,
    seed: int,
    models: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    settings = asdict(recipe)
    return {
        "task": "glyphs",
        "summary": "28x28 grey pictures of handwritten characters of "
        f"{len(drawings.alphabets)} alphabets",
        "data": {
            "publication": "Lake, Salakhutdinov and Tenenbaum 2015, Science 350:1332-1338, "
            "doi:10.1126/science.aab3050",
            "accession": "Omniglot, github.com/brendenlake/omniglot, images_background_small1 and "
            "images_background_small2",
            "rows": len(drawings.images),
            "characters": drawings.num_characters,
            "alphabets": list(drawings.alphabets),
            "sha256": drawings.sha256,
        },
        "split": {
            "method": "by hash, twice. by_character never divides a character: the denoiser is "
            "trained on both halves, an aesthetic head on one; by_drawing divides each: a "
            "classifier of alphabets is trained on one half. test: 10 %, for the metrics only",
            "parts": {
                split: {part: len(drawings.rows(split, part)) for part in ("test", *glyphs.HALVES)}
                for split in ("by_character", "by_drawing")
            },
        },
        "models": models,
        "recipe": {
            "command": f"fastguide zoo train glyphs --data FILE --out DIR --seed {seed}",
            "seed": seed,
            "optimizer": "AdamW, one-cycle learning rate, averaged weights; one thread a network",
            "denoiser_loss": "squared error of the velocity, levels uniform on a cosine schedule "
            f"of {glyphs.NUM_LEVELS}",
            "aesthetic_loss": "cross-entropy of drawings against copies with one fault each: "
            + ", ".join(glyphs_data.FAULTS),
            "alphabet_loss": "cross-entropy",
            "augmentation": "three of four drawings turned up to 7 degrees, stretched 10 %, "
            "slanted 0.1 and shifted 1.5 pixels",
            **{name: value for name, value in settings.items() if name.endswith("_fit")},
            "seconds": round(seconds),
            "torch": torch.__version__,
        },
        "storage": "float16 safetensors, run in float32; metrics are of the stored weights",
        "licence": "drawings: MIT, (c) 2015 Brenden Lake; weights: Apache-2.0",
    }
