"""`fastguide doctor`: true when all is well, and says what is wrong and how to mend it."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest
import tiny_task
import torch

import fastguide as fg
from fastguide import reference, zoo
from fastguide.errors import CheckpointError
from fastguide.ops import _backend

# A machine of the GPU checks may lack what only the command line needs.
pytest.importorskip("tyro")
from fastguide.cli import doctor, main, selftest


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Task `tiny` in place of the shipped ones; nothing forced."""
    monkeypatch.setattr(zoo, "load", lambda name: tiny_task.task())
    monkeypatch.setattr(zoo, "names", lambda: ("tiny",))
    monkeypatch.delenv("FASTGUIDE_BACKEND", raising=False)


def diagnose(capsys):
    """(exit code, what was printed, the same on one line)."""
    code = main(["doctor"])
    shown = capsys.readouterr().out
    return code, shown, " ".join(shown.split())


def test_all_well(capsys):
    code, shown, line = diagnose(capsys)
    assert code == 0
    assert "BROKEN" not in shown
    assert shown.endswith("Everything works.\n")
    assert max(map(len, shown.splitlines())) <= doctor.WIDTH
    for text in (fg.__version__, torch.__version__, "processor", "vector units", "extra [plot]"):
        assert text in shown
    for module in ("numba", "triton", "cupy", "xformers"):
        assert f"{module} " in shown
    for name in selftest.TESTS:
        assert f"ok      {name}, CPU" in shown
    level = _backend.native().cpu_level()
    assert f"C++ kernels instruction set {level}" in line


