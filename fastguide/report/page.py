"""report.html: one file with everything in it, for a phone and for a desktop."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

from fastguide.report.designs import NATURAL_QUANTILE, Comparison, Designs
from fastguide.report.environment import environment
from fastguide.report.family import (
    cost_per_design,
    effective,
    quantile_columns,
    settings_rows,
    weighted_rows,
)
from fastguide.report.methods import TABLE
from fastguide.report.metrics import share_of, upstream_starts
from fastguide.report.page_style import STYLE
from fastguide.report.summary import findings
from fastguide.report.tables import (
    Column,
    Figures,
    cost_columns,
    number,
    quality_columns,
    rows_of,
)
from fastguide.report.words import Words, words_of

SHOWN_DESIGNS = 8


def build_page(comparison: Comparison, images: dict[str, bytes]) -> str:
    """The whole page.

    Args:
        images: PNG files by picture name; see `pictures.draw`. Any may be missing.
    """
    words = words_of(comparison.task)
    settings = comparison.settings
    figures = comparison.figures()
    quality = quality_columns(words, figures)
    if settings.wide:
        quality.append(("mean ESS", effective))
    body = [
        f"<h1>Designing {escape(words.design)}s for high {escape(words.reward)}</h1>",
        f'<p class="lead">{escape(_lead(comparison, words))}</p>',
        _findings(comparison),
        "<h2>How good, how natural, how diverse</h2>",
        _table(quality, figures),
        f'<p class="lead">Rewards are means over {settings.num_samples} designs ± standard error; '
        "the bound is a median ± standard error (bootstrap). Distances are in "
        f"{escape(words.site)}s that differ.</p>",
        *_family_tables(comparison, figures),
        '<div class="grid">',
        *(
            picture(name, title, caption, images[name])
            for name, title, caption in _captions(comparison, words)
            if name in images
        ),
        "</div>",
        "<h2>What it cost</h2>",
        _table(cost_columns(), figures),
        '<p class="lead">A row is one sequence given to a network. Requested: what the same method '
        "would run without any reuse. Run: what was left after equal states, carried outputs and "
        "repeated predictions were taken from memory. Kernels and other are the time outside the "
        "networks.</p>",
        _matching(comparison),
        *_budget_tables(comparison, figures),
        f"<h2>Some designs: {escape(_shown(comparison).label)}</h2>",
        _sequences(comparison, words),
        start_codons(comparison, words),
        "<h2>Terms</h2>",
        _terms(comparison, words),
        footer(comparison),
    ]
    title = f"fastguide: {comparison.task}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _lead(comparison: Comparison, words: Words) -> str:
    settings = comparison.settings
    return (
        f"{len(comparison.designs)} methods made {settings.num_samples} {words.design}s each from "
        f"the same pre-trained diffusion model, in {settings.num_steps} steps. One oracle, a "
        f"network that predicts {words.reward}, guides the designs; a second one, trained on other "
        "measurements, judges them. A method that fools its guide scores lower with the judge."
    )


def _findings(comparison: Comparison) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in findings(comparison))
    return f'<div class="card findings"><ul>{items}</ul></div>' if items else ""


def _captions(comparison: Comparison, words: Words) -> list[tuple[str, str, str]]:
    reference = len(comparison.reference.sequences)
    return [
        (
            "rewards",
            "Rewards",
            "Every point is a design. Upright: median; bar: middle half; dashed: median of "
            f"{reference:,} unguided samples. Where a method stands further right with the guide "
            "than with the judge, part of its gain is the guide's error.",
        ),
        (
            "naturalness",
            "Naturalness against reward",
            "Small points are designs, large ones medians. Right is better for the judge; up is "
            "more like the sequences that the model was trained on. Below the dashed line a median "
            f"design is less likely than {1 - NATURAL_QUANTILE:.0%} of unguided samples.",
        ),
        (
            "steps",
            "Reward along the steps",
            "The guide's prediction for the design that each unfinished sequence would become. "
            "Line: median; band: middle half. Diamonds: methods that look at the reward only at "
            "the end.",
        ),
        (
            "ess",
            "Effective number along the steps",
            "How many candidates, or particles, a choice was between in effect. Methods that "
            "always take the best are left out.",
        ),
        (
            "diversity",
            "Diversity",
            f"How many {words.site}s differ between designs of one method. A method that keeps "
            "making the same design moves to the left.",
        ),
        (
            "logos",
            "Sequence logos",
            f"A tall letter is preferred at that {words.site}; at zero bits all letters are "
            "equally common.",
        ),
        (
            "cost",
            "Cost",
            "Top: where the time went. Bottom: rows run, within the rows requested.",
        ),
    ]


def picture(name: str, title: str, caption: str, image: bytes) -> str:
    """A PNG file within the page, with its caption."""
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure class="card" id="{name}"><h3>{escape(title)}</h3>'
        f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _family_tables(comparison: Comparison, figures: Sequence[Figures]) -> list[str]:
    """Quantiles, and particles by their weights, of a comparison of many methods."""
    if not comparison.settings.wide:
        return []
    parts = ["<h3>Quantiles of the rewards</h3>", _table(quantile_columns(), figures)]
    if weighted := weighted_rows(comparison):
        parts += [
            "<h3>Particles by their weights</h3>",
            cells(weighted),
            '<p class="lead">A design of a particle method is drawn from its group by the final '
            "weights. Weighted: all particles of all groups by those weights, each group alike. "
            "ESS: the effective number of particles of a group at the end. Log Z: mean and "
            "standard deviation over the groups, in nats.</p>",
        ]
    return parts


def _budget_tables(comparison: Comparison, figures: Sequence[Figures]) -> list[str]:
    """What a design cost, and the settings of every method."""
    if not comparison.settings.wide:
        return []
    return [
        "<h3>Per design</h3>",
        _table(cost_per_design(figures), figures),
        "<h3>Settings</h3>",
        cells(settings_rows(comparison)),
        '<p class="lead">What is not listed is the same for all. Nothing was tuned: one alpha for '
        "all methods that have one, and defaults for the rest.</p>",
    ]


def _table(columns: Sequence[Column], figures: Sequence[Figures]) -> str:
    return cells(rows_of(columns, figures))


def cells(rows: Sequence[Sequence[str]]) -> str:
    """A table of header and body rows."""
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in body)
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    mark = f' class="{text}"' if text in ("yes", "no") else ""
    return f"<td{mark}>{escape(text)}</td>"


def _matching(comparison: Comparison) -> str:
    matching = comparison.matching
    if matching is None:
        return ""
    rival = next(made for made in comparison.designs if made.key == "best_of_n_matched")
    return (
        f"<p>{escape(rival.label)}: {matching['num_candidates']} is the smallest N for which best "
        f"of N runs at least the {matching['target_denoiser_rows']:,} denoiser rows of "
        f"{escape(matching['target'])}. It ran {matching['denoiser_rows']:,}; one candidate fewer "
        f"gives {number(matching['denoiser_rows_one_fewer'], 0)} ({matching['one_fewer_is']}).</p>"
    )


def _shown(comparison: Comparison) -> Designs:
    """The natural guided method that its guide likes best, or simply the last method."""
    limit = comparison.natural_limit
    guided = [made for made in comparison.designs if made.key.startswith("svdd_alpha")]
    natural = [made for made in guided if made.figures(limit)["natural"]]
    return max(natural or guided or comparison.designs[-1:], key=lambda made: made.guide.mean())


def _sequences(comparison: Comparison, words: Words) -> str:
    made = _shown(comparison)
    order = sorted(range(len(made.sequences)), key=lambda row: -made.guide[row])[:SHOWN_DESIGNS]
    lines = "".join(
        f'<tr><td class="sequence">{escape(made.sequences[row])}</td>'
        f"<td>{number(made.guide[row])}</td><td>{number(made.judge[row])}</td>"
        f"<td>{number(made.bound_per_site[row], 3)}</td></tr>"
        for row in order
    )
    return (
        f"<p>The {len(order)} that the guide likes best. All designs of all methods are in "
        "designs.fasta and designs.csv.</p>"
        '<div class="card scroll"><table><thead><tr><th>sequence</th><th>guiding reward</th>'
        f"<th>judging reward</th><th>bound, nats per {escape(words.site)}</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def start_codons(comparison: Comparison, words: Words) -> str:
    """For sequences before a start codon: G and C, and start codons of their own."""
    if not words.before_start_codon:
        return ""
    lines = "".join(
        f"<tr><td>{escape(made.label)}</td><td>{share_of(made.sequences, 'GC'):.0%}</td>"
        f"<td>{upstream_starts(made.sequences, in_frame=False):.0%}</td>"
        f"<td>{upstream_starts(made.sequences, in_frame=True):.0%}</td></tr>"
        for made in [*comparison.designs, comparison.reference]
    )
    return (
        "<p>An ATG inside a design may start translation early: out of frame it costs protein, in "
        "frame it lengthens the protein. Check the designs for it.</p>"
        '<div class="card scroll"><table><thead><tr><th>method</th><th>G and C</th>'
        "<th>designs with an ATG out of frame</th><th>with an ATG in frame</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _terms(comparison: Comparison, words: Words) -> str:
    settings = comparison.settings
    present = [name for name in settings.methods if name in TABLE]
    terms = {
        words.reward.capitalize(): "The reward: what the designs should have much of"
        + (f", in {words.unit}." if words.unit else "."),
        "Guiding oracle, judging oracle": "Two networks that predict the reward from the sequence, "
        "trained on disjoint halves of the measurements; only the first is seen while designing.",
        "Denoiser": "The network of the diffusion model, which fills in hidden "
        f"{words.site}s the way natural sequences do.",
        "Unguided": "Plain samples of the diffusion model, as if there were no reward.",
        "Best of N": "Of N unguided samples the one with the highest guiding reward; N samples are "
        "spent on each design.",
        "SVDD": f"At each step {'some' if settings.budget else settings.num_candidates} possible "
        "continuations are drawn and one is kept, the more likely the higher its predicted reward.",
        **{TABLE[name].label: TABLE[name].about for name in present if TABLE[name].about},
        "Alpha": "The temperature of that choice, in units of the reward: a small alpha pulls "
        "harder toward the reward, and alpha 0 always takes the best continuation.",
        "Log-likelihood bound (ELBO)": "A lower bound of how likely the pre-trained model finds a "
        f"design, here divided by its length; computed with {settings.num_masks} masks that are "
        "the same for all designs.",
        "Natural": "Whether the median design of a method is more likely than the least likely "
        f"{NATURAL_QUANTILE:.0%} of {len(comparison.reference.sequences):,} unguided samples.",
        "Mean distance, nearest distance": f"The number of {words.site}s in which two designs of a "
        "method differ: averaged over all pairs, and to the most similar other design.",
        "Bits": "How far the letters at a site are from all being equally common.",
    }
    items = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items()
    )
    return f'<dl class="card">{items}</dl>'


def footer(comparison: Comparison) -> str:
    """Versions, machine, seconds and sources."""
    here, settings = environment(), comparison.settings
    data = comparison.card.get("data", {})
    source = " ".join(str(data[key]) for key in ("publication", "accession") if key in data)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"fastguide {here['fastguide']}, torch {here['torch']}, Python {here['python']}; "
        f"{here['processor']}, {here['threads']} threads; seed {settings.seed}. {made}.",
        f"The whole comparison took {number(comparison.seconds.get('wall', float('nan')), 0)} s "
        f"({number(comparison.seconds.get('cpu', float('nan')), 0)} s of processor time).",
        f"Measurements behind the models: {source}." if source else "",
        "Predictions of networks, not measurements: test designs before relying on them.",
    ]
    return "<footer>" + "".join(f"<p>{escape(line)}</p>" for line in lines if line) + "</footer>"
