"""CLIP rewards against transformers itself, on a tiny model made here."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastguide as fg
from fastguide.errors import (
    ArgumentError,
    CheckpointError,
    DtypeError,
    MissingExtraError,
    ShapeError,
)
from fastguide.rewards import vision

PROMPT = "a cat"
SIZE, WIDTH = 32, 8


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, transformers):
    """A CLIP model and a tokenizer that spells, except for "cat"."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    words += ["ca", "cat</w>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPConfig(
        text_config=tower
        | dict(vocab_size=len(words), max_position_embeddings=12)
        | dict(bos_token_id=0, eos_token_id=1, pad_token_id=1),
        vision_config=tower | dict(image_size=SIZE, patch_size=8),
        projection_dim=WIDTH,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder, transformers):
    return transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()


def copied(folder, to, leave_out=()):
    for file in folder.iterdir():
        if file.name not in leave_out:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def normalised(images, mean=vision.CLIP_MEAN, std=vision.CLIP_STD):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@torch.no_grad()
def logits(clip, images):
    """logits_per_image [B] of the prompt, whose tokens are spelled out here."""
    tokens = torch.tensor([[0, 28, 55, 1]])
    return clip(input_ids=tokens, pixel_values=normalised(images)).logits_per_image[:, 0]


def test_scores_are_those_of_transformers(folder, clip):
    images = torch.rand(4, 3, SIZE, SIZE)
    due = logits(clip, images)
    assert due.std() > 0.1
    found = fg.rewards.PickScore(PROMPT, folder)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, due, rtol=1e-5, atol=1e-5)
    found = fg.rewards.ClipScore(PROMPT, folder)(images)
    scale = float(clip.logit_scale.detach().exp())
    torch.testing.assert_close(found, due * 100 / scale, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (97, 64), (51, 120), (20, 27), (33, 32)])
def test_images_are_prepared_as_the_processor_does(transformers, size):
    """Up to the processor's rounding to 8 bits, once across and once down.

    Half a level each, and the first one times the sum of the absolute weights of the second pass,
    at most 1.25 for this cubic: 1.125 levels of 255. Measured on random pixels: 1.06.
    """
    make = getattr(transformers, "CLIPImageProcessorPil", None)
    if make is None:
        pytest.skip("this version of transformers has no image processor without torchvision")
    pytest.importorskip("PIL")
    processor = make(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    levels = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    levels[0] = torch.linspace(0, 255, size[1]).to(torch.uint8)
    due = processor(list(levels), return_tensors="pt").pixel_values
    found = normalised(vision.preprocessed(levels / 255, SIZE, (0.0, 1.0)))
    std = torch.tensor(vision.CLIP_STD)[:, None, None]
    assert ((found - due).abs() * std * 255).max() < 1.13


def test_gradient_is_that_of_finite_differences(folder):
    reward = fg.rewards.ClipScore(PROMPT, folder).double()
    images = torch.rand(2, 3, 40, 52, dtype=torch.float64) * 0.6 + 0.2
    direction = torch.randn_like(images)
    (gradient,) = torch.autograd.grad(reward(images.requires_grad_()).sum(), images)
    assert not any(each.requires_grad for each in reward.parameters())
    with torch.no_grad():
        ahead, behind = (reward(images + h * direction) for h in (1e-6, -1e-6))
    due = (ahead - behind) / 2e-6
    assert due.abs().min() > 1e-3
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), due, rtol=1e-5, atol=1e-7)


def test_what_an_image_is(folder):
    """Grey is three equal channels, value_range is a unit, beyond it is clamped, rows are apart."""
    reward = fg.rewards.ClipScore(PROMPT, folder)
    grey = torch.rand(3, 1, 40, 40)
    due = reward(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(reward(grey), due)
    signed = fg.rewards.ClipScore(PROMPT, folder, value_range=(-1, 1))
    torch.testing.assert_close(signed(2 * grey - 1), due, rtol=1e-4, atol=1e-4)
    beyond = grey * 2 - 0.5
    torch.testing.assert_close(reward(beyond), reward(beyond.clamp(0, 1)))
    torch.testing.assert_close(reward(grey[1:2]), due[1:2], rtol=1e-4, atol=1e-4)


def test_half_precision(folder):
    images = torch.rand(3, 3, 40, 40)
    reward = fg.rewards.ClipScore(PROMPT, folder)
    due = reward(images)
    found = reward.bfloat16()(images.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, due, rtol=0, atol=3)


def test_mean_and_deviation_come_from_the_folder(folder, clip, tmp_path):
    copied(folder, tmp_path)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    settings = dict(image_mean=mean, image_std=std)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    images = torch.rand(3, 3, SIZE, SIZE)
    found = fg.rewards.PickScore(PROMPT, tmp_path)(images)
    usual = normalised(images, mean, std) * torch.tensor(vision.CLIP_STD)[:, None, None]
    due = logits(clip, usual + torch.tensor(vision.CLIP_MEAN)[:, None, None])
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(clip, images), atol=1e-2)


