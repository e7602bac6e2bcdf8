"""Every CUDA source compiles as users compile it, for every architecture, without spills."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastguide.errors import BackendError
from fastguide.kernels import cuda, cuda_launchers

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SOURCES = pytest.mark.parametrize("source", cuda_launchers.SOURCES, ids=lambda s: s.op)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CuPy comes on Linux")


Rows = list[dict[str, Any]]


def due() -> set[tuple[str, str, str]]:
    """(op, kernel, architecture) of everything that a launcher may ask for."""
    sources = cuda_launchers.SOURCES
    return {(s.op, k, arch) for s in sources for k in s.kernels for arch in ARCHITECTURES}


def compiled(rows: Rows) -> set[tuple[str, str, str]]:
    return {(row["op"], row["kernel"], row["architecture"]) for row in rows}


def spilling(rows: Rows) -> Rows:
    names = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")
    return [row for row in rows if any(row[name] for name in names)]


def test_every_kernel_compiles_and_spills_nothing(cuda_registers: Rows) -> None:
    assert compiled(cuda_registers) == due()
    assert all(row["registers"] > 0 for row in cuda_registers)
    assert spilling(cuda_registers) == []


def test_the_kept_records_are_of_these_kernels(root: Path) -> None:
    files = list((root / "benches" / "results" / "registers").glob("nvrtc-*.json"))
    assert files
    for file in files:
        rows = json.loads(file.read_text())["rows"]
        assert compiled(rows) == due()
        assert spilling(rows) == []


@SOURCES
def test_every_template_is_launched(source: cuda.Source, root: Path) -> None:
    """A kernel in the file that no name expression asks for would never be compiled."""
    text = (root / "csrc" / "cuda" / f"{source.op}.cu").read_text()
    defined = set(
        re.findall(r"__global__[^{;]*?\b(\w+)\(const (?:__grid_constant__ )?\w+Args", text)
    )
    assert defined == {kernel.split("<")[0] for kernel in source.kernels}


def test_every_file_has_a_source(root: Path) -> None:
    files = {path.stem for path in (root / "csrc" / "cuda").glob("*.cu")}
    assert files == {source.op for source in cuda_launchers.SOURCES}


def test_a_wrong_mirror_does_not_compile() -> None:
    class SelectArgs(ctypes.Structure):
        _fields_ = cuda_launchers.SelectArgs._fields_[:-1]

    class UniqueRowsArgs(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_uint32 if name == "bits" else kind)
            for name, kind in cuda_launchers.UniqueRowsArgs._fields_
        )

    for op, args in (("select", SelectArgs), ("unique_rows", UniqueRowsArgs)):
        with pytest.raises(BackendError, match=rf"{op}.cu does not compile(.|\n)*static assertion"):
            cuda.compile_source(cuda.Source(op, args, ()), "sm_90")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA toolkit")
@SOURCES
def test_nvcc_warns_of_nothing(source: cuda.Source, root: Path, tmp_path: Path) -> None:
    folder = root / "csrc"
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "--fmad=false", "-Werror", "all-warnings"]
    command += ["-Xcompiler", "-Wall,-Wextra,-Werror", f"-I{folder}/include", f"-I{folder}/cuda"]
    command += ["-c", f"{folder}/cuda/{source.op}.cu", "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_machine_code_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cuda_launchers.SELECT
    built = cuda.cached_binary(source, "sm_90", tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()
    calls = []
    monkeypatch.setattr(cuda, "compile_source", lambda *args: calls.append(args) or built)
    again = cuda.cached_binary(source, "sm_90", tmp_path / "new")
    assert (again.cubin, again.names) == (built.cubin, built.names)
    assert not calls
    file.write_bytes(file.read_bytes()[:-1])
    assert cuda.cached_binary(source, "sm_90", tmp_path / "new").cubin == built.cubin
    assert len(calls) == 1, "a truncated file must be compiled again"
    # A place that cannot be written costs time, nothing else.
    (tmp_path / "file").touch()
    assert cuda.cached_binary(source, "sm_90", tmp_path / "file" / "x").cubin == built.cubin


def test_the_cache_key_sees_every_input(monkeypatch: pytest.MonkeyPatch) -> None:
    source = cuda_launchers.SELECT
    keys = {cuda.cache_key(source, "sm_90"), cuda.cache_key(source, "sm_80")}
    keys.add(cuda.cache_key(cuda.Source(source.op, source.args, source.kernels[:1]), "sm_90"))
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "OPTIONS", (*cuda.OPTIONS, "-DX"))
        keys.add(cuda.cache_key(source, "sm_90"))
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "available", lambda: "NVRTC 99.9")
        keys.add(cuda.cache_key(source, "sm_90"))
    with monkeypatch.context() as patch:
        changed = {**cuda._files(), "include/fastguide/math.cuh": "// changed"}
        patch.setattr(cuda, "_files", lambda: changed)
        keys.add(cuda.cache_key(source, "sm_90"))
    assert len(keys) == 6
