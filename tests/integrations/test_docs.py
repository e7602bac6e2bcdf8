"""docs/pipelines.md says what the tests find."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from pipelines_matrix import line, row, table, written
from pipelines_tiny import CASES, WARNINGS

pytestmark = WARNINGS

AGAIN = "write it anew: python tests/pipelines_matrix.py"


@pytest.mark.parametrize("name", ["ddpm-free", "sd-heun", "sd-unipc", "flux-euler", "dit-ddpm"])
def test_lines_of_the_matrix_are_what_runs(name: str) -> None:
    assert line(row(CASES[name])) in written().splitlines(), AGAIN


def test_the_matrix_names_every_pair() -> None:
    pairs = set()
    for case in CASES.values():
        pipe = case.build()
        pairs.add(f"| `{type(pipe).__name__}` | `{type(pipe.scheduler).__name__}` |")
    lines = written().splitlines()[2:]
    assert {" | ".join(each.split(" | ")[:2]) + " |" for each in lines} == pairs, AGAIN


@pytest.mark.slow
def test_the_matrix_is_what_runs() -> None:
    assert written() == table(), AGAIN


def test_the_example_without_a_model_runs(root, capsys) -> None:
    text = (root / "docs" / "pipelines.md").read_text(encoding="utf-8")
    (block,) = [each for each in re.findall(r"```python\n(.+?)```", text, re.S) if "zoo" in each]
    names: dict = {}
    exec(block.replace("num_inference_steps=32", "num_inference_steps=4"), names)
    assert len(names["out"].images) == 4
    assert "denoiser 100 of 128 rows" in capsys.readouterr().out