def test_aesthetic_heads(folder, clip, tmp_path):
    """Layers in the order of their numbers, not of their letters; bias where there is one."""
    images = torch.rand(3, 3, SIZE, SIZE, requires_grad=True)
    features = clip.vision_model(pixel_values=normalised(images)).pooler_output
    embedding = clip.visual_projection(features)
    embedding = embedding / embedding.norm(dim=1, keepdim=True)
    layers = [torch.nn.Linear(WIDTH, 5), torch.nn.Linear(5, 3, bias=False), torch.nn.Linear(3, 1)]
    tensors = {
        f"layers.{number}.{name}": tensor
        for number, layer in zip((2, 4, 10), layers, strict=True)
        for name, tensor in layer.state_dict().items()
    }
    save_file(tensors, tmp_path / "mlp.safetensors")
    save_file(torch.nn.Linear(WIDTH, 1).state_dict(), tmp_path / "linear.safetensors")
    linear = load_file(tmp_path / "linear.safetensors")
    due = torch.nn.Sequential(*layers)(embedding)[:, 0]
    reward = fg.rewards.AestheticScore(folder, tmp_path / "mlp.safetensors")
    torch.testing.assert_close(reward(images), due, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(each.sum(), images)[0] for each in (reward(images), due))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert "mlp.safetensors" in repr(reward)
    reward = fg.rewards.AestheticScore(folder, tmp_path / "linear.safetensors")
    due = (embedding.detach() @ linear["weight"].T + linear["bias"])[:, 0]
    torch.testing.assert_close(reward(images.detach()), due, rtol=1e-5, atol=1e-5)


def test_its_gradient_guides(folder):
    """DPS: a denoiser that leaves the state as it is, so that only the reward moves it."""

    def denoiser(x, t):
        return x

    diffusion = fg.GaussianDiffusion(
        denoiser,
        (3, SIZE, SIZE),
        alphas_cumprod=torch.linspace(0.999, 0.9, 20),
        prediction_type="sample",
    )
    reward = fg.rewards.ClipScore(PROMPT, folder, value_range=(-3, 3))
    runs = (fg.Unguided(diffusion, reward), fg.DPS(diffusion, reward, alpha=0.05))
    plain, guided = (run.sample(2, num_steps=8).rewards for run in runs)
    assert (guided > plain + 1).all()


def test_without_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'fastguide[diffusers]'")):
        fg.rewards.ClipScore(PROMPT, tmp_path)


def test_wrong_folders(folder, tmp_path):
    with pytest.raises(ArgumentError, match=r"no config.json; fetch one with `hf download"):
        fg.rewards.PickScore(PROMPT, tmp_path / "none")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds a model of type 'siglip'"):
        fg.rewards.PickScore(PROMPT, tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not JSON"):
        fg.rewards.PickScore(PROMPT, tmp_path)
    copied(folder, tmp_path, ["model.safetensors"])
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        fg.rewards.PickScore(PROMPT, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .* visual_projection.weight"):
        fg.rewards.PickScore(PROMPT, tmp_path)


def test_a_folder_without_a_tokenizer(folder, tmp_path):
    copied(folder, tmp_path, ["vocab.json", "merges.txt"])
    with pytest.raises(CheckpointError, match="lacks the tokenizer"):
        fg.rewards.ClipScore(PROMPT, tmp_path)


def test_wrong_prompts(folder):
    with pytest.raises(ArgumentError, match=r"14 tokens, start and end included, .* reads 12"):
        fg.rewards.ClipScore("a" * 12, folder)
    with pytest.raises(ArgumentError, match="one string, got list"):
        fg.rewards.ClipScore(["a", "b"], folder)


def test_wrong_images_and_ranges(folder):
    with pytest.raises(ArgumentError, match="value_range must be"):
        fg.rewards.ClipScore(PROMPT, folder, value_range=(1, 1))
    reward = fg.rewards.ClipScore(PROMPT, folder)
    with pytest.raises(ShapeError, match=r"got \[4, 8, 8\]"):
        reward(torch.rand(4, 8, 8))
    with pytest.raises(DtypeError, match=r"images.float\(\) / 255"):
        reward(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (dict(weight=torch.ones(1, 5)), ShapeError, r"weight must be \[out, 8\], got \[1, 5\]"),
        (dict(weight=torch.ones(8)), ShapeError, r"got \[8\]; is `folder` the model"),
        (
            dict(weight=torch.ones(1, 8), bias=torch.ones(2)),
            ShapeError,
            "the bias beside weight: .*size mismatch",
        ),
        (dict(weight=torch.ones(2, 8)), CheckpointError, "1 layers, the last with out = 2"),
        (dict(bias=torch.ones(1)), CheckpointError, r"0 layers, .*besides \['bias'\]"),
        (
            dict(weight=torch.ones(1, 8), mean=torch.ones(8)),
            CheckpointError,
            r"affine layers only, .*besides \['mean'\]",
        ),
    ],
)
def test_wrong_heads(folder, tmp_path, tensors, error, message):
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(error, match=f"(?s){message}"):
        fg.rewards.AestheticScore(folder, tmp_path / "head.safetensors")


def test_a_head_that_is_no_safetensors_file(folder, tmp_path):
    with pytest.raises(ArgumentError, match="there is no"):
        fg.rewards.AestheticScore(folder, tmp_path / "head.safetensors")
    (tmp_path / "head.pth").write_bytes(b"PK\3\4 and so on")
    with pytest.raises(CheckpointError, match=r"with safetensors.torch.save_file"):
        fg.rewards.AestheticScore(folder, tmp_path / "head.pth")
