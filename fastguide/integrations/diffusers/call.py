"""The arguments of a pipeline call for R rows, and the winners among what it returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastguide.errors import ArgumentError
from fastguide.integrations.diffusers.rows import map_rows, take

Tensor = torch.Tensor

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")

IGNORING = ("CogVideoX",)
"""Pipelines, by the start of their name, that take a count and set it to one."""


def expand_call(
    name: str, arguments: dict[str, Any], parameters: Any, width: int
) -> tuple[dict[str, Any], int]:
    """A call that runs `width` rows for each image, image by image.

    Args:
        name: of the pipeline's class.   parameters: names that it knows.
        arguments: as the user gave them, by name.

    Returns:
        the arguments of the wide call; the number of images asked for.

    Raises:
        ArgumentError: rows cannot be asked for, or an argument would break their order.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    generator = given.get("generator")
    if isinstance(generator, list):
        raise ArgumentError(
            "generator: a list of generators draws by place in the batch; leave it away, the seed "
            "of guide() gives each image its own noise"
        )
    count = next((each for each in COUNTS if each in parameters), None)
    count = None if name.startswith(IGNORING) else count
    wide = dict(arguments)
    each = 1 if count is None else int(given.get(count, 1))
    if each < 1:
        raise ArgumentError(f"{count} must be at least 1, got {each}")
    if "prompt_embeds" in given:
        images = int(given["prompt_embeds"].shape[0]) * each
        for key, value in given.items():
            if isinstance(value, torch.Tensor) and _belongs_to_prompt(key):
                wide[key] = value.repeat_interleave(each * width, dim=0)
        for key in ("negative_prompt", "negative_prompt_2", "negative_prompt_3"):
            if isinstance(given.get(key), str | list):
                wide[key] = _each(given[key], images // each, each * width)
        if count is not None:
            wide[count] = 1
    elif count is not None:
        images = _prompts(given) * each
        wide[count] = each * width
    elif "prompt" in given:
        images = _prompts(given)
        for key in ("prompt", "negative_prompt"):
            if isinstance(given.get(key), str | list):
                wide[key] = _each(given[key], images, width)
    elif "class_labels" in given:
        labels = given["class_labels"]
        listed = labels.tolist() if isinstance(labels, torch.Tensor) else labels
        listed = listed if isinstance(listed, list) else [listed]
        images = len(listed)
        wide["class_labels"] = [label for label in listed for _ in range(width)]
    elif "batch_size" in parameters:
        images = int(given.get("batch_size", 1))
        wide["batch_size"] = images * width
    else:
        raise ArgumentError(
            "the pipeline takes none of num_images_per_prompt, num_videos_per_prompt, "
            "class_labels, batch_size or prompt_embeds, so rows cannot be asked for"
        )
    _check_images(name, given, images // each, each * width)
    latents = given.get("latents")
    if latents is not None:
        if latents.shape[0] not in (1, images):
            raise ArgumentError(
                f"latents must have one row or one per image, {images}, got {latents.shape[0]}"
            )
        wide["latents"] = latents.repeat_interleave(images * width // latents.shape[0], dim=0)
    return wide, images


def _each(text: str | list[str], prompts: int, copies: int) -> list[str]:
    """One text or one per prompt, `copies` times each."""
    listed = text if isinstance(text, list) else [text] * prompts
    return [each for each in listed for _ in range(copies)]


def _check_images(name: str, given: dict[str, Any], prompts: int, copies: int) -> None:
    """Pipelines tile a list of images, but for the control images of a ControlNet."""
    if prompts == 1 or copies == 1 or not ("prompt" in given or "prompt_embeds" in given):
        return
    if "ControlNet" in name and "Img2Img" not in name and "Inpaint" not in name:
        return
    for key in ("image", "mask_image", "control_image"):
        value = given.get(key)
        if isinstance(value, torch.Tensor | np.ndarray) and value.ndim < 4:
            continue  # one image
        if isinstance(value, torch.Tensor | np.ndarray | list) and len(value) == prompts:
            raise ArgumentError(
                f"{key}: {name} does not repeat a list of images image by image, so that rows "
                "would get another's; call the pipeline once for each image, with first_chain= "
                "to give each its own noise"
            )


def _belongs_to_prompt(name: str) -> bool:
    if name.startswith("ip_adapter"):
        return False
    return "embeds" in name or name.endswith("attention_mask")


def _prompts(given: dict[str, Any]) -> int:
    prompt = given.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    if prompt is None and isinstance(given.get("image"), list):
        return len(given["image"])
    image = given.get("image")
    if prompt is None and isinstance(image, torch.Tensor | np.ndarray) and image.ndim > 3:
        return int(image.shape[0])
    return 1


def winners(output: Any, rows: int, index: Tensor) -> Any:
    """Rows `index` of every field of a pipeline's output of `rows` rows, in its own type."""
    return map_rows(output, rows, lambda value: take(value, index))
