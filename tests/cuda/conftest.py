"""The CUDA sources run on the host: built with the host's compiler over tests/cuda/emulator.h."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compiled_aside
import pytest
import torch
from cuda_emulation import entry_points

from fastguide.kernels import cpu, cuda_launchers
from fastguide.kernels.cuda import Source
from fastguide.ops import _backend
from fastguide.testing import poisoned

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    compiled_aside.move_last(items, "cuda_registers")


def pytest_collection_finish(session: pytest.Session) -> None:
    compiled_aside.start(session, "cuda_registers")


def pytest_sessionfinish(session: pytest.Session) -> None:
    compiled_aside.stop(session, "cuda_registers")


@pytest.fixture(scope="session")
def cuda_registers(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The rows that benches/cuda_registers.py records."""
    return compiled_aside.rows(request.config, "cuda_registers")


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned():
        yield


Build = Callable[..., Any]


@pytest.fixture(scope="session")
def host_build(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """host_build(text, sources=folder): a library from C++ text that includes device sources."""
    folder = tmp_path_factory.mktemp("emulator")
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")

    def build(text: str, sources: Path | None = None) -> Any:
        number = len(list(folder.iterdir()))
        file, library = folder / f"{number}.cpp", folder / f"{number}.so"
        file.write_text(text)
        command = [compiler[0], "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
        command += ["-pthread", "-Wno-unknown-pragmas", f"-I{HERE}", f"-I{root}/csrc/include"]
        command += [f"-I{sources or root / 'csrc' / 'cuda'}", str(file), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))

    return build


@pytest.fixture(scope="session")
def emulated(host_build: Build) -> dict[str, Any]:
    """The function `emulate` of every source, by op."""
    return {
        source.op: host_build(entry_points(source)).emulate for source in cuda_launchers.SOURCES
    }


@pytest.fixture
def on_host(emulated: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """CPU tensors are served by the CUDA launchers and kernels; (op, kernel) of every launch."""
    launched: list[tuple[str, str]] = []

    def launch(
        source: Source,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        args: ctypes.Structure,
        device: torch.device,
        *,
        cooperative: bool = False,
    ) -> None:
        assert kernel in source.kernels
        launched.append((source.op, kernel))
        shape = (ctypes.c_uint * 3)(*grid)
        failed = emulated[source.op](
            kernel.encode(), shape, block, len(launched), int(cooperative), ctypes.byref(args)
        )
        assert not failed

    def launcher(op: str, tensor: torch.Tensor) -> Callable[..., Any]:
        served = op in {source.op for source in cuda_launchers.SOURCES}
        return getattr(cuda_launchers if served else cpu, f"launch_{op}")

    monkeypatch.setattr(cuda_launchers, "launch", launch)
    monkeypatch.setattr(cuda_launchers, "resident_blocks", lambda device: 3)
    monkeypatch.setattr(_backend, "launcher", launcher)
    monkeypatch.setattr(_backend, "use_reference", lambda op, tensor: False)
    monkeypatch.setattr(_backend, "chosen", lambda op, device: "cuda")
    return launched
