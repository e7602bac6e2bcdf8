"""Rewards that look at images through a CLIP model on disk, by way of transformers."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastguide.errors import ArgumentError, CheckpointError, MissingExtraError, ShapeError
from fastguide.rewards.images import checked_images, checked_range, to_unit

Tensor = torch.Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _ImageTower(torch.nn.Module):
    """Images to CLIP embeddings of length 1. Frozen, differentiable in the images."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: Any, folder: Path, value_range: tuple[float, float]) -> None:
        super().__init__()
        self.value_range = checked_range(value_range)
        self._size = int(model.config.vision_config.image_size)
        self._vision = model.vision_model
        self._projection = model.visual_projection
        settings = {}
        if (folder / "preprocessor_config.json").is_file():
            settings = _read_json(folder / "preprocessor_config.json")
        for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
            values = torch.tensor(settings.get(name, default), dtype=torch.float32)
            self.register_buffer(name, values[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, E], at least float32, of images [B, 3 or 1, H, W]."""
        dtype = self._projection.weight.dtype
        pixels = preprocessed(checked_images(images), self._size, self.value_range)
        pixels = (pixels - self.image_mean) / self.image_std
        hidden = self._vision(pixel_values=pixels.to(dtype)).pooler_output
        return _unit_length(self._projection(hidden))


class _TextImageScore(torch.nn.Module):
    deterministic = True
    _text: Tensor

    def __init__(
        self, prompt: str, folder: str | Path, *, value_range: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        super().__init__()
        model = _load_clip(folder)
        self.prompt = prompt
        text = _text_embedding(model, prompt, Path(folder))
        self.register_buffer("_text", text, persistent=False)
        self._scale = self._scale_of(model)
        self._images = _ImageTower(model, Path(folder), value_range)

    @staticmethod
    def _scale_of(model: Any) -> float:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B] float32 of images [B, 3, H, W] or [B, 1, H, W]; differentiable in them."""
        found = self._images(images)
        return self._scale * (found * self._text.to(found.dtype)).sum(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prompt!r})"


class ClipScore(_TextImageScore):
    """100 times the cosine between CLIP's embeddings of image and prompt.

    Images are resized, cropped and normalised as CLIP's image processor does, in differentiable
    operations: bicubic with antialiasing so that the shorter edge fits, the centre square, the mean
    and standard deviation of the folder's `preprocessor_config.json`. Values beyond `value_range`
    are clamped. The processor rounds to 8 bits twice, so it differs from this by up to 1.13 levels
    of 255.

    The weights are frozen. A module: `.to("cuda")` moves it to where the images are, `.half()`
    makes its network half precision.

    Args:
        prompt: what the images should show, at most as many tokens as the model reads (77).
        folder: a CLIP model with tokenizer in the format of transformers; nothing is downloaded.
        value_range: (low, high), the pixel values of black and white.

    Raises:
        MissingExtraError: transformers is not installed.
        ArgumentError: no such folder, too long a prompt, or value_range out of order.
        CheckpointError: the folder does not hold a whole CLIP model.
        ShapeError, DtypeError: at a call, images are not floats [B, 3 or 1, H, W].

    Source: Radford et al. 2021, arXiv 2103.00020; as a score, Hessel et al. 2021, arXiv 2104.08718,
        there max(cosine, 0) * 2.5.
    """

    @staticmethod
    def _scale_of(model: Any) -> float:
        return 100.0


class PickScore(_TextImageScore):
    """How much people prefer the image for the prompt: cosine times the model's learned scale.

    A CLIP-H that was trained on choices between two images; the difference of two scores is the
    log-odds of preferring one. See `ClipScore` for arguments, images and errors.

    Source: Kirstain et al. 2023, "Pick-a-Pic", arXiv 2305.01569; weights
        `yuvalkirstain/PickScore_v1`.
    """

    @staticmethod
    def _scale_of(model: Any) -> float:
        return float(model.logit_scale.detach().exp())


