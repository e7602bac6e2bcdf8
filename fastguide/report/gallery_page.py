"""report.html of a comparison on pictures: one file with everything in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

from fastguide.report.environment import environment
from fastguide.report.family import cost_per_design
from fastguide.report.gallery import Gallery, Pictures
from fastguide.report.gallery_pictures import COLUMNS, grid_png
from fastguide.report.gallery_text import (
    ablation_columns,
    gallery_findings,
    legend,
    quality_columns,
    settings_rows,
)
from fastguide.report.methods import TABLE
from fastguide.report.page import cells, picture
from fastguide.report.page_style import STYLE
from fastguide.report.tables import number, rows_of

SHOWN = 4 * COLUMNS
"""Pictures of each method."""

MORE_STYLE = "figure.drawn img { image-rendering: pixelated; }"


def build_gallery_page(gallery: Gallery, images: dict[str, bytes]) -> str:
    """The whole page.

    Args:
        images: PNG files by name; see `gallery_pictures.draw_gallery`. Any may be missing.
    """
    figures = gallery.figures()
    settings = gallery.settings
    findings = "".join(f"<li>{escape(line)}</li>" for line in gallery_findings(gallery))
    body = [
        f"<h1>{escape(gallery.task.capitalize())} guided by {escape(gallery.reward)}</h1>",
        f'<p class="lead">{escape(_lead(gallery))}</p>',
        f'<div class="card findings"><ul>{findings}</ul></div>',
        "<h2>How good, how natural, how diverse</h2>",
        cells(rows_of(quality_columns(gallery), figures)),
        f'<p class="lead">{escape(legend(gallery))}</p>',
        _pictures(
            images,
            overview="The first pictures of each method, not the best ones. Equal columns start "
            "from the same noise where a method has one chain for a picture.",
            rewards="Means with two standard errors; dashed: unguided samples.",
            naturalness="Right is better for the judge, up is cleaner, and inside the band a "
            "method is as far from the training drawings as new drawings are.",
        ),
        "<h2>What it cost</h2>",
        cells(rows_of(cost_per_design(figures), figures)),
        '<p class="lead">A row is one picture given to a network. A row of a method that follows '
        "gradients counts one, although it is passed through the denoiser forwards and backwards: "
        "compare seconds too.</p>",
        *_ablation(gallery, "candidates", gallery.candidates, images),
        *_ablation(gallery, "temperatures", gallery.temperatures, images),
        f"<h2>The first {min(SHOWN, settings.num_samples)} pictures of each method</h2>",
        '<div class="grid">',
        _drawn("Training drawings", grid_png(gallery.drawings[:SHOWN])),
        *(_drawn(made.label, grid_png(made.images[:SHOWN])) for made in gallery.runs),
        "</div>",
        "<h2>Settings</h2>",
        cells(settings_rows(gallery)),
        '<p class="lead">What is not listed is the same for all: '
        f"{settings.num_steps} steps, seed {settings.seed}.</p>",
        "<h2>Terms</h2>",
        _terms(gallery),
        _footer(gallery),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fastguide: {escape(gallery.task)}</title>\n<style>{STYLE}{MORE_STYLE}</style>\n"
        "</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _lead(gallery: Gallery) -> str:
    settings = gallery.settings
    judge = (
        "The reward is computed, not learned, and judges itself; the aesthetic judge, which no "
        "method has seen, says what else became of the pictures."
        if gallery.exact
        else "A second network, trained on other drawings, judges what the first one guided."
    )
    return (
        f"{len(gallery.runs)} runs made {settings.num_samples} pictures each from the same "
        f"pre-trained diffusion model, in {settings.num_steps} steps and with about "
        f"{number(settings.rows_per_design, 0)} denoiser rows per picture. {judge}"
    )


def _ablation(
    gallery: Gallery, name: str, made: Sequence[Pictures], images: dict[str, bytes]
) -> list[str]:
    if not made:
        return []
    figures = [one.figures(gallery.usual_distance) for one in made]
    titles = {"candidates": "SVDD: few to many candidates", "temperatures": "SVDD: the temperature"}
    return [
        f"<h2>{titles[name]}</h2>",
        cells(rows_of(ablation_columns(gallery), figures)),
        _pictures(
            images,
            **{
                name: "Bars: two standard errors. Dashed: unguided samples.",
                f"{name}_overview": "The first pictures of each run, from the same noise.",
            },
        ),
    ]


def _pictures(images: dict[str, bytes], **captions: str) -> str:
    parts = (
        picture(name, name.replace("_", " ").capitalize(), caption, images[name])
        for name, caption in captions.items()
        if name in images
    )
    return f'<div class="grid">{"".join(parts)}</div>'


def _drawn(label: str, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure class="card drawn"><h3>{escape(label)}</h3>'
        f'<img alt="{escape(label)}" src="data:image/png;base64,{data}"></figure>'
    )


def _terms(gallery: Gallery) -> str:
    made = [
        TABLE[name]
        for name in gallery.settings.methods
        if TABLE[name].label not in gallery.left_out
    ]
    terms = {
        "Denoiser": "The network of the diffusion model, which takes noise out of a picture.",
        "Unguided": "Plain samples of the diffusion model, as if there were no reward.",
        "Best of N": "Of N unguided samples the one with the highest guiding reward.",
        "SVDD": "At each step some possible continuations are drawn and one is kept, the more "
        "likely the higher its predicted reward.",
        **{method.label: method.about for method in made if method.about},
        "Alpha": "The temperature of a choice, in units of the reward: a small alpha pulls harder "
        "toward the reward, and alpha 0 always takes the best continuation.",
    }
    items = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items()
    )
    return f'<dl class="card">{items}</dl>'


def _footer(gallery: Gallery) -> str:
    here = environment()
    data = gallery.card.get("data", {})
    source = " ".join(str(data[key]) for key in ("publication", "accession") if key in data)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"fastguide {here['fastguide']}, torch {here['torch']}, Python {here['python']}; "
        f"{here['processor']}, {here['threads']} threads; seed {gallery.settings.seed}. {made}.",
        f"The whole comparison took {number(gallery.seconds['wall'], 0)} s "
        f"({number(gallery.seconds['cpu'], 0)} s of processor time).",
        f"Drawings behind the models: {source}." if source else "",
    ]
    return "<footer>" + "".join(f"<p>{escape(line)}</p>" for line in lines if line) + "</footer>"
