"""Registers, spills and shared memory of every CUDA C++ kernel, as users compile it; needs no GPU.

The record of each compiler is kept in benches/results/registers.

    python benches/cuda_registers.py [--out FILE.json] [--architectures sm_80 sm_90 sm_100]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastguide.kernels import cuda, cuda_launchers

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
RECORDS = Path(__file__).resolve().parent / "results" / "registers"


def main() -> None:
    compiler = cuda.available()
    file = RECORDS / f"{compiler.lower().replace(' ', '-')}.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=file)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    arguments = parser.parse_args()
    rows = [
        {"op": source.op, "kernel": kernel, "architecture": arch, **facts, "default": True}
        for source in cuda_launchers.SOURCES
        for arch in arguments.architectures
        for kernel, facts in cuda.usage(source, arch).items()
    ]
    record = {"compiler": compiler, "options": cuda.OPTIONS}
    lines = ",\n".join(json.dumps(row) for row in rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record)[:-1] + f', "rows": [\n{lines}\n]}}\n')
    for row in rows:
        spilled = row["spill_store_bytes"] + row["spill_load_bytes"]
        print(
            f"{row['architecture']:6} {row['registers']:4} registers {spilled:4} B spilled "
            f"{row['shared_bytes']:6} B shared  {row['kernel']}"
        )


if __name__ == "__main__":
    main()
