"""A compiled per-sample reward equals the Python function, or says why it cannot."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading

import exact
import numpy as np
import per_sample
import pytest
import torch

import fastguide as fg
from fastguide import rewards
from fastguide.errors import ArgumentError, DtypeError, MissingExtraError, RewardError, ShapeError

numba = pytest.importorskip("numba")


@pytest.fixture(autouse=True, params=[1])
def threads(request):
    """torch's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


both = pytest.mark.parametrize("threads", [1, 2], indirect=True)


def plain(function, samples):
    return torch.tensor([float(function(row)) for row in samples.numpy()], dtype=torch.float64)


@both
def test_tokens_as_in_python(threads):
    tokens = torch.randint(4, (257, 33))
    reward = rewards.jit(per_sample.gc_and_runs)
    scores = reward(tokens)
    assert scores.dtype == torch.float64
    assert torch.equal(scores, plain(per_sample.gc_and_runs, tokens))
    assert torch.equal(reward(tokens[:1]), scores[:1])
    assert torch.get_num_threads() == threads


def test_small_integers():
    tokens = torch.randint(4, (9, 12))
    due = plain(per_sample.gc_and_runs, tokens)
    assert torch.equal(rewards.jit(per_sample.gc_and_runs)(tokens.to(torch.uint8)), due)


@rewards.jit
def mean_square(pixels):
    total = 0.0
    for row in range(pixels.shape[0]):
        for column in range(pixels.shape[1]):
            total += pixels[row, column] ** 2
    return total / pixels.size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats(dtype):
    x = torch.randn(17, 3, 5).to(dtype)
    due = x.double().square().mean(dim=(1, 2))
    torch.testing.assert_close(mean_square(x), due, rtol=1e-6, atol=0)


def test_layouts():
    """Slices, transposes, arrays, tensors with a gradient: all give the rows' own scores."""
    x = torch.randn(8, 6, 4)
    due = mean_square(x)
    assert torch.equal(mean_square(x.transpose(1, 2).contiguous().transpose(1, 2)), due)
    wide = torch.zeros(16, 6, 9)
    wide[::2, :, 1:5] = x
    assert torch.equal(mean_square(wide[::2, :, 1:5]), due)
    assert torch.equal(mean_square(x.numpy()), due)
    torch.testing.assert_close(mean_square(x.numpy().astype(np.float16)), due, rtol=1e-2, atol=0)
    assert torch.equal(mean_square(x.requires_grad_()), due)
    assert torch.equal(mean_square(x[:1].expand(5, 6, 4)), due[:1].expand(5))


def test_no_rows():
    assert mean_square(torch.zeros(0, 6, 4)).shape == (0,)


@pytest.mark.gpu
def test_samples_on_a_device():
    x = torch.randn(8, 6, 4)
    scores = mean_square(x.cuda())
    assert scores.is_cuda
    assert torch.equal(scores.cpu(), mean_square(x))


def test_samples_that_are_no_batch():
    with pytest.raises(ShapeError, match=r"jit\(mean_square\).*\[B, ...\], got \[4\]; pass one"):
        mean_square(torch.zeros(4))
    with pytest.raises(DtypeError, match="real numbers, got complex64"):
        mean_square(torch.zeros(4, 2, 2, dtype=torch.complex64))


def test_name_and_attributes():
    assert mean_square.deterministic is True
    assert repr(per_sample.compiled_sum) == "jit(compiled_sum)"
    assert per_sample.compiled_sum.__doc__ == "The sum."

    def noisy(x):
        return np.random.random()

    noisy.deterministic = False
    assert rewards.jit(noisy).deterministic is False
    noisy.needs_cond = True
    with pytest.raises(ArgumentError, match=r"jit\(noisy\): the function has needs_cond=True"):
        rewards.jit(noisy)


def test_reward_of_a_run():
    weights = np.array([0.5, -1.0, 2.0])

    @rewards.jit
    def score(tokens):
        return (tokens * weights).sum()

    def batch(x):
        return (x * torch.from_numpy(weights)).sum(dim=1)

    runs = [
        fg.SVDD(exact.diffusion(), reward, num_candidates=4, alpha=0.5).sample(
            16, num_steps=exact.STEPS, progress=False
        )
        for reward in (score, batch)
    ]
    assert torch.equal(runs[0].samples, runs[1].samples)
    assert torch.equal(runs[0].rewards, runs[1].rewards)


def table_lookup(tokens):
    table = np.zeros(4)
    return table[tokens[0]]


def inverse(tokens):
    return 1 / tokens[0]


