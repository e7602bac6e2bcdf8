"""What is trained beside the user's network, and what comes of it."""

from __future__ import annotations

import pytest
import torch
from exact_chains import ALPHA, G1, quadratic
from torch import nn
from tuning_case import QUIET, assert_equal, count_of_threes, parameters, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.checkpoint import digest
from fastguide.errors import (
    ArgumentError,
)
from fastguide.nn import MaskedDenoiser


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_users_network_is_left_alone(adapter):
    diffusion = sequences()
    diffusion.denoiser.train()
    before = digest(diffusion.denoiser)
    names = [name for name, _ in diffusion.denoiser.named_parameters()]
    for method in (finetune.PPO, finetune.RewardBackprop):
        tuner = method(diffusion, count_of_threes, alpha=1.0, adapter=adapter)
        tuner.train(2, 8, num_steps=3, **QUIET)
    assert digest(diffusion.denoiser) == before
    assert diffusion.denoiser.training
    assert [name for name, _ in diffusion.denoiser.named_parameters()] == names
    assert all(p.requires_grad and p.grad is None for p in diffusion.denoiser.parameters())
    assert digest(tuner.diffusion.denoiser) != before


def test_adapter_off_is_the_reference():
    diffusion = sequences()
    tuner = finetune.PPO(diffusion, count_of_threes, alpha=1.0, adapter="lora", learning_rate=0.1)
    x = torch.randint(0, 5, (6, 8))
    t = torch.zeros(6)
    natural = diffusion.denoiser.eval()(x, t)
    assert torch.equal(tuner.diffusion.denoiser(x, t), natural)
    tuner.train(2, 8, num_steps=3, **QUIET)
    tuned = tuner.diffusion.denoiser
    assert not torch.equal(tuned(x, t), natural)
    for module in tuned.modules():
        if isinstance(module, finetune.adapters.LowRank):
            module.enabled = False
    assert torch.equal(tuned(x, t), natural)


def test_adapter_shares_the_weights():
    diffusion = sequences()
    tuner = finetune.PPO(diffusion, count_of_threes, alpha=1.0, rank=1)
    kept = {p.data_ptr() for p in diffusion.denoiser.parameters()}
    own = [p for p in tuner._network.parameters() if p.data_ptr() not in kept]
    assert {p.requires_grad for p in own} == {True}
    assert sum(p.numel() for p in own) < 300


def test_saved_weights_load_into_the_class(tmp_path):
    from safetensors.torch import load_file

    tuner = finetune.PPO(sequences(), count_of_threes, alpha=1.0, learning_rate=0.1)
    tuner.train(2, 8, num_steps=3, **QUIET)
    tuner.save(tmp_path / "tuned.safetensors")
    network = MaskedDenoiser(8, 4, channels=8, kernel_size=3, dilations=(1, 2)).double().eval()
    network.load_state_dict(load_file(tmp_path / "tuned.safetensors"))
    x = torch.randint(0, 5, (6, 8))
    assert torch.equal(network(x, torch.zeros(6)), tuner.diffusion.denoiser(x, torch.zeros(6)))


def test_tuned_diffusion_serves_samplers_and_stays_put():
    tuner = finetune.PPO(
        sequences(), count_of_threes, alpha=0.3, adapter="full", learning_rate=0.02, ema=0.5
    )
    tuner.train(15, 32, num_steps=4, **QUIET)
    tuned = tuner.diffusion
    before = digest(tuned.denoiser)
    plain = fg.Unguided(sequences(), count_of_threes).sample(64, num_steps=4, progress=False)
    found = fg.SVDD(tuned, count_of_threes, num_candidates=2, alpha=0.3).sample(
        64, num_steps=4, progress=False
    )
    assert found.rewards.mean() > plain.rewards.mean() + 1
    tuner.train(1, 8, num_steps=4, **QUIET)
    assert digest(tuned.denoiser) == before != digest(tuner.diffusion.denoiser)


