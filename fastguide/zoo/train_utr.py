"""The recipe of the `utr` weights: one denoiser and two oracles, in minutes on two cores.

Every network is trained on one thread in its own process from its own seed, so the weights depend
on the seed, the data, the machine's instruction set and the torch version, but not on how many
processes run at once. Hyper-parameters were chosen on rows outside the test part, which is read
only once, for the metrics of the card.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastguide.nn import count_flops
from fastguide.zoo import utr, utr_data
from fastguide.zoo.checkpoint import make_folder, store_model, write_card
from fastguide.zoo.fitting import Fit, State, fit_network, processes
from fastguide.zoo.task import Task

Tensor = torch.Tensor

HALVES = {"guide": "guides", "judge": "judges"}
EVALUATION_ROWS = 512


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside data and seed.

    Attributes:
        denoiser, oracle: constructor arguments of `MaskedDenoiser` and `SequenceRegressor`.
        members: networks in each oracle.
        library_weight: weight of a row's squared error, per library (random, human).
        denoiser_fit, oracle_fit: optimisation.
        elbo_masks: mask levels of the reported bound.
    """

    denoiser: dict[str, Any] = field(
        default_factory=lambda: dict(
            channels=96, kernel_size=5, dilations=[1, 2, 4, 8], dropout=0.1
        )
    )
    oracle: dict[str, Any] = field(
        default_factory=lambda: dict(
            channels=64,
            kernel_size=5,
            stem_size=7,
            dilations=[1, 3, 3, 3],
            features=16,
            sums=8,
            hidden=128,
            dropout=0.2,
            conv_dropout=0.2,
        )
    )
    members: int = 3
    library_weight: tuple[float, float] = (1.5, 1.0)
    denoiser_fit: Fit = field(default_factory=lambda: Fit(epochs=12, batch_size=128))
    oracle_fit: Fit = field(
        default_factory=lambda: Fit(epochs=16, batch_size=64, warmup=0.15, weight_decay=0.1)
    )
    elbo_masks: int = 64


