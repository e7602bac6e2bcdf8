"""Loads `csrc/cuda` through CuPy: NVRTC at first use, a cache on disk, launches on torch's stream.

The only importer of CuPy. A kernel takes one struct by value. Its ctypes mirror is the signature:
ctypes refuses a float where an integer is due, and the mirror's offsets are compiled into every
build as static assertions, so that host and device cannot disagree about the layout.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.resources
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastguide.errors import BackendError

OPTIONS = ("-std=c++17", "--fmad=false")
"""Contraction is off so that the device rounds as the CPU does."""

INSTALL_FIX = "pip install 'fastguide[gpu]' (CuPy 14 with NVRTC)"
SCALARS = {
    ctypes.c_int32: "i32",
    ctypes.c_uint32: "u32",
    ctypes.c_int64: "i64",
    ctypes.c_uint64: "u64",
    ctypes.c_double: "double",
}
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Source:
    """One file of csrc/cuda.

    Attributes:
        op: name of the file, and of the op.   args: mirror of the struct that its kernels take,
        under the same name.   kernels: every name expression that a launcher may ask for.
    """

    op: str
    args: type[ctypes.Structure]
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class Binary:
    """Machine code for one architecture.

    Attributes:
        names: lowered name of each name expression.   log: what the compiler said.
    """

    cubin: bytes
    names: dict[str, str]
    log: str = ""


def architecture(device: torch.device) -> str:
    """ "sm_90" for a device of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _mirror(args: type[ctypes.Structure], done: set[str]) -> Iterator[str]:
    """Static assertions that the C++ struct `args.__name__` has the layout of its mirror."""
    name = f"fastguide::{args.__name__}"
    if name in done:
        return
    done.add(name)
    yield f"static_assert(sizeof({name}) == {ctypes.sizeof(args)}, {json.dumps(name)});"
    for field, kind, *_ in args._fields_:
        offset = getattr(args, field).offset
        text = json.dumps(f"{name}::{field}")
        # The compiler's own spelling of offsetof; __builtin_offsetof came after NVRTC 13.0.
        yield f"static_assert(__INTADDR__(&((({name}*)0)->{field})) == {offset}, {text});"
        member = f"decltype({name}::{field})"
        if kind is ctypes.c_void_p:
            yield f"static_assert(FgPointer<{member}>::value, {text});"
        elif kind in SCALARS:
            due = SCALARS[kind] if kind is ctypes.c_double else f"fastguide::{SCALARS[kind]}"
            yield f"static_assert(FgSame<{member}, {due}>::value, {text});"
        else:
            nested: Any = kind._type_ if issubclass(kind, ctypes.Array) else kind
            yield from _mirror(nested, done)


_TRAITS = """
template <class T, class U> struct FgSame { static constexpr bool value = false; };
template <class T> struct FgSame<T, T> { static constexpr bool value = true; };
template <class T> struct FgPointer { static constexpr bool value = false; };
template <class T> struct FgPointer<T*> { static constexpr bool value = true; };
"""


@cache
def _files() -> dict[str, str]:
    """Every device source and shared header, by path under csrc."""
    top = importlib.resources.files("fastguide._csrc")
    found = {}
    for folder in ("cuda", "include/fastguide"):
        for file in top.joinpath(folder).iterdir():
            if file.name.endswith((".cu", ".cuh")):
                found[f"{folder}/{file.name}"] = file.read_text(encoding="utf-8")
    return found


def program(source: Source) -> str:
    """The text that is compiled: the file, then the check of its argument struct."""
    checks = "\n".join(_mirror(source.args, set()))
    return f"{_files()[f'cuda/{source.op}.cu']}\n{_TRAITS}\n{checks}\n"


def _include_options() -> tuple[str, ...]:
    top = importlib.resources.files("fastguide._csrc")
    return tuple(f"-I{top.joinpath(folder)}" for folder in ("include", "cuda"))


@cache
def _cupy() -> Any:
    """cupy.cuda, with its compiler and its driver.

    Raises:
        BackendError: CuPy or NVRTC is missing.
    """
    try:
        import cupy.cuda

        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise BackendError(
            f"the CUDA kernels need CuPy with NVRTC ({error}): {INSTALL_FIX}"
        ) from error
    return cupy.cuda


def available() -> str:
    """Version of the compiler, for `doctor`.

    Raises:
        BackendError: CuPy or NVRTC is missing.
    """
    major, minor = _cupy().nvrtc.getVersion()
    return f"NVRTC {major}.{minor}"