def maybe(tokens):
    if tokens[0] == 7:
        return None
    return 1.0


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_exception_on_several_threads():
    text = (
        "raises_at_seven raised ValueError on sample 3 of 9: sevens are not allowed\n"
        r".+per_sample.py:\d+: raise ValueError\(\"sevens are not allowed\"\)\n  sample 3: \[7\]"
    )
    with pytest.raises(RewardError, match=text):
        rewards.jit(per_sample.raises_at_seven)(torch.tensor([1, 1, 1, 7, 1, 1, 1, 7, 1])[:, None])


@pytest.mark.parametrize(
    ("function", "bad", "text"),
    [
        (table_lookup, 7, r"IndexError on sample 5 of 9: .*bounds.*\n.*test_jit.py:\d+: return"),
        (inverse, 0, "ZeroDivisionError on sample 5 of 9: division by zero"),
        (maybe, 7, "TypeError on sample 5 of 9: it returned None, where a number is due"),
    ],
)  # fmt: skip
def test_exception_names_the_sample(function, bad, text):
    tokens = torch.ones(9, 2, dtype=torch.int64)
    tokens[5:, 0] = bad
    with pytest.raises(RewardError, match=text):
        rewards.jit(function)(tokens)


def helper(token):
    return 2.0 * token


def calls_a_helper(tokens):
    total = 0.0
    for token in tokens:
        total += helper(token)
    return total


def joins_letters(tokens):
    text = "".join("ACGT"[t] for t in tokens)
    return text.count("CG") * 1.0


def sorts_in_place(tokens):
    tokens[0] = 3
    return 1.0


def counts_with_numpy(tokens):
    return np.unique(tokens, axis=0).size


def opens_a_file(tokens):
    with open("motifs.txt") as file:
        return float(file.read())


def returns_an_array(tokens):
    return tokens * 2


def returns_nothing(tokens):
    tokens.sum()