def test_backend_of_every_op_and_why(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _, shown, line = diagnose(capsys)
    rows = dict(text.split(maxsplit=1) for text in shown.splitlines() if len(text.split()) == 3)
    tables = [fg.ops.backends(device) for device in ("cpu", "cuda")]
    for op in fg.ops.backends():
        assert rows[op].split() == [table[op][0] for table in tables]
    on_cpu, on_cuda = line.split("why, on CPU:")[1].split("why, on CUDA:")
    assert "- triton serves CUDA tensors only -" in on_cpu
    assert "- cuda serves CUDA tensors only -" in on_cpu
    assert "- cpp serves CPU tensors only -" in on_cuda
    assert "- triton has no kernel (unique_rows, resample)" in on_cuda
    assert "reference serves on request only" in on_cpu
    assert "reference serves on request only" in on_cuda


def test_reasons_of_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, shown, line = diagnose(capsys)
    assert code == 0  # no tensor on this machine needs it
    assert "unique_rows          cpp         none" in shown
    fix = "backend 'cuda' needs cupy, which is not installed: install the GPU extra with"
    assert fix in line.split("why, on CUDA:")[1]


def test_without_extension(monkeypatch, capsys):
    """A source tree that was not built."""
    monkeypatch.setattr(_backend, "_native", None)
    monkeypatch.setitem(sys.modules, "fastguide.kernels.cpu", None)
    code, shown, line = diagnose(capsys)
    assert code == 1
    assert "select               none" in shown
    assert "BROKEN backends on CPU nothing serves philox_uniform, philox_normal" in line
    assert "BROKEN  guided run, CPU" in shown
    assert "pip install -e . --no-build-isolation" in line
    assert "C++ kernels not in use" in line


def test_on_the_reference(capsys):
    with fg.use_backend("reference"):
        code, shown, line = diagnose(capsys)
    assert code == 0
    assert "philox_uniform       reference   reference" in shown
    assert "- forced by FASTGUIDE_BACKEND or use_backend" in line


def test_with_an_unknown_backend(monkeypatch, capsys):
    monkeypatch.setenv("FASTGUIDE_BACKEND", "fpga")
    code, _, line = diagnose(capsys)
    assert code == 1
    assert "unknown backend 'fpga'; use 'cpp' or 'reference'" in line


def test_with_tampered_weights(monkeypatch, capsys):
    def load(name):
        raise CheckpointError("guide.safetensors was changed or damaged; reinstall fastguide")

    monkeypatch.setattr(zoo, "load", load)
    code, shown, line = diagnose(capsys)
    assert code == 1
    assert "BROKEN  weights of tiny" in shown
    assert "- weights of tiny: guide.safetensors was changed or damaged" in line


def test_with_other_samples(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "TINY", (1, 2, 3))
    code, shown, line = diagnose(capsys)
    assert code == 1
    assert "BROKEN  guided run, CPU" in shown
    assert "due (1, 2, 3)" in line
    assert "FASTGUIDE_CPU=baseline" in line


@pytest.mark.parametrize("op", list(fg.ops.backends()))
def test_every_op_that_answers_wrongly_is_found(monkeypatch, op):
    """One number of its first output is off by 1e-4, or by one."""
    right = getattr(fg.ops, op)

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        first = found if isinstance(found, torch.Tensor) else found[0]
        last = first.flatten()[-1:]
        last += 1 if not first.is_floating_point() else 1e-4
        return found

    selftest.check_every_op(torch.device("cpu"))
    monkeypatch.setattr(fg.ops, op, wrong)
    with pytest.raises(AssertionError, match=f"{op}, output 0, wrong values: 1, due 0"):
        selftest.check_every_op(torch.device("cpu"))


def test_self_test_covers_every_op_and_reads_the_reference():
    assert set(selftest.op_calls()) == set(fg.ops.backends())
    assert all(hasattr(reference, op) for op in selftest.op_calls())


def test_gpu_is_named_and_tested(monkeypatch, capsys, tmp_path):
    """A machine that seems to have one; its self-test is stubbed."""
    seen = []
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(selftest, "TESTS", {"stub": seen.append})
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n")
    monkeypatch.setattr(doctor, "DRIVER", driver)
    code, shown, line = diagnose(capsys)
    assert code == 0
    named = "GPU NVIDIA H200, 150 GiB, compute capability 9.0; torch is built for CUDA 13.0"
    assert named in line
    assert "GPU driver NVIDIA 580.65.06" in line
    assert seen == [torch.device("cpu"), torch.device("cuda")]
    assert "ok      stub, CUDA" in shown
    assert "ok      backends on CUDA" in shown
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, _, line = diagnose(capsys)
    assert code == 1  # what would run there cannot
    assert "- backends on CUDA: backend 'cuda' needs cupy, which is not installed" in line


@pytest.mark.parametrize(
    ("cuda", "driver", "told", "text"),
    [
        (None, False, None, "is built without CUDA; install a CUDA build"),
        ("13.0", False, None, "torch, built for CUDA 13.0, finds no NVIDIA driver"),
        ("13.0", True, None, "torch, built for CUDA 13.0, finds no device"),
        ("13.0", True, "The NVIDIA driver on your system is too old (found version 11080)",
         "The NVIDIA driver on your system is too old"),
    ],
)  # fmt: skip
def test_why_there_is_no_gpu(monkeypatch, tmp_path, cuda, driver, told, text):
    def is_available():
        if told:
            warnings.warn(told, stacklevel=1)
        return False

    file = tmp_path / "version"
    if driver:
        file.write_text("Kernel Module 580.65.06\n")
    monkeypatch.setattr(doctor, "DRIVER", file)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    facts = dict(doctor.facts())
    assert facts["GPU"].startswith("none: ")
    assert facts["GPU"].endswith(text)
    assert facts["GPU driver"] == ("NVIDIA 580.65.06" if driver else "none found")


def test_absent_extras_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"gpu": ("no_such_module",)})
    assert dict(doctor.facts())["extra [gpu]"] == "no_such_module absent"


@pytest.mark.gpu
def test_on_a_gpu(capsys):
    code, shown, _ = diagnose(capsys)
    assert code == 0, shown
    for name in selftest.TESTS:
        assert f"ok      {name}, CUDA" in shown
