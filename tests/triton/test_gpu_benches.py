"""The settings that benches/gpu_ops.py times on a GPU, at small sizes on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from device_settings import GROUPS, Place, Setting, without_stores

from fastguide import ops

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels are compiled where there is a GPU"
)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_setting_agrees_and_runs(group: Callable[[Place], Iterator[Setting]]) -> None:
    settings = 0
    for setting in group(Place("cpu", small=True)):
        setting.agrees()
        assert setting.bytes_moved > 0
        with ops.use_backend(setting.backend):
            setting.ours()
        setting.agrees()
        for rival in setting.rivals.values():
            rival()
        settings += 1
    assert settings >= 2


def test_the_gaussian_arithmetic_runs_without_its_stores(tmp_path: Path) -> None:
    x, chains = torch.randn(2, 300), torch.arange(2)
    out = torch.full((2, 3, 300), 7.0)
    ratio = torch.empty(2, 0, dtype=torch.float64)
    given = (0.5, 0.5, 0.3, 1, chains, 3 << 8 | 1, None, None, None)
    without_stores(tmp_path).launch_gaussian_propose(x, x, *given, out, ratio)
    assert bool((out == 7.0).all())
