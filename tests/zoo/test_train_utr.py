"""The recipe on invented data, and its pieces."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import fastguide.zoo
from fastguide.errors import ArgumentError
from fastguide.nn import MaskedDenoiser, SequenceRegressor, count_flops, fuse_norms
from fastguide.zoo import train_utr, utr_data
from fastguide.zoo.fitting import Fit

TINY = train_utr.Recipe(
    denoiser=dict(channels=8, kernel_size=3, dilations=[1, 2]),
    oracle=dict(channels=16, kernel_size=3, dilations=[1], features=4, sums=3, hidden=8),
    members=2,
    denoiser_fit=Fit(epochs=2, batch_size=32),
    oracle_fit=Fit(epochs=6, batch_size=16, learning_rate=1e-2),
    elbo_masks=4,
)


def test_recipe_learns_and_writes_a_task(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = train_utr.train(table, tmp_path / "new" / "utr", threads=1, recipe=TINY)
    printed = capsys.readouterr()
    assert "denoiser  epoch  2/2" in printed.err
    assert "judge 2   epoch  6/6" in printed.err
    assert "held-out human rows" in printed.out
    task = fastguide.zoo.load("utr", folder=tmp_path / "new" / "utr")
    assert task.card == card
    found = card["metrics"]
    assert 1.9 < found["denoiser"]["bits_per_nucleotide"] < 2.1
    for name in ("guide", "judge"):
        assert found[name]["random"]["pearson"] > 0.5
        assert found[name]["random"]["rows"] == card["split"]["parts"]["test"]["random"]


def _hashes(table: Path, out: Path, threads: int = 1, seed: int = 0) -> list[str]:
    """Hashes of the weights of the tiny recipe."""
    card = train_utr.train(table, out, seed=seed, threads=threads, progress=False, recipe=TINY)
    return [model["sha256"] for model in card["models"].values()]


def test_weights_are_reproducible(table: Path, tmp_path: Path) -> None:
    first = _hashes(table, tmp_path / "first")
    torch.rand(100)
    assert _hashes(table, tmp_path / "again") == first
    assert not set(_hashes(table, tmp_path / "other", seed=1)) & set(first)


@pytest.mark.slow
def test_weights_do_not_depend_on_the_number_of_processes(table: Path, tmp_path: Path) -> None:
    assert _hashes(table, tmp_path / "two", threads=2) == _hashes(table, tmp_path / "one")


def test_training_leaves_the_caller_alone(table: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train_utr.train(table, tmp_path, threads=1, progress=False, recipe=TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_bad_arguments(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"cannot read .*nothing\.csv .*docs/data\.md"):
        train_utr.train(tmp_path / "nothing.csv", tmp_path)
    with pytest.raises(ArgumentError, match=r"threads must be at least 1, got 0"):
        train_utr.train(table, tmp_path, threads=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"out: cannot write into .*file"):
        train_utr.train(table, tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seq,load\n", "has no column library, rl; it needs seq, rl, library"),
        ("seq,rl,library\n" + "A" * 50 + ",5,mouse\n", "line 2 has library 'mouse'"),
        ("seq,rl,library\n" + "A" * 50 + ",high,human\n", "line 2 has rl 'high'"),
        ("seq,rl,library\n" + "A" * 50 + ",nan,human\n", "line 2 has rl 'nan'"),
        ("seq,rl,library\nACGT,5,human\n", r"sequences\[0\] has 4 letters"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        utr_data.read(path)


def test_groups_are_connected_components() -> None:
    base = "ACGTTGCAACGGTTACCGATTGCATGCCGATAGGCTTAACCGGATATCCG"
    shifted = base[25:] + "TTTTTAAAAACCCCCGGGGGACACA"
    bridge = "GAGAGAGAGAGAGAGA" + base[3:37]
    alone = "AC" * 25
    variant = base[:24] + "A" + base[25:]
    assert utr_data.group_by_shared_kmers([alone, shifted, base, bridge, variant, alone]) == [
        0,
        1,
        1,
        1,
        1,
        0,
    ]


def test_parts_do_not_depend_on_row_order(table: Path) -> None:
    rows = utr_data.read(table)
    names = [str(row) for row in rows.tokens.tolist()]
    group = rows.group.tolist()
    forward = utr_data.assign_parts(names, group)
    backward = utr_data.assign_parts(names[::-1], group[::-1])
    assert forward.tolist() == backward[::-1].tolist()


def test_loss_is_the_bound_of_a_uniform_model() -> None:
    denoiser = MaskedDenoiser(50, 4, channels=8)
    x = torch.randint(0, 4, (64, 50))
    loss = train_utr.order_agnostic_loss(denoiser.eval(), x, torch.rand(64))
    # the head starts at zero weights, so only its bias speaks: almost uniform
    torch.testing.assert_close(loss.mean().item(), math.log(4), rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", ["denoiser", "regressor"])
def test_fused_norms_compute_the_same(kind: str) -> None:
    if kind == "denoiser":
        model = MaskedDenoiser(50, 4, channels=8, dilations=(1, 4), batch_norm=True)
        plain = MaskedDenoiser(50, 4, channels=8, dilations=(1, 4))
        arguments = (torch.randint(0, 5, (16, 50)), torch.zeros(16))
    else:
        sizes = dict(channels=8, features=4, sums=4, hidden=8)
        model = SequenceRegressor(50, 4, 2, **sizes, batch_norm=True)
        plain = SequenceRegressor(50, 4, 2, **sizes)
        arguments = (torch.rand(16, 50, 4),)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for _ in range(20):
        model(*arguments)  # fills the running moments
    expected = model.eval()(*arguments)
    fuse_norms(model)
    torch.testing.assert_close(model(*arguments), expected, rtol=1e-4, atol=1e-4)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval()(*arguments), expected, rtol=1e-4, atol=1e-4)


def test_flop_count() -> None:
    # 2 per multiply-add: 2 blocks of 8x8x5 and 8x8 taps, a head of 8x4, at 50 sites
    model = MaskedDenoiser(50, 4, channels=8, dilations=(1, 2))
    assert count_flops(model, 50) == 2 * 50 * (2 * (8 * 8 * 5 + 8 * 8) + 8 * 4)
