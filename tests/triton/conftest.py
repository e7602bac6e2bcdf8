"""Without a GPU the Triton kernels run in Triton's interpreter, on CPU tensors.

The conftest of all tests asks for the interpreter, before anything imports triton. Where there is a
GPU kernels are compiled, and the tests of the interpreter skip.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import compiled_aside
import pytest
import torch

from fastguide.testing import poisoned

INTERPRETED = not torch.cuda.is_available()

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    compiled_aside.move_last(items, "triton_registers")


def pytest_collection_finish(session: pytest.Session) -> None:
    compiled_aside.start(session, "triton_registers")


def pytest_sessionfinish(session: pytest.Session) -> None:
    compiled_aside.stop(session, "triton_registers")


@pytest.fixture(scope="session")
def triton_registers(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The rows that benches/triton_registers.py records."""
    return compiled_aside.rows(request.config, "triton_registers")


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned():
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> Iterator[None]:
    """What the interpreter does over and over is done once; its results are the same."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.ReduceOps, "apply_impl", _reduce_at_once(interpreter))
        patch.setattr(interpreter, "_patch_lang", _patch_once(interpreter))
        yield


def _reduce_at_once(interpreter: Any) -> Callable[..., object]:
    """Reductions with these functions go lane by lane in Python; numpy takes all lanes."""
    import numpy as np
    import triton.language as tl

    from fastguide.kernels.categorical import larger

    original = interpreter.ReduceOps.apply_impl
    at_once = {tl.standard._xor_combine: np.bitwise_xor, larger: np.maximum}

    def apply(self: Any, inputs: tuple[tl.tensor, ...]) -> object:
        if self.combine_fn not in at_once:
            return original(self, inputs)
        data = inputs[0].handle.data
        reduced = at_once[self.combine_fn].reduce(data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(reduced, inputs[0].dtype)

    return apply


def _patch_once(interpreter: Any) -> Callable[..., object]:
    """Every call of a device function looks for builtins to replace; the first finds all."""
    import triton.language as tl

    original, replaced = interpreter._patch_lang, set()

    def patch(function: Any) -> object:
        languages = {id(v) for v in function.__globals__.values() if v is tl or v is tl.core}
        if languages <= replaced:
            return interpreter._LangPatchScope()
        outermost = not replaced
        scope = original(function)
        replaced.update(languages)
        if outermost:
            restore = scope.restore

            def end() -> None:
                replaced.clear()
                restore()

            scope.restore = end
        return scope

    return patch
