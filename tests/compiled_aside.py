"""Compilers that run beside the tests, which see their tables when they get to them.

A conftest.py passes the name of a script of benches/; a test asks for its table by a fixture of
that name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

Started = dict[str, tuple[subprocess.Popen[str], Path]]
STARTED = pytest.StashKey[Started]()


def move_last(items: list[pytest.Item], script: str) -> None:
    """Tests that ask for the table come last, so that none waits."""
    items.sort(key=lambda item: script in getattr(item, "fixturenames", ()))


def start(session: pytest.Session, script: str) -> None:
    """Start compiling if a collected test will ask for the table."""
    wanted = any(script in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    file = Path(__file__).parents[1] / "benches" / f"{script}.py"
    out = Path(tempfile.mkdtemp(prefix="compiled-"), "table.json")
    process = subprocess.Popen(
        [sys.executable, file, f"--out={out}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    session.config.stash.setdefault(STARTED, {})[script] = process, out


def rows(config: pytest.Config, script: str) -> list[dict[str, Any]]:
    """The rows that the script recorded."""
    process, out = config.stash[STARTED][script]
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return found


def stop(session: pytest.Session, script: str) -> None:
    """Nothing outlives an interrupted session."""
    started: Started = session.config.stash.get(STARTED, {})
    if script in started:
        process, out = started.pop(script)
        process.kill()
        process.wait()
        shutil.rmtree(out.parent, ignore_errors=True)
