"""Without a GPU the Triton kernels run in Triton's interpreter, on CPU tensors.

The interpreter must be asked for before the kernels are imported, which their first use does. Where
there is a GPU they are compiled, and the tests of the interpreter skip.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

from fastguide.testing import poisoned

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_exclusive_or() -> Iterator[None]:
    """The interpreter reduces by XOR lane by lane in Python; numpy does the same at once."""
    if not INTERPRETED:
        yield
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import ReduceOps

    original = ReduceOps.apply_impl

    def apply(self: ReduceOps, inputs: tuple[tl.tensor, ...]) -> object:
        if self.combine_fn is not tl.standard._xor_combine:
            return original(self, inputs)
        data = inputs[0].handle.data
        reduced = np.bitwise_xor.reduce(data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(reduced, inputs[0].dtype)

    ReduceOps.apply_impl = apply
    yield
    ReduceOps.apply_impl = original
