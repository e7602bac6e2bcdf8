"""The tree keeps its own promises: one name per op, short files, no private paths, one version."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest

import fastguide

MOST_LINES = 450
SOURCE_SUFFIXES = {".py", ".pyi", ".cpp", ".cuh", ".cu", ".h"}
# Where an op lives: one file per room, named after the op.
ROOMS = {
    "header": "csrc/include/fastguide/{}.cuh",
    "cpu": "csrc/cpu/{}.cpp",
    "reference": "fastguide/reference/{}.py",
    "ops": "fastguide/ops/{}.py",
    "test": "tests/ops/test_{}.py",
    "bench": "benches/bench_{}.py",
}
# An absolute path on somebody's machine.
MACHINE_PATH = re.compile(r"(?<![\w.:/}>)])/(?:home|root|tmp|work|Users|mnt|opt|srv)/\w")
# Whoever installs chooses the package index.
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)\b")


def tracked(root: Path) -> list[Path]:
    """Files that are, or would be, committed; a source distribution has no others to tell apart."""
    if not (root / ".git").exists():
        generated = {"build", "dist", "out", ".venv", "__pycache__"}
        return [p for p in root.rglob("*") if p.is_file() and not generated & set(p.parts)]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def text_of(path: Path) -> str:
    """The content of a text file; "" for a binary one."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8")


def missing_rooms(root: Path, ops: Iterable[str]) -> list[str]:
    """Files that the one-name rule asks for and the tree lacks."""
    due = [pattern.format(op) for op in ops for pattern in ROOMS.values()]
    return sorted(name for name in due if not (root / name).is_file())


def hits(root: Path, paths: Iterable[Path], pattern: re.Pattern[str]) -> list[str]:
    """ "path:line: text" of every line that matches."""
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


def long_files(root: Path, paths: Iterable[Path]) -> list[str]:
    counted = {
        path.relative_to(root): len(text_of(path).splitlines())
        for path in paths
        if path.suffix in SOURCE_SUFFIXES
    }
    return [f"{path}: {lines} lines" for path, lines in counted.items() if lines > MOST_LINES]


def test_every_op_has_one_name_in_every_room(root: Path) -> None:
    ops = fastguide.ops.backends()
    assert ops, "no op is registered"
    assert missing_rooms(root, ops) == []


def test_every_public_module_of_ops_is_an_op(root: Path) -> None:
    public = {path.stem for path in root.glob("fastguide/ops/[!_]*.py")}
    assert public == set(fastguide.ops.backends())


def test_missing_room_is_caught(tmp_path: Path) -> None:
    for pattern in ROOMS.values():
        file = tmp_path / pattern.format("select")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert missing_rooms(tmp_path, ["select"]) == []
    (tmp_path / "benches/bench_select.py").unlink()
    assert missing_rooms(tmp_path, ["select"]) == ["benches/bench_select.py"]


def test_files_stay_short(root: Path) -> None:
    assert long_files(root, tracked(root)) == []


def test_long_file_is_caught(tmp_path: Path) -> None:
    file = tmp_path / "long.cpp"
    file.write_text("int x;\n" * (MOST_LINES + 1))
    assert long_files(tmp_path, [file]) == [f"long.cpp: {MOST_LINES + 1} lines"]


def test_no_machine_path_and_no_registry_host(root: Path) -> None:
    paths = tracked(root)
    assert hits(root, paths, MACHINE_PATH) == []
    assert hits(root, paths, REGISTRY_HOST) == []


@pytest.mark.parametrize("folder", ["home", "root", "tmp", "work", "Users"])
def test_machine_path_is_caught(tmp_path: Path, folder: str) -> None:
    file = tmp_path / "x.py"
    file.write_text(f"ok = 'a/{folder}/b'\nbad = open('/{folder}/data.csv')\n")
    assert len(hits(tmp_path, [file], MACHINE_PATH)) == 1


def test_shared_headers_name_no_framework(root: Path) -> None:
    headers = [path for path in tracked(root) if path.is_relative_to(root / "csrc" / "include")]
    assert headers
    assert hits(root, headers, re.compile(r"torch|ATen|c10|pybind11|Python\.h")) == []


def test_one_version(root: Path) -> None:
    project = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.M)
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text(), re.M)
    assert project is not None
    assert newest is not None
    assert project[1] == newest[1] == fastguide.__version__ == metadata.version("fastguide")


def test_makefile_help_names_every_target(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    public = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.M)[0].split()) - {"rebuild"}
    assert public == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))


def test_import_needs_no_extra(root: Path) -> None:
    """A plain import loads neither the command line nor any optional dependency."""
    code = (
        "import sys, fastguide; print(*sorted({'tyro', 'rich', 'matplotlib', 'numba', 'scipy',"
        " 'triton', 'cupy', 'xformers', 'diffusers', 'transformers', 'peft', 'tensorboard', 'PIL',"
        " 'pybind11'}"
        " & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_readme_example_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first Python block of the README, at a smaller size."""
    block = re.search(
        r"```python\n(.+?)```", (root / "README.md").read_text(encoding="utf-8"), re.S
    )
    assert block is not None
    code = block[1].replace("sample(64, num_steps=128", "sample(2, num_steps=8")
    assert code != block[1]
    exec(code, {})
    assert "denoiser rows" in capsys.readouterr().out


def test_the_tests_that_docs_name_exist(root: Path) -> None:
    tests = {path.name: path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")}
    named = 0
    for page in (root / "docs").glob("*.md"):
        for file, name in re.findall(r"(test_\w+\.py)(?:::(\w+))?", page.read_text("utf-8")):
            named += 1
            assert file in tests, f"{page.name} names {file}"
            assert name in tests[file], f"{page.name} names {file}::{name}"
    assert named > 20
