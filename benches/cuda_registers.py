"""Registers, spills and shared memory of every CUDA C++ kernel, as users compile it; needs no GPU.

python benches/cuda_registers.py [--out FILE.json] [--architectures sm_80 sm_90 sm_100]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastguide.kernels import cuda, cuda_launchers

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/cuda_registers.json"))
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    arguments = parser.parse_args()
    rows = [
        {"op": source.op, "kernel": kernel, "architecture": arch, **facts}
        for source in cuda_launchers.SOURCES
        for arch in arguments.architectures
        for kernel, facts in cuda.usage(source, arch).items()
    ]
    record = {"compiler": cuda.available(), "options": cuda.OPTIONS, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        spilled = row["spill_store_bytes"] + row["spill_load_bytes"]
        print(
            f"{row['architecture']:6} {row['registers']:4} registers {spilled:4} B spilled "
            f"{row['shared_bytes']:6} B shared  {row['kernel']}"
        )


if __name__ == "__main__":
    main()