class AestheticScore(torch.nn.Module):
    """Predicted rating 1..10 of an image's looks: layers over CLIP's embedding of length 1.

    The layers are affine, one after the other, as in the LAION predictors (whose dropout does
    nothing here, and which have no other function in between). See `ClipScore` for the images.

    Args:
        folder: the CLIP model that the head was trained on (ViT-L/14 for LAION's), in the format of
            transformers; nothing is downloaded.
        head: a safetensors file with tensors `*.weight` [out, in] and `*.bias` [out], in the order
            of the numbers in their names. From a PyTorch file:
            `safetensors.torch.save_file(torch.load("head.pth"), "head.safetensors")`.
        value_range: (low, high), the pixel values of black and white.

    Raises:
        MissingExtraError, ArgumentError, CheckpointError: as in `ClipScore`, or there is no such
            head, or its layers do not lead from the embedding to one number.
        ShapeError, DtypeError: at a call, images are not floats [B, 3 or 1, H, W].

    Source: Schuhmann 2022, "improved-aesthetic-predictor"; as a reward, DDPO, arXiv 2305.13301.
    """

    deterministic = True

    def __init__(
        self,
        folder: str | Path,
        head: str | Path,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        model = _load_clip(folder)
        self._head = str(head)
        self._layers = _load_head(Path(head), int(model.config.projection_dim))
        self._images = _ImageTower(model, Path(folder), value_range)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B] float32 of images [B, 3, H, W] or [B, 1, H, W]; differentiable in them."""
        found = self._images(images)
        dtype = next(self._layers.parameters()).dtype
        rating: Tensor = self._layers(found.to(dtype))
        return rating[:, 0].to(found.dtype)

    def __repr__(self) -> str:
        return f"AestheticScore({self._head!r})"


def preprocessed(images: Tensor, size: int, value_range: tuple[float, float]) -> Tensor:
    """Images [B, C, H, W] as [B, 3, size, size] in [0, 1]: shorter edge to size, centre."""
    images = to_unit(images, value_range)
    height, width = images.shape[2:]
    short = min(height, width)
    tall, wide = size * height // short, size * width // short
    # across, then down: a cubic overshoots at edges, and the processor has 8 bits after each
    for shape in ((height, wide), (tall, wide)):
        if shape != images.shape[2:]:
            images = torch.nn.functional.interpolate(images, shape, mode="bicubic", antialias=True)
            images = images.clamp(0, 1)
    top, left = (tall - size) // 2, (wide - size) // 2
    return images[:, :, top : top + size, left : left + size].expand(-1, 3, -1, -1)


def _text_embedding(model: Any, prompt: str, folder: Path) -> Tensor:
    """The prompt's embedding [1, E] of length 1."""
    if not isinstance(prompt, str):
        raise ArgumentError(
            f"prompt must be one string, got {type(prompt).__name__}; make one reward for each "
            "prompt"
        )
    if not any(
        all((folder / name).is_file() for name in names)
        for names in (["tokenizer.json"], ["vocab.json", "merges.txt"])
    ):  # transformers would make a tokenizer without words
        raise CheckpointError(
            f"folder {folder} lacks the tokenizer, tokenizer.json or vocab.json and merges.txt; "
            "fetch the whole model again"
        )
    tokenizer = _transformers().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(prompt, return_tensors="pt", verbose=False).input_ids
    most = int(model.config.text_config.max_position_embeddings)
    if tokens.shape[1] > most:
        raise ArgumentError(
            f"prompt has {tokens.shape[1]} tokens, start and end included, and the model reads "
            f"{most}; shorten it"
        )
    with torch.no_grad():
        hidden = model.text_model(input_ids=tokens).pooler_output
        return _unit_length(model.text_projection(hidden))


def _unit_length(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return torch.nn.functional.normalize(embeddings, dim=1)


def _load_clip(folder: str | Path) -> Any:
    """The CLIPModel in a folder, whole."""
    transformers = _transformers()
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ArgumentError(
            f"folder must hold a CLIP model, but {folder} has no config.json; fetch one with "
            "`hf download openai/clip-vit-large-patch14 --local-dir FOLDER`"
        )
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise CheckpointError(
            f"folder {folder} holds a model of type {kind!r}; a CLIP model with both towers, type "
            "'clip', is due"
        )
    try:
        model, loaded = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"folder {folder}: transformers cannot load it: {error}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would leave them random
        raise CheckpointError(
            f"folder {folder} lacks {len(missing)} tensors of a CLIP model, the first is "
            f"{missing[0]}; fetch the whole model again"
        )
    return model


def _load_head(file: Path, width: int) -> torch.nn.Sequential:
    """Affine layers from `width` numbers to one."""
    if not file.is_file():
        raise ArgumentError(f"head must be a safetensors file, but there is no {file}")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"head {file} is not a safetensors file ({error}); save a PyTorch file's tensors "
            "with safetensors.torch.save_file"
        ) from error

    def number(name: str) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", name)]

    layers = torch.nn.Sequential()
    for name in sorted((name for name in tensors if name.endswith("weight")), key=number):
        state = {"weight": tensors.pop(name)}
        bias = tensors.pop(name.removesuffix("weight") + "bias", None)
        if bias is not None:
            state["bias"] = bias
        shape = list(state["weight"].shape)
        if len(shape) != 2 or shape[1] != width:
            raise ShapeError(
                f"head {file}: {name} must be [out, {width}], got {shape}; is `folder` the model "
                "that the head was trained on?"
            )
        layer = torch.nn.Linear(width, shape[0], bias=bias is not None)
        try:
            layer.load_state_dict(state)
        except RuntimeError as error:
            raise ShapeError(f"head {file}: the bias beside {name}: {error}") from error
        layers.append(layer)
        width = shape[0]
    if tensors or not len(layers) or width != 1:
        raise CheckpointError(
            f"head {file} must hold affine layers only, *.weight [out, in] and *.bias [out], the "
            f"last with out = 1; got {len(layers)} layers, the last with out = {width}, and "
            f"besides {sorted(tensors)}"
        )
    return layers.eval().requires_grad_(False)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); fetch it again") from error
    return found


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            "this reward needs transformers: pip install 'fastguide[diffusers]', or transformers"
        ) from error
