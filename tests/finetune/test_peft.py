"""Adapters that peft makes, in the place of the built-in ones."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from tuning_case import QUIET, assert_equal, count_of_threes, parameters, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.checkpoint import digest
from fastguide.errors import ArgumentError, CheckpointError, DtypeError, MissingExtraError
from fastguide.nn import MaskedDenoiser

peft = pytest.importorskip("peft")

LAYERS = ["mix.conv", "out", "head"]


def undilated():
    """The quick case without what peft cannot adapt."""
    torch.manual_seed(1)
    network = MaskedDenoiser(8, 4, channels=8, kernel_size=3, dilations=(1, 1)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fg.MaskedDiffusion(network, 8, 4)


def config(**options):
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 2, "target_modules": LAYERS, **options})


def ppo(diffusion, adapter, **options):
    settings = dict(alpha=1.0, learning_rate=0.05, rank=2) | options
    return finetune.PPO(diffusion, count_of_threes, adapter=adapter, **settings)


def tokens():
    return torch.randint(0, 5, (6, 8)), torch.zeros(6)


def test_before_training_it_is_the_reference():
    diffusion = undilated()
    x, t = tokens()
    tuned = ppo(diffusion, config()).diffusion.denoiser
    assert torch.equal(tuned(x, t), diffusion.denoiser.eval()(x, t))


def test_it_reaches_what_the_built_in_terms_reach(tmp_path):
    """From the same initial terms, every update is the same."""
    ours, theirs = ppo(undilated(), "lora"), ppo(undilated(), config())
    terms = [m for m in ours._network.modules() if isinstance(m, finetune.adapters.LowRank)]
    layers = [m for m in theirs._network.modules() if hasattr(m, "lora_A")]
    assert len(terms) == len(layers) == 5
    with torch.no_grad():
        for term, layer in zip(terms, layers, strict=True):
            weight = layer.lora_A["default"].weight
            weight.copy_(term.down.view_as(weight))
    states = []
    for name, tuner in (("ours", ours), ("theirs", theirs)):
        tuner.train(5, 16, num_steps=3, **QUIET)
        path = tmp_path / f"{name}.safetensors"
        tuner.save(path)
        states.append(load_file(path))
        fresh = undilated().denoiser
        before = digest(fresh)
        fresh.load_state_dict(states[-1])
        assert digest(fresh) != before
        x, t = tokens()
        torch.testing.assert_close(
            fresh.eval()(x, t), tuner.diffusion.denoiser(x, t), rtol=0, atol=1e-6
        )
    assert states[0].keys() == states[1].keys() == undilated().denoiser.state_dict().keys()
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=1e-6)


KINDS = {
    "lora": lambda: config(),
    "dropout": lambda: config(lora_dropout=0.5),
    "weights that start elsewhere": lambda: peft.LoraConfig(
        r=2, target_modules=["linear"], init_lora_weights="olora"
    ),
    "biases": lambda: config(bias="all"),
    "a whole layer": lambda: config(target_modules=["out"], modules_to_save=["head"]),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["out"]),
}


class Linear(nn.Module):
    """(x, t) -> logits by one linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x, t):
        return self.linear(nn.functional.one_hot(x, 5).float())


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_leaves_the_users_network_alone_and_merges(kind, tmp_path):
    adapter = KINDS[kind]()
    diffusion = fg.MaskedDiffusion(Linear(), 8, 4) if "elsewhere" in kind else undilated()
    settings, before = adapter.to_dict(), digest(diffusion.denoiser)
    tuner = ppo(diffusion, adapter, ema=0.5)
    history = tuner.train(2, 8, num_steps=3, **QUIET)
    assert history.rows[0]["ratio_drift"] < 1e-4
    assert adapter.to_dict() == settings
    assert digest(diffusion.denoiser) == before
    assert not any(hasattr(module, "lora_A") for module in diffusion.denoiser.modules())
    x, t = tokens()
    tuned = tuner.diffusion.denoiser(x, t)
    tuner.save(tmp_path / "tuned.safetensors")
    assert digest(diffusion.denoiser) == before  # merging did not write into shared weights
    natural = diffusion.denoiser.eval()(x, t)
    assert not torch.allclose(tuned, natural, atol=1e-4)
    diffusion.denoiser.load_state_dict(load_file(tmp_path / "tuned.safetensors"))
    torch.testing.assert_close(diffusion.denoiser(x, t), tuned, rtol=0, atol=1e-6)


def test_frozen_weights_are_shared():
    diffusion = undilated()
    tuner = ppo(diffusion, config())
    kept = {p.data_ptr() for p in diffusion.denoiser.parameters()}
    for network in (tuner._network, tuner.diffusion.denoiser):
        own = [n for n, p in network.named_parameters() if p.data_ptr() not in kept]
        assert len(own) == 10
        assert all(".lora_" in name for name in own)


def test_initial_terms_do_not_depend_on_torchs_generator():
    diffusion = undilated()
    state = torch.get_rng_state()
    one = ppo(diffusion, config())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    other = ppo(diffusion, config())
    assert_equal(one._network.state_dict(), other._network.state_dict())


def test_resumed_run_is_the_run(tmp_path):
    how = dict(num_steps=3, checkpoint=tmp_path, **QUIET)
    whole = ppo(undilated(), config(), ema=0.9)
    whole.train(4, 8, num_steps=3, **QUIET)
    ppo(undilated(), config(), ema=0.9).train(
        4, 8, callback=lambda row: row["iteration"] < 1, **how
    )
    resumed = ppo(undilated(), config(), ema=0.9)
    resumed.train(4, 8, **how)
    assert_equal(parameters(resumed), parameters(whole))
    saved = json.loads((tmp_path / "state.json").read_text())["run"]["adapter"]
    assert saved["peft_type"] == "LORA"
    assert saved["target_modules"] == sorted(LAYERS)
    with pytest.raises(CheckpointError, match="it differs in adapter"):
        ppo(undilated(), config(lora_alpha=4), ema=0.9).train(4, 8, **how)


def test_what_peft_cannot_adapt_is_refused():
    with pytest.raises(ArgumentError, match=r"'blocks.1.mix.conv': its convolution is dilated"):
        ppo(sequences(), config())
    ppo(sequences(), config(target_modules=["out"]))
    with pytest.raises(ArgumentError, match=r"peft cannot adapt MaskedDenoiser.*nowhere"):
        ppo(undilated(), config(target_modules=["nowhere"]))
    with pytest.raises(ArgumentError, match="nothing to train"):
        ppo(undilated(), config(inference_mode=True))
    with pytest.raises(DtypeError, match=r"peft.LoraConfig.*got dict"):
        ppo(undilated(), {"r": 8})


def test_missing_peft_names_the_extra(monkeypatch):
    real = importlib.import_module

    def without(name, *of):
        if name == "peft":
            raise ImportError(name)
        return real(name, *of)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"got LoraConfig.*fastguide\[peft\]"):
        ppo(undilated(), config())
