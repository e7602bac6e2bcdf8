"""The style sheet of report.html."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #55616e; --line: #dfe4ea; --paper: #f5f7f9;
  --accent: #1b6fae; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.2rem); line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 0.6rem; }
p, li { max-width: 72ch; }
.lead { font-size: 1.05rem; color: var(--soft); }
.card { background: white; border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.2rem;
  margin: 1rem 0; }
h3 { margin: 0 0 0.6rem; }
.findings ul { margin: 0.2rem 0; padding-left: 1.2rem; }
.findings li { margin: 0.45rem 0; }
.grid { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure.card { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 0.92rem; margin-top: 0.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.5rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { vertical-align: bottom; font-weight: 600; color: var(--soft); white-space: normal;
  min-width: 4rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: white; }
td.no { color: #b3261e; font-weight: 600; } td.yes { color: #1e7d3c; font-weight: 600; }
dt { font-weight: 600; } dd { margin: 0 0 0.6rem; color: var(--soft); max-width: 72ch; }
td.sequence:first-child { position: static; text-align: left; letter-spacing: 0.04em;
  font-size: 0.86rem; font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
footer { color: var(--soft); font-size: 0.88rem; margin-top: 2.5rem; }
@media print { body { background: white; } .card { break-inside: avoid; } }
"""