@pytest.mark.parametrize(
    ("function", "line", "reason", "fix"),
    [
        (calls_a_helper, "total += helper(token)", "Untyped global name 'helper'",
         "decorate helper with @numba.njit"),
        (joins_letters, 'text = "".join("ACGT"[t] for t in tokens)', "yield in a closure",
         "numba compiles numbers, loops"),
        (sorts_in_place, "tokens[0] = 3", "no compiled form of setitem(readonly array",
         "read-only, so change a .copy()"),
        (counts_with_numpy, "return np.unique(tokens, axis=0).size", "", "loops, arrays"),
        (opens_a_file, "def opens_a_file(tokens):", "with (context manager)", "fallback=True"),
        (returns_an_array, "def returns_an_array(tokens):", "It returns array(int64, 1d, C)",
         "return a number"),
        (returns_nothing, "def returns_nothing(tokens):", "It returns none", "return a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_names_the_line(function, line, reason, fix):
    with pytest.raises(ArgumentError) as caught:
        rewards.jit(function)(torch.zeros(2, 3, dtype=torch.int64))
    first, where, why, what = str(caught.value).splitlines()
    assert first == f"jit({function.__name__}): numba cannot compile it"
    path, number, shown = where.strip().split(":", 2)
    assert os.path.samefile(path, __file__)
    with open(__file__, encoding="utf-8") as file:
        assert file.readlines()[int(number) - 1].strip() == shown.strip() == line
    assert reason in why
    assert fix in what


def test_plain_python_on_request(caplog):
    reward = rewards.jit(calls_a_helper, fallback=True)
    with caplog.at_level(logging.WARNING, "fastguide"):
        assert reward(torch.tensor([[1, 2], [3, 4]])).tolist() == [6.0, 14.0]
        assert reward(torch.tensor([[1, 2]])).tolist() == [6.0]
    (record,) = caplog.records
    assert "jit(calls_a_helper) runs as plain Python" in record.getMessage()
    assert "Untyped global name 'helper'" in record.getMessage()


def test_plain_python_names_the_sample():
    reward = rewards.jit(opens_a_file, fallback=True)
    with pytest.raises(RewardError, match=r"FileNotFoundError on sample 0 of 2(.|\n)*test_jit.py"):
        reward(torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(RewardError, match=r"it returned array.*, where a number is due"):
        rewards.jit(returns_an_array, fallback=True)(torch.zeros(2, 2, dtype=torch.int64))


def test_without_numba(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastguide\[numba\]'"):
        rewards.jit(per_sample.first)
    reward = rewards.jit(per_sample.first, fallback=True)
    assert reward(torch.tensor([[5], [6]])).tolist() == [5.0, 6.0]
    assert "numba is not installed" in caplog.text
    assert pickle.loads(pickle.dumps(reward))(torch.tensor([[5]])).tolist() == [5.0]


@pytest.mark.parametrize("function", [lambda: 1.0, lambda a, b: 1.0, len, torch.nn.Identity()])
def test_what_is_no_function_of_one_argument(function):
    with pytest.raises(ArgumentError, match="expected a function of one argument"):
        rewards.jit(function)


def test_what_cannot_be_called():
    with pytest.raises(DtypeError, match="jit: expected a function, got list"):
        rewards.jit([1.0])


def test_decorator_with_options_and_njit():
    @rewards.jit(fallback=True)
    @numba.njit
    def double(tokens):
        return 2.0 * tokens[0]

    assert isinstance(double, rewards.jit(per_sample.first).__class__)
    assert double(torch.tensor([[3]])).tolist() == [6.0]


def test_pickles():
    tokens = torch.randint(4, (5, 3))
    again = pickle.loads(pickle.dumps(per_sample.compiled_sum))
    assert again is per_sample.compiled_sum
    base = 10.0
    closure = rewards.jit(lambda tokens: base + tokens[0])
    again = pickle.loads(pickle.dumps(closure))
    assert torch.equal(again(tokens), 10.0 + tokens[:, 0])


MODULE = """
import numba
import shared_scale

@numba.njit
def shifted(token):
    return token + shared_scale.SHIFT

def score(tokens):
    return shared_scale.SCALE * shifted(tokens[0])

def scaled(scale):
    return lambda tokens: scale * tokens[0]
"""


def test_compiled_code_is_kept_and_never_stale(tmp_path, monkeypatch):
    """It comes back from disk, unless anything that it depends on has changed, in any file."""
    (tmp_path / "scoring_module.py").write_text(MODULE)
    (tmp_path / "shared_scale.py").write_text("SCALE = 2.0\nSHIFT = 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import scoring_module
    import shared_scale

    tokens = torch.tensor([[3], [4]])

    def scores(function):
        reward = rewards.jit(function)
        found = reward(tokens).tolist()
        (loop,) = reward._loops.values()
        return found, sum(loop._run.stats.cache_hits.values())

    assert scores(scoring_module.score) == ([8.0, 10.0], 0)
    assert scores(scoring_module.score) == ([8.0, 10.0], 1)
    monkeypatch.setattr(shared_scale, "SCALE", 3.0)
    assert scores(scoring_module.score) == ([12.0, 15.0], 0)
    assert scores(scoring_module.scaled(5.0)) == ([15.0, 20.0], 0)
    assert scores(scoring_module.scaled(6.0)) == ([18.0, 24.0], 0)
    assert scores(scoring_module.scaled(5.0)) == ([15.0, 20.0], 1)


def test_change_of_what_a_helper_reads_is_seen():
    from fastguide.rewards.fingerprint import fingerprint

    def compiled(shift, options):
        helper = numba.njit(lambda x: x + shift, **options)
        return numba.njit(lambda x: helper(x))

    base = fingerprint(compiled(1.0, {}))
    assert fingerprint(compiled(1.0, {})) == base
    assert fingerprint(compiled(2.0, {})) != base
    assert fingerprint(compiled(np.arange(3), {})) != fingerprint(compiled(np.arange(4), {}))
    assert fingerprint(compiled(1.0, {"fastmath": True})) != base
    assert fingerprint(compiled(object(), {})) is None


def test_function_without_a_file():
    names = {}
    exec("def score(tokens):\n    return tokens[0] + 0.5", names)
    assert rewards.jit(names["score"])(torch.tensor([[2]])).tolist() == [2.5]


@both
def test_several_python_threads():
    tokens = torch.randint(4, (64, 20))
    reward = rewards.jit(per_sample.gc_and_runs)
    due = plain(per_sample.gc_and_runs, tokens)
    found = []
    callers = [threading.Thread(target=lambda: found.append(reward(tokens))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [torch.equal(scores, due) for scores in found] == [True] * 4


SCRIPT = """
import os, torch, per_sample
from fastguide import rewards

torch.set_num_threads(2)
tokens = torch.randint(4, (64, 20))
reward = rewards.jit(per_sample.gc_and_runs)
for _ in range(3):
    torch.randn(300, 300) @ torch.randn(300, 300)
    scores = reward(tokens)
print(torch.get_num_threads())
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(reward(tokens), scores) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_torch_threads_and_forked_workers(root):
    """torch keeps its number of threads, and a process forked after a parallel call can score."""
    environment = {
        **os.environ, "NUMBA_NUM_THREADS": "4", "PYTHONPATH": str(root / "tests"),
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.stdout.split() == ["2", "0"], done.stderr