def test_learned_deviations_belong_to_their_number_of_steps():
    tuner = finetune.PathConsistency(
        G1(), quadratic, alpha=ALPHA, adapter="full", learn_scale=True, learning_rate=0.05
    )
    tuner.train(30, 64, num_steps=10, **QUIET)
    natural, tuned = G1().steps(10), tuner.diffusion.steps(10)
    factors = [new.params[2] / old.params[2] for new, old in zip(tuned, natural, strict=True)]
    assert all(new.params[:2] == old.params[:2] for new, old in zip(tuned, natural, strict=True))
    assert sum(factors) < 9.95
    with pytest.raises(ArgumentError, match="num_steps must be 10"):
        tuner.diffusion.steps(5)


def test_average_of_the_parameters():
    """The tuned diffusion has the average; training goes on with the parameters themselves."""
    tuner = finetune.PPO(
        sequences(), count_of_threes, alpha=1.0, adapter="full", learning_rate=0.1, ema=0.5
    )
    tuner.train(1, 8, num_steps=3, **QUIET)
    decay = 1 / 11  # short at first
    average = tuner.diffusion.denoiser.state_dict()
    last, natural = tuner._network.state_dict(), sequences().denoiser.state_dict()
    for name in average:
        expected = decay * natural[name] + (1 - decay) * last[name]
        torch.testing.assert_close(average[name], expected)


@pytest.mark.parametrize("adapter", ["full", "lora", "peft"])
def test_reading_the_average_changes_nothing(adapter):
    """The tuned diffusion is a copy: training goes on as if nobody had looked."""
    if adapter == "peft":
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(r=2, target_modules=["out", "head"])
    tuners, looked = [], []
    for look in (False, True):
        tuner = finetune.PPO(
            sequences(), count_of_threes, alpha=1.0, adapter=adapter, learning_rate=0.1, ema=0.9
        )
        callback = (lambda row, of=tuner: looked.append(of.diffusion)) if look else None
        tuner.train(4, 8, num_steps=3, callback=callback, **QUIET)
        tuners.append(tuner)
    assert len({digest(diffusion.denoiser) for diffusion in looked}) == 4
    quiet, read = tuners
    assert_equal(read._network.state_dict(), quiet._network.state_dict())
    assert_equal(parameters(read), parameters(quiet))
    assert digest(read._network) != digest(read.diffusion.denoiser)


def test_learning_rates_that_change():
    tuner = finetune.PPO(
        sequences(), count_of_threes, alpha=1.0, learning_rate=finetune.cosine(0.1, 0.02)
    )
    history = tuner.train(4, 8, num_steps=3, **QUIET)
    found = history.column("learning_rate").tolist()
    assert found == pytest.approx([0.1, 0.08828427, 0.06, 0.03171573])
    assert [finetune.linear(2, 1)(share) for share in (0, 0.25, 1)] == [2, 1.75, 1]


@pytest.mark.parametrize(
    "method", [finetune.PPO, finetune.RewardBackprop, finetune.AdjointMatching]
)
def test_pictures(method):
    """Low-rank terms of two-dimensional convolutions, on a variance-preserving chain."""
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 1, 3, padding=1))

    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, t):
            return 0.5 * x + self.network(x)

    def brightness(x):
        return x.mean(dim=(1, 2, 3))

    diffusion = fg.GaussianDiffusion(
        Denoiser(), (1, 4, 4), alphas_cumprod=[0.9, 0.6, 0.3, 0.1], prediction_type="sample"
    )
    tuner = method(diffusion, brightness, alpha=0.02, rank=2, learning_rate=0.02)
    tuner.train(15, 64, num_steps=4, **QUIET)
    assert len([p for p in tuner._network.parameters() if p.requires_grad]) == 4
    plain, tuned = (
        fg.Unguided(chain, brightness).sample(256, num_steps=4, seed=1, **QUIET).rewards.mean()
        for chain in (diffusion, tuner.diffusion)
    )
    assert tuned > plain + 0.05
