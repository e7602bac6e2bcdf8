"""From a pipeline's latents to what a reward sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from fastguide.errors import ArgumentError, DtypeError

Tensor = torch.Tensor


def make_decoder(pipe: Any, decode: Any, call: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """How latents [R, ...] float32 become images for the reward.

    Args:
        decode: "vae": the pipeline's own autoencoder, or no decoding for a pipeline without one;
            images [R, C, H, W] (videos [R, C, F, H, W]) float32 in [0, 1]. A callable gets the
            latents as they are; a small decoder, or a reward of latents, goes here.
        call: the arguments of the pipeline call, for pipelines that pack their latents.

    Raises:
        ArgumentError: the pipeline packs its latents in a way that is not known.
    """
    if decode != "vae":
        if not callable(decode):
            raise DtypeError(
                f"decode must be 'vae' or a callable from latents to images, got {decode!r}"
            )
        return decode
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return to_unit
    if getattr(vae.config, "timestep_conditioning", False):
        raise ArgumentError(
            f"decode='vae': the autoencoder of {type(pipe).__name__} decodes at a timestep; pass "
            "decode=callable from latents to images"
        )
    unpack = _unpacking(pipe, call)

    def decode_latents(latents: Tensor) -> Tensor:
        latents = unscale(vae, unpack(latents))
        upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
        if upcast:
            vae.to(torch.float32)
        try:
            images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        finally:
            if upcast:
                vae.to(torch.float16)
        if images.dim() == 5 and images.shape[2] == 1 and "num_frames" not in call:
            images = images.squeeze(2)  # an image pipeline over a video autoencoder
        return to_unit(images.float())

    return decode_latents


def to_unit(images: Tensor) -> Tensor:
    """Images in [-1, 1] as images in [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1)


def unscale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the autoencoder made them, from those that the denoiser sees."""
    config = vae.config
    if latents.dim() == 5:
        channels = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
        if latents.shape[1] != channels and latents.shape[2] == channels:
            latents = latents.transpose(1, 2)  # frames came before channels
    scale = getattr(config, "scaling_factor", None) or 1.0
    shift = getattr(config, "shift_factor", None) or 0.0
    held = dict(vae.named_buffers(recurse=False))
    mean, deviation = (
        held.get(name, getattr(config, name, None)) for name in ("latents_mean", "latents_std")
    )
    if mean is not None and deviation is not None:
        column = (1, -1, *[1] * (latents.dim() - 2))
        shift = torch.as_tensor(mean).to(latents).view(column)
        scale = scale / torch.as_tensor(deviation).to(latents).view(column)
    return latents / scale + shift


def _unpacking(pipe: Any, call: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    unpack = getattr(pipe, "_unpack_latents", None)
    if unpack is None:
        return lambda latents: latents
    factor = getattr(pipe, "vae_scale_factor", 8)
    size = getattr(pipe, "default_sample_size", 128) * factor
    height, width = call.get("height") or size, call.get("width") or size
    known = {"height": height, "width": width, "vae_scale_factor": factor}
    wanted = list(inspect.signature(unpack).parameters)[1:]
    if "patch_size" in wanted:  # sizes of latents, not of images
        space = pipe.vae_spatial_compression_ratio
        frames = (call["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
        known = {
            "num_frames": frames,
            "height": height // space,
            "width": width // space,
            "patch_size": pipe.transformer_spatial_patch_size,
            "patch_size_t": pipe.transformer_temporal_patch_size,
        }
    if any(name not in known for name in wanted):
        raise ArgumentError(
            f"decode='vae': {type(pipe).__name__} packs its latents by {', '.join(wanted)}, of "
            f"which only {', '.join(known)} are known; pass decode=callable from packed latents to "
            "images"
        )
    arguments = {name: known[name] for name in wanted}

    def unpacked(latents: Tensor) -> Tensor:
        # some pipelines step unpacked latents: those have rows, channels and sizes
        return latents if latents.dim() > 3 else unpack(latents, **arguments)

    return unpacked
