"""Build of the native extension and the folder layout; everything else is in pyproject.toml.

`kernels/` is installed as `fastguide.kernels` and the C++ and CUDA sources in `csrc/` as
`fastguide._csrc`, so that run-time compilers find them after installation. No torch is needed.
"""

import sys
from glob import glob

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# Contraction is off so that every instruction set and backend rounds alike.
GNU_FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wextra",
]
MSVC_FLAGS = ["/O2", "/std:c++17", "/fp:precise", "/EHsc", "/W3", "/openmp"]


class BuildExt(build_ext):
    """Chooses flags by compiler, and OpenMP where the platform's own compiler has it."""

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            compile_flags, link_flags = MSVC_FLAGS, []
        elif sys.platform == "darwin":
            # Apple's clang ships without an OpenMP runtime; the loops then run on one thread.
            compile_flags, link_flags = [*GNU_FLAGS, "-Wno-unknown-pragmas"], []
        else:
            compile_flags, link_flags = [*GNU_FLAGS, "-fopenmp"], ["-fopenmp"]
        for extension in self.extensions:
            extension.extra_compile_args = compile_flags
            extension.extra_link_args = link_flags
        super().build_extensions()


setup(
    package_dir={
        "fastguide": "fastguide",
        "fastguide.kernels": "kernels",
        "fastguide._csrc": "csrc",
    },
    packages=[
        *find_packages(include=["fastguide", "fastguide.*"]),
        "fastguide._csrc",
        "fastguide.kernels",
        *(f"fastguide.kernels.{name}" for name in find_packages("kernels")),
    ],
    ext_modules=[
        Extension(
            "fastguide._C",
            sources=["csrc/bind.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            depends=sorted(
                glob("csrc/**/*.cuh", recursive=True) + glob("csrc/**/*.h*", recursive=True)
            ),
            include_dirs=["csrc/include", pybind11.get_include()],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