def compile_source(source: Source, arch: str, *, options: Sequence[str] = ()) -> Binary:
    """Compile for "sm_90" and the like. Needs no GPU.

    Args:
        options: more for the compiler.

    Raises:
        BackendError: with the compiler's log.
    """
    nvrtc = _cupy().nvrtc
    handle = nvrtc.createProgram(program(source), f"{source.op}.cu", (), ())
    try:
        for kernel in source.kernels:
            nvrtc.addNameExpression(handle, f"fastguide::{kernel}")
        try:
            nvrtc.compileProgram(handle, (*OPTIONS, *_include_options(), f"-arch={arch}", *options))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(handle)
            raise BackendError(f"{source.op}.cu does not compile for {arch}:\n{log}") from error
        lowered = {k: nvrtc.getLoweredName(handle, f"fastguide::{k}") for k in source.kernels}
        return Binary(nvrtc.getCUBIN(handle), lowered, nvrtc.getProgramLog(handle))
    finally:
        nvrtc.destroyProgram(handle)


def usage(source: Source, arch: str) -> dict[str, dict[str, int]]:
    """What each kernel takes of a multiprocessor, as ptxas says: {kernel: {registers, stack_bytes,
    spill_store_bytes, spill_load_bytes, shared_bytes}}."""
    binary = compile_source(source, arch, options=("--ptxas-options=-v",))
    found = {}
    for kernel, name in binary.names.items():
        text = binary.log.split(f"Compiling entry function '{name}'")[1].split("Compiling entry")[0]
        found[kernel] = {key: _number(text, pattern) for key, pattern in _USAGE.items()}
    return found


_USAGE = {
    "registers": r"Used (\d+) registers",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
    "shared_bytes": r"(\d+) bytes smem",
}


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def cache_key(source: Source, arch: str) -> str:
    """Hash of what the machine code depends on: texts, names, options, architecture, compiler."""
    parts = [program(source), json.dumps(_files(), sort_keys=True), json.dumps(source.kernels)]
    parts += [json.dumps(OPTIONS), arch, available()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Where machine code is kept: fastguide/cuda in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "fastguide" / "cuda"


def cached_binary(source: Source, arch: str, folder: Path | None = None) -> Binary:
    """`compile_source`, or what an earlier process kept on disk. A folder that cannot be written
    costs a compilation per process, nothing else."""
    folder = cache_folder() if folder is None else folder
    file = folder / f"{source.op}-{arch}-{cache_key(source, arch)}.bin"
    try:
        return _unpack(file.read_bytes())
    except (OSError, ValueError):
        binary = compile_source(source, arch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed into place: another process reads all of it or none.
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as draft:
            draft.write(_pack(binary))
        os.replace(draft.name, file)
    except OSError:
        pass
    return binary


def _pack(binary: Binary) -> bytes:
    digest = hashlib.sha256(binary.cubin).hexdigest()
    return json.dumps({"names": binary.names, "sha256": digest}).encode() + b"\n" + binary.cubin


def _unpack(data: bytes) -> Binary:
    header, _, cubin = data.partition(b"\n")
    facts = json.loads(header)
    if hashlib.sha256(cubin).hexdigest() != facts["sha256"]:
        raise ValueError("truncated")
    return Binary(cubin, facts["names"])


@cache
def _function(source: Source, kernel: str, device: int) -> int:
    """Driver handle of a kernel, loaded for the life of the process. Kernels compile one by one:
    nobody waits for a variant that is not used."""
    one = replace(source, kernels=(kernel,))
    binary = cached_binary(one, architecture(torch.device("cuda", device)))
    driver = _cupy().driver
    return driver.moduleGetFunction(driver.moduleLoadData(binary.cubin), binary.names[kernel])


def launch(
    source: Source,
    kernel: str,
    grid: Grid,
    block: int,
    args: ctypes.Structure,
    device: torch.device,
    *,
    cooperative: bool = False,
) -> None:
    """Queue one kernel on torch's current stream of `device`.

    Args:
        kernel: one of source.kernels.   grid: blocks.   block: threads.   args: a source.args,
        copied before this returns.   cooperative: all blocks run at once, as a barrier of the grid
        needs.
    """
    cuda = _cupy()
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        # In a thread that has made no CUDA call yet, this makes the device's context current.
        cuda.runtime.setDevice(index)
        function = _function(source, kernel, index)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        start = cuda.driver.launchCooperativeKernel if cooperative else cuda.driver.launchKernel
        where = (torch.cuda.current_stream(index).cuda_stream, ctypes.addressof(pointers))
        start(function, *grid, block, 1, 1, 0, *where, *(() if cooperative else (0,)))


def resident_blocks(device: torch.device) -> int:
    """Blocks that run at once under __launch_bounds__(256, 2): two on each multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def address(tensor: torch.Tensor | None) -> int | None:
    """Where the data start; None (a null pointer) for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def blocks(work: int, per_block: int, most: int = 2**31 - 1) -> int:
    """Blocks that cover `work`, at least one."""
    return max(1, min(most, -(-work // per_block)))


def word_bytes(*values: int, sizes: Sequence[int] = (16, 8, 4)) -> int:
    """The widest word that divides every address, stride and length given."""
    for size in sizes:
        if all(value % size == 0 for value in values):
            return size
    return 1