def train(
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    threads: int = 2,
    progress: bool = True,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Train the networks of task `utr`, measure them on held-out groups, write weights and card.

    Args:
        data: CSV file with columns seq, rl, library; docs/data.md says how to make it.
        out: folder for denoiser.safetensors, guide.safetensors, judge.safetensors and card.json.
        seed: of initial weights, order of rows, masks and dropout.
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
    make_folder(out)
    rows = utr_data.read(data)
    start = time.perf_counter()
    states = _fit_all(data, recipe, seed, threads, progress)
    seconds = time.perf_counter() - start
    models = _store_all(out, recipe, rows, states)
    card = _card(rows, recipe, seed, models, seconds)
    write_card(out, card)
    card["metrics"] = measure(utr.load(out), rows, recipe.elbo_masks)
    write_card(out, card)
    print(describe(card["metrics"]))
    return card


def measure(task: Task, rows: utr_data.Measurements, elbo_masks: int = 64) -> dict[str, Any]:
    """Held-out metrics of a loaded task, on the test groups that no network has seen.

    Returns:
        denoiser: elbo in bits per nucleotide of the human test rows, with its standard error
        over groups; guide, judge: Pearson correlation and root mean squared error (ribosomes per
        mRNA) of each library's own head; agreement: Pearson correlation of the two rewards.
    """
    test = {library: rows.rows("test", library=library) for library in utr_data.LIBRARIES}
    human = test["human"]
    bits = -task.diffusion.elbo(rows.tokens[human], num_masks=elbo_masks).float()
    bits = bits / (utr_data.LENGTH * math.log(2))
    metrics: dict[str, Any] = {
        "denoiser": {
            "bits_per_nucleotide": round(bits.mean().item(), 4),
            "standard_error": round(_group_error(bits, rows.group[human]), 4),
            "rows": len(human),
            "groups": len(rows.group[human].unique()),
            "num_masks": elbo_masks,
        }
    }
    for name, reward in (("guide", task.reward), ("judge", task.oracle)):
        metrics[name] = {}
        for head, (library, chosen) in enumerate(test.items()):
            predicted, load = reward.heads(rows.tokens[chosen])[:, head], rows.load[chosen]
            metrics[name][library] = {
                "pearson": round(_pearson(predicted, load), 4),
                "rmse": round((predicted - load).square().mean().sqrt().item(), 3),
                "rows": len(chosen),
            }
    metrics["agreement"] = {
        library: round(_pearson(*(r(rows.tokens[chosen]) for r in (task.reward, task.oracle))), 4)
        for library, chosen in test.items()
    }
    return metrics


def describe(metrics: dict[str, Any]) -> str:
    """The metrics as a few lines of text."""
    bound = metrics["denoiser"]
    lines = [
        f"denoiser  {bound['bits_per_nucleotide']:.4f} bits per nucleotide "
        f"(+- {bound['standard_error']:.4f}) on {bound['rows']} held-out human rows"
    ]
    for name, role in HALVES.items():
        found = ", ".join(
            f"{library} {metrics[name][library]['pearson']:.4f}" for library in utr_data.LIBRARIES
        )
        lines.append(f"{name:<9} Pearson {found} ({role})")
    found = ", ".join(f"{name} {value:.4f}" for name, value in metrics["agreement"].items())
    lines.append(f"agreement Pearson {found}")
    return "\n".join(lines)


def target_moments(rows: utr_data.Measurements, half: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [2] of the training targets of each library of one half."""
    loads = [rows.load[rows.rows(half, library=library)] for library in utr_data.LIBRARIES]
    return torch.stack([x.mean() for x in loads]), torch.stack([x.std() for x in loads])


def order_agnostic_loss(denoiser: nn.Module, x: Tensor, levels: Tensor) -> Tensor:
    """Cross-entropy per masked site, [B] nats, of clean rows x [B, L] at levels [B] in [0, 1).

    n = floor(level L) + 1 sites are masked, so a uniform level gives an unbiased estimate of the
    bound of `MaskedDiffusion.elbo` divided by -L. Its variance is below that of the SUBS loss,
    whose number of masked sites is random.
    """
    batch, length = x.shape
    count = (levels * length).long() + 1
    hidden = torch.rand(batch, length).argsort(dim=1).argsort(dim=1) < count[:, None]
    logits: Tensor = denoiser(x.masked_fill(hidden, utr.VOCAB_SIZE), torch.zeros(batch))
    log_p = logits.log_softmax(dim=-1).gather(-1, x[..., None])[..., 0]
    return -(log_p * hidden).sum(dim=1) / count


def _fit_all(
    data: Path, recipe: Recipe, seed: int, threads: int, progress: bool
) -> dict[str, list[State]]:
    """Fit every network, `threads` at once; the states of each model's members."""
    with processes(threads) as submit:
        # the longest job first
        jobs = {"denoiser": [submit(_fit_denoiser, data, recipe, 1000 * seed, progress)]}
        for index, half in enumerate(HALVES):
            jobs[half] = [
                submit(
                    _fit_member, data, recipe, half, 1000 * seed + 100 * index + member, progress
                )
                for member in range(1, recipe.members + 1)
            ]
        return {name: [job() for job in members] for name, members in jobs.items()}


def _store_all(
    out: Path, recipe: Recipe, rows: utr_data.Measurements, states: dict[str, list[State]]
) -> dict[str, Any]:
    """Write the fitted networks into `out`; their entries in the card."""
    with torch.random.fork_rng(devices=[]):
        denoiser = utr.build_denoiser(recipe.denoiser)
        oracles = {half: utr.build_oracle(recipe.oracle, recipe.members) for half in HALVES}
    _set_state(denoiser, states["denoiser"][0])

    def store(name: str, model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
        return store_model(out, name, model, config, count_flops(model, utr_data.LENGTH))

    models = {"denoiser": store("denoiser", denoiser, recipe.denoiser)}
    for half, oracle in oracles.items():
        oracle.centre, oracle.scale = target_moments(rows, half)
        for member, state in zip(oracle.members, states[half], strict=True):
            _set_state(member, state)
        models[half] = store(half, oracle, recipe.oracle) | {"members": recipe.members}
    return models


def _fit_denoiser(data: Path, recipe: Recipe, seed: int, progress: bool) -> State:
    """Fit the denoiser on the human rows of both halves."""
    rows = utr_data.read(data)
    train = rows.rows("guide", "judge", library="human")
    valid = rows.rows("guide-valid", "judge-valid", library="human")
    size = recipe.denoiser_fit.batch_size

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        levels = (torch.arange(size) + torch.rand(size)) / size
        return order_agnostic_loss(model, rows.tokens[batch], levels).mean() / math.log(2)

    def validate(model: nn.Module) -> str:
        levels = torch.linspace(0, 1, len(valid) + 1)[:-1][torch.randperm(len(valid))]
        bits = torch.cat(
            [
                order_agnostic_loss(model, rows.tokens[valid[part]], levels[part])
                for part in torch.arange(len(valid)).split(EVALUATION_ROWS)
            ]
        )
        return f"{bits.mean().item() / math.log(2):.3f} bits per nucleotide"

    torch.manual_seed(seed)
    model = utr.build_denoiser(recipe.denoiser, batch_norm=True)
    return fit_network(
        model,
        train,
        loss,
        recipe.denoiser_fit,
        name="denoiser",
        validate=validate,
        progress=progress,
    )


def _fit_member(data: Path, recipe: Recipe, half: str, seed: int, progress: bool) -> State:
    """Fit one member of the oracle of one half, on both libraries together."""
    rows = utr_data.read(data)
    centre, scale = target_moments(rows, half)
    target = (rows.load - centre[rows.library]) / scale[rows.library]
    one_hot = nn.functional.one_hot(rows.tokens, utr.VOCAB_SIZE).float()
    weight = torch.tensor(recipe.library_weight)[rows.library]

    def predict(model: nn.Module, batch: Tensor) -> Tensor:
        # a row has a target in its own library only
        heads: Tensor = model(one_hot[batch])
        return heads.gather(1, rows.library[batch, None])[:, 0]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        error = predict(model, batch) - target[batch]
        return (weight[batch] * error.square()).mean()

    def validate(model: nn.Module) -> str:
        found = []
        for library in utr_data.LIBRARIES:
            valid = rows.rows(f"{half}-valid", library=library)
            found.append(f"{library} {_pearson(predict(model, valid), target[valid]):.3f}")
        return "Pearson " + ", ".join(found)

    torch.manual_seed(seed)
    model = utr.build_member(recipe.oracle, batch_norm=True)
    return fit_network(
        model,
        rows.rows(half),
        loss,
        recipe.oracle_fit,
        name=f"{half} {seed % 100}",
        validate=validate,
        progress=progress,
    )


def _set_state(model: nn.Module, state: State) -> None:
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})


def _card(
    rows: utr_data.Measurements,
    recipe: Recipe,
    seed: int,
    models: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    settings = asdict(recipe)
    return {
        "task": "utr",
        "summary": "50-nucleotide 5'UTRs before the eGFP start codon; mean ribosome load "
        "(ribosomes per mRNA) in HEK293T cells, unmodified uridine, by polysome profiling",
        "data": {
            "publication": "Sample et al. 2019, Nature Biotechnology 37:803-809, "
            "doi:10.1038/s41587-019-0164-5",
            "accession": "GEO GSE114002: GSM3130435 (random library), GSM3130443 (human library)",
            "rows": {
                name: int((rows.library == i).sum()) for i, name in enumerate(utr_data.LIBRARIES)
            },
            "sha256": rows.sha256,
        },
        "split": {
            "method": "groups of sequences joined by shared 20-mers, assigned by hash; test: 10 % "
            "of the groups, read only for the metrics below; guide and judge: disjoint halves of "
            "the rest, each with 6 % of its groups for validation; the denoiser is trained on the "
            "human rows of both halves",
            "parts": rows.count(),
        },
        "models": models,
        "recipe": {
            "command": f"fastguide zoo train utr --data FILE --out DIR --seed {seed}",
            "seed": seed,
            "optimizer": "AdamW, one-cycle learning rate, averaged weights; one thread a network",
            "denoiser_loss": "cross-entropy per masked site, number of masked sites uniform",
            "oracle_loss": "squared error of the load, standardised per library, one head each",
            "members": recipe.members,
            "library_weight": list(recipe.library_weight),
            "denoiser_fit": settings["denoiser_fit"],
            "oracle_fit": settings["oracle_fit"],
            "seconds": round(seconds),
            "torch": torch.__version__,
        },
        "storage": "float16 safetensors, run in float32; metrics are of the stored weights",
        "licence": "measurements: GEO, no restriction by NCBI; weights: Apache-2.0",
    }


def _pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def _group_error(values: Tensor, group: Tensor) -> float:
    """Standard error of the mean of values [n] whose groups [n] are the independent units."""
    _, index = group.unique(return_inverse=True)
    sums = torch.zeros(int(index.max()) + 1).index_add(0, index, values - values.mean())
    return float(sums.square().sum().sqrt() / len(values))
