"""Every example of docs/values.md runs, at a smaller size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [0, 1])
def test_examples(root: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = (root / "docs" / "values.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.+?)```", text, re.S)
    assert len(blocks) == 2
    code = blocks[number].replace("sample(4, num_steps=32)", "sample(2, num_steps=4)")
    assert code != blocks[number]
    exec(code, {})
    float(capsys.readouterr().out.split()[-1])
