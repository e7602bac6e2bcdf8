"""The example of docs/diffusions.md runs."""

from __future__ import annotations

import re


def test_example(root, capsys):
    text = (root / "docs" / "diffusions.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.+?)```", text, re.S)
    exec(block, {})
    assert capsys.readouterr().out.startswith("torch.Size([16, 2]) -")
