"""What is saved loads elsewhere: into the zoo, into diffusers, and as terms of PEFT."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tuning_case import QUIET, count_of_threes, sequences

import fastguide as fg
from fastguide import finetune
from fastguide.errors import ArgumentError, CheckpointError

SHAPE = (2, 8, 8)


@pytest.fixture(scope="module")
def tuned_utr(tmp_path_factory):
    """The utr model, tuned a little, and the file of its weights."""
    task = fg.zoo.load("utr")
    tuner = finetune.PPO(task.diffusion, task.reward, alpha=1.0, rank=1, learning_rate=0.01)
    tuner.train(1, 4, num_steps=3, **QUIET)
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    tuner.save(path)
    return tuner, path


def test_the_zoo_loads_saved_weights(tuned_utr):
    tuner, path = tuned_utr
    task = fg.zoo.load("utr", denoiser=path)
    x, t = torch.randint(0, 5, (3, 50)), torch.zeros(3)
    found = task.diffusion.denoiser(x, t)
    assert torch.equal(found, tuner.diffusion.denoiser(x, t))
    assert not torch.equal(found, fg.zoo.load("utr").diffusion.denoiser(x, t))
    assert not any(p.requires_grad for p in task.diffusion.denoiser.parameters())
    result = fg.Unguided(task.diffusion, task.reward).sample(2, num_steps=4, progress=False)
    assert len(task.decode(result.samples)) == 2


def test_the_zoo_names_a_file_that_does_not_fit(tuned_utr, tmp_path):
    _, path = tuned_utr
    state, file = load_file(path), tmp_path / "other.safetensors"
    wrong = {
        "another name": ({**state, "extra": torch.zeros(1)}, r"extra"),
        "another shape": ({**state, "head.bias": torch.zeros(5)}, r"size mismatch for head.bias"),
        "a missing name": ({k: v for k, v in state.items() if k != "head.bias"}, r"head.bias"),
    }
    for content, message in wrong.values():
        save_file(content, file)
        with pytest.raises(CheckpointError, match=rf"(?s)other\.safetensors.*{message}.*`save`"):
            fg.zoo.load("utr", denoiser=file)
    with pytest.raises(CheckpointError, match=r"(?s)other\.safetensors does not hold this model"):
        fg.zoo.load("glyphs", denoiser=file)
    with pytest.raises(CheckpointError, match=r"cannot read .*nowhere"):
        fg.zoo.load("utr", denoiser=tmp_path / "nowhere")


# -- diffusers -------------------------------------------------------------------------------------


def unet():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
    )


def conditional_unet():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=6,
    )


def transformer():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        norm_num_groups=1,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=10,
    )


# name -> (model, conditioning of one row)
MODELS = {
    "unet": (unet, {}),
    "conditional_unet": (
        conditional_unet,
        {"encoder_hidden_states": torch.linspace(-1, 1, 18).view(1, 3, 6)},
    ),
    "transformer": (transformer, {"class_labels": torch.tensor([3])}),
}


def brightness(x):
    return x.mean(dim=(1, 2, 3))


def tuned_model(name, **options):
    """A model of diffusers, given as it is, and what trained it."""
    make, cond = MODELS[name]
    model = make()
    for parameter in model.parameters():  # zero at first, some of them
        nn.init.normal_(parameter, std=0.1)
    diffusion = fg.GaussianDiffusion(model, SHAPE, alphas_cumprod=[0.9, 0.6, 0.3, 0.1])
    tuner = finetune.PPO(diffusion, brightness, alpha=0.1, rank=2, learning_rate=0.02, **options)
    tuner.train(2, 4, num_steps=3, cond=cond, **QUIET)
    return model, tuner


def output(model, name):
    x = torch.linspace(-1, 1, 2 * 128).view(2, *SHAPE).sin()
    cond = {key: value.expand(2, *value.shape[1:]) for key, value in MODELS[name][1].items()}
    with torch.no_grad():
        return model.eval()(x, torch.tensor([1, 3]), **cond).sample


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_of_diffusers_loads_saved_weights(name, tmp_path):
    model, tuner = tuned_model(name)
    natural, expected = output(model, name), output(tuner.diffusion.denoiser, name)
    assert (expected - natural).abs().max() > 1e-3
    model.save_config(tmp_path)
    tuner.save(tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(output(loaded, name), expected, rtol=0, atol=1e-6)
    model.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    torch.testing.assert_close(output(model, name), expected, rtol=0, atol=1e-6)


def test_a_model_of_diffusers_is_guided_as_others_are():
    model, text = conditional_unet().eval(), torch.linspace(-1, 1, 36).view(2, 3, 6)
    diffusion = fg.GaussianDiffusion(
        model,
        SHAPE,
        alphas_cumprod=[0.9, 0.6, 0.3, 0.1],
        prediction_type="sample",
        null_cond={"encoder_hidden_states": torch.zeros(1, 3, 6)},
        guidance_scale=3.0,
    )
    x, t = torch.linspace(-1, 1, 256).view(2, *SHAPE).sin(), torch.tensor([1, 3])
    with torch.no_grad():
        given, free = (model(x, t, hidden).sample for hidden in (text, 0 * text))
        found = diffusion.predict(x, t, {"encoder_hidden_states": text})
    torch.testing.assert_close(found, free + 3 * (given - free), rtol=0, atol=1e-5)


def test_a_tuned_model_of_diffusers_makes_a_pipeline():
    _, tuner = tuned_model("unet")
    pipe = fg.integrations.diffusers.as_pipeline(tuner.diffusion)
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(batch_size=2, num_inference_steps=3, output_type="np").images
    assert pictures.shape == (2, 8, 8, 2)


@pytest.mark.parametrize("peft", [False, True], ids=["built in", "peft"])
@pytest.mark.parametrize("prefix", ["", "unet"])
def test_diffusers_loads_the_terms_alone(prefix, peft, tmp_path):
    library = pytest.importorskip("peft")
    path, options = tmp_path / "terms.safetensors", {}
    if peft:
        layers = ["to_q", "to_v", "conv1", "time_embedding.linear_1"]
        options["adapter"] = library.LoraConfig(r=2, lora_alpha=6, target_modules=layers)
    model, tuner = tuned_model("conditional_unet", **options)
    natural = output(model, "conditional_unet")
    expected = output(tuner.diffusion.denoiser, "conditional_unet")
    assert (expected - natural).abs().max() > 1e-3
    tuner.save_adapter(path, prefix=prefix)
    state = load_file(path)
    kinds = {name.rsplit(".", 2)[1] for name in state}
    assert kinds == {"lora_A", "lora_B"}
    if not peft:
        layers = (nn.Linear, nn.Conv2d)
        assert len(state) == 2 * sum(isinstance(layer, layers) for layer in model.modules())
    model.load_lora_adapter(path, prefix=prefix or None)
    torch.testing.assert_close(output(model, "conditional_unet"), expected, rtol=0, atol=1e-5)
    model.disable_lora()
    torch.testing.assert_close(output(model, "conditional_unet"), natural, rtol=0, atol=1e-6)


def test_a_pipeline_loads_the_terms_alone(tmp_path):
    for name in ("peft", "diffusers", "transformers"):
        pytest.importorskip(name)
    from diffusers import DDPMScheduler
    from pipelines_tiny_unet import TEXT_WIDTH, stable_diffusion

    pipe = stable_diffusion(DDPMScheduler, steps_offset=1, clip_sample=False)
    cond = {"encoder_hidden_states": torch.linspace(-1, 1, 2 * TEXT_WIDTH).view(1, 2, -1)}
    table = pipe.scheduler.alphas_cumprod
    diffusion = fg.GaussianDiffusion(pipe.unet, (4, 8, 8), alphas_cumprod=table)
    tuner = finetune.PPO(diffusion, brightness, alpha=0.1, rank=2, learning_rate=0.02)
    tuner.train(1, 4, num_steps=3, cond=cond, **QUIET)
    tuner.save_adapter(tmp_path / "terms.safetensors", prefix="unet")
    x, t = torch.linspace(-1, 1, 256).view(1, 4, 8, 8).sin(), torch.tensor([500])
    with torch.no_grad():
        natural, tuned = (chain.predict(x, t, cond) for chain in (diffusion, tuner.diffusion))
        pipe.load_lora_weights(tmp_path / "terms.safetensors")
        loaded = diffusion.predict(x, t, cond)
    assert (natural - tuned).abs().max() > 1e-3
    torch.testing.assert_close(loaded, tuned, rtol=0, atol=1e-5)


def test_adapters_that_are_not_low_rank_terms():
    def save(adapter, diffusion=None):
        tuner = finetune.PPO(
            diffusion or sequences(), count_of_threes, alpha=1.0, adapter=adapter, learning_rate=0.1
        )
        tuner.train(1, 8, num_steps=3, **QUIET)
        tuner.save_adapter("unused")

    with pytest.raises(ArgumentError, match="adapter='full' has no low-rank terms"):
        save("full")
    with pytest.raises(ArgumentError, match=r"PEFT|peft cannot adapt layer 'blocks.1.mix"):
        save("lora")
    peft = pytest.importorskip("peft")
    for config in (
        peft.LoHaConfig(r=2, target_modules=["out"]),
        peft.LoraConfig(r=2, target_modules=["out"], use_dora=True),
        peft.LoraConfig(r=2, target_modules=["out"], bias="all"),
        peft.LoraConfig(r=2, target_modules=["out"], modules_to_save=["head"]),
    ):
        with pytest.raises(ArgumentError, match="by more than the terms of LoRA"):
            save(config)
