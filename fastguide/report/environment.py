"""What a run ran on: versions and machine, for summaries and bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from fastguide import ops


def environment() -> dict[str, Any]:
    """`machine` and the backend of every op, as plain values."""
    return {
        **machine(),
        "backends": {op: backend for op, (backend, _) in ops.backends().items()},
    }


def machine() -> dict[str, Any]:
    """Versions, processor and threads, as plain values."""
    return {
        "fastguide": metadata.version("fastguide"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name, as its maker writes it where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or "unknown"
