"""The examples of docs/finetuning.md run."""

from __future__ import annotations

import re

import pytest


@pytest.mark.parametrize("number", [0, 1, 2])
def test_example(number, root, tmp_path, monkeypatch, capsys):
    text = (root / "docs" / "finetuning.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.+?)```", text, re.S)[number]
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    written = {path.name for path in tmp_path.iterdir()}
    assert written == ({"tuned.safetensors"}, set(), {"run", "tuned.safetensors"})[number]
