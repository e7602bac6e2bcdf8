"""What users install: sdist and wheel, built without torch, sampled from in a fresh environment.

Builds with isolation and installs into an environment of its own, so it takes minutes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

# Runs in the fresh environment, outside the tree. A tabular denoiser: position-wise logits.
SAMPLE = """
import json, pathlib, sys
import torch
import fastguide as fg
from fastguide import ops

table = torch.linspace(-1, 1, 6 * 4).reshape(6, 4)
def denoiser(x, t):
    return table.expand(len(x), 6, 4)
def reward(x):
    return (x == 3).float().sum(1)

diffusion = fg.MaskedDiffusion(denoiser, 6, 4)
run = dict(num_samples=8, num_steps=16, seed=0, progress=False)
guided = fg.SVDD(diffusion, reward, num_candidates=4, alpha=0.1).sample(**run)
plain = fg.Unguided(diffusion).sample(**run)
with ops.use_backend("reference"):
    again = fg.SVDD(diffusion, reward, num_candidates=4, alpha=0.1).sample(**run)
task = fg.zoo.load("utr")
designs = fg.SVDD(task.diffusion, task.reward, num_candidates=2, alpha=0.1).sample(
    2, num_steps=8, seed=0, progress=False
)
print(json.dumps({
    "file": str(pathlib.Path(fg.__file__).resolve()),
    "version": fg.__version__,
    "guided": reward(guided.samples).mean().item(),
    "plain": reward(plain.samples).mean().item(),
    "same": torch.equal(guided.samples, again.samples),
    "designs": task.decode(designs.samples),
    "backends": sorted({name for name, _ in ops.backends().values()}),
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command, and show its output where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    # The isolated build environment holds what build-system.requires brings: no torch.
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", root, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("fastguide-*.whl")
    return found


def test_build_needs_only_setuptools_and_pybind11(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()
    listed = re.search(r"^requires = \[(.*)\]$", text, re.M)
    assert listed is not None
    names = {re.split(r"[<>=~! ]", item.strip(' "'))[0] for item in listed[1].split(",")}
    assert names == {"setuptools", "pybind11"}


def test_sdist_holds_what_a_build_and_a_test_run_need(distributions: Path, root: Path) -> None:
    (sdist,) = distributions.glob("fastguide-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "kernels", "fastguide", "tests", "benches"):
        due = {
            path.relative_to(root).as_posix()
            for path in (root / folder).rglob("*")
            if path.suffix in {".py", ".pyi", ".cpp", ".cuh", ".h", ".safetensors", ".json"}
            and "__pycache__" not in path.parts
        }
        assert due <= names, sorted(due - names)
    assert {"LICENSE", "Makefile", "constraints.txt", "README.md", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (extension,) = [name for name in names if re.fullmatch(r"fastguide/_C\..*(so|pyd)", name)]
        linked = archive.read(extension)
    assert {name.split("/")[0] for name in names} == {
        "fastguide",
        f"fastguide-{wheel.name.split('-')[1]}.dist-info",
    }
    headers = {p.relative_to(root / "csrc") for p in root.glob("csrc/include/**/*.cuh")}
    modules = {p.relative_to(root / "kernels") for p in root.glob("kernels/**/*.py")}
    weights = {p.relative_to(root) for p in root.glob("fastguide/zoo/data/**/*.safetensors")}
    cards = {p.relative_to(root) for p in root.glob("fastguide/zoo/data/**/*.json")}
    assert headers
    assert weights
    assert cards
    due = {f"fastguide/_csrc/{path.as_posix()}" for path in headers}
    due |= {f"fastguide/kernels/{path.as_posix()}" for path in modules}
    due |= {path.as_posix() for path in weights | cards}
    due |= {"fastguide/py.typed", "fastguide/_C.pyi", "fastguide/_csrc/__init__.py"}
    due |= {p.relative_to(root).as_posix() for p in root.glob("fastguide/**/*.py")}
    assert due <= names, sorted(due - names)
    assert not [name for name in names if "/tests/" in name or name.endswith((".cpp", ".o"))]
    assert b"libtorch" not in linked
    assert b"libc10" not in linked


def test_wheel_works_in_a_fresh_environment(wheel: Path, root: Path, tmp_path: Path) -> None:
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("make", "environment", f"VENV={venv}", f"REQUIREMENT={wheel}", cwd=root)
    python = venv / "bin" / "python"
    # -W error: a plain import and a run raise no warning either.
    told = json.loads(run(python, "-W", "error", "-c", SAMPLE, cwd=elsewhere))
    assert Path(told["file"]).is_relative_to(venv)
    assert told["version"] == wheel.name.split("-")[1]
    assert told["guided"] > told["plain"]
    assert told["same"]
    assert [len(design) for design in told["designs"]] == [50, 50]
    assert told["backends"] == ["cpp"]
    usage = run(venv / "bin" / "fastguide", "--help", cwd=elsewhere)
    assert "demo" in usage
