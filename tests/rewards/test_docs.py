"""Every example of docs/rewards.md runs, at a smaller size."""

from __future__ import annotations

import importlib
import multiprocessing
import re

import pytest


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_examples(root, tmp_path, monkeypatch, capsys, number):
    text = (root / "docs" / "rewards.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.+?)```", text, re.S)
    assert len(blocks) == 4
    if "rewards.jit" in blocks[number]:
        pytest.importorskip("numba")
    code = blocks[number].replace("sample(16, num_steps=64)", "sample(2, num_steps=4)")
    code = code.replace("workers=2", "workers=1")
    assert code != blocks[number]
    name = f"rewards_example_{number}"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    example = importlib.import_module(name)
    getattr(example, "main", lambda: None)()
    float(capsys.readouterr().out.split()[-1])
    assert multiprocessing.active_children() == []
