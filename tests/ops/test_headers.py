"""The shared headers compile as a run-time compiler for devices sees them: no standard library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADERS = sorted(path.name for path in (ROOT / "csrc/include/fastguide").glob("*.cuh"))
# What the device compiler provides by itself.
BUILT_IN = """
#define __host__
#define __device__
#define __forceinline__ inline
#define __CUDACC_RTC__
#define __CUDA_ARCH__ 900
long long __double_as_longlong(double);
double __longlong_as_double(long long);
double sqrt(double);
int __float_as_int(float);
float __int_as_float(int);
float __fmaf_rn(float, float, float);
float __fsqrt_rn(float);
"""
COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_without_the_standard_library(header: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'{BUILT_IN}#include "fastguide/{header}"\n')
    assert COMPILER is not None
    done = subprocess.run(
        [
            COMPILER,
            "-std=c++17",
            "-fsyntax-only",
            "-nostdinc",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unused-function",
            f"-I{ROOT / 'csrc/include'}",
            str(source),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
