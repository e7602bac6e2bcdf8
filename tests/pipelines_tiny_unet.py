"""Tiny pipelines around a UNet: DDPM, Stable Diffusion and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from pipelines_tiny_parts import (
    IMAGE,
    LATENTS,
    PROMPTS,
    TEXT_WIDTH,
    Case,
    Pipeline,
    clip_projected_text_model,
    clip_text_model,
    clip_tokenizer,
    image_autoencoder,
    left_half,
    picture,
    quiet,
    seeded,
)
from transformers import CLIPConfig, CLIPImageProcessor

SD_NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def ddpm(**config: Any) -> Pipeline:
    def unet() -> UNet2DModel:
        return UNet2DModel(
            sample_size=LATENTS,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
        )

    return quiet(DDPMPipeline(seeded(unet), DDPMScheduler(**config)))


def conditional_unet(**config: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = dict(
        sample_size=LATENTS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
    )
    return seeded(lambda: UNet2DConditionModel(**settings | config))


def controlnet() -> ControlNetModel:
    """Its output layers start at zero; here they do not, or the control image would not matter."""

    def net() -> ControlNetModel:
        made = ControlNetModel.from_unet(
            conditional_unet(),
            conditioning_embedding_out_channels=(8, 16),
            load_weights_from_unet=False,
        )
        for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block):
            layer.reset_parameters()
        made.controlnet_cond_embedding.conv_out.reset_parameters()
        return made

    return seeded(net, seed=5)


def safety_checker() -> dict[str, Any]:
    """A checker that looks at every image and lets all of them pass, and what it needs."""
    width = 8
    config = CLIPConfig(
        projection_dim=width,
        text_config=dict(projection_dim=width),
        vision_config=dict(
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=IMAGE,
            patch_size=IMAGE // 2,
            projection_dim=width,
        ),
    )
    size = dict(height=IMAGE, width=IMAGE)
    return dict(
        safety_checker=seeded(lambda: StableDiffusionSafetyChecker(config), seed=9),
        feature_extractor=CLIPImageProcessor(size=dict(shortest_edge=IMAGE), crop_size=size),
        requires_safety_checker=True,
    )


def stable_diffusion(
    scheduler: type,
    kind: type = StableDiffusionPipeline,
    in_channels: int = 4,
    parts: Callable[[], dict[str, Any]] = dict,
    **config: Any,
) -> Pipeline:
    made: dict[str, Any] = dict(
        vae=image_autoencoder(),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        unet=conditional_unet(in_channels=in_channels),
        scheduler=scheduler(**SD_NOISE, **config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return quiet(kind(**made | parts()))


def stable_diffusion_xl(scheduler: type, **config: Any) -> Pipeline:
    sizes, size_width = 6, 8
    return quiet(
        StableDiffusionXLPipeline(
            vae=image_autoencoder(),
            text_encoder=clip_text_model(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_projected_text_model(),
            tokenizer_2=clip_tokenizer(),
            unet=conditional_unet(
                cross_attention_dim=2 * TEXT_WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=size_width,
                projection_class_embeddings_input_dim=sizes * size_width + TEXT_WIDTH,
                use_linear_projection=True,
            ),
            scheduler=scheduler(**SD_NOISE, **config),
            add_watermarker=False,
        )
    )


TEXT = dict(prompt=PROMPTS, height=IMAGE, width=IMAGE, num_inference_steps=5, output_type="pt")
IMAGES = {name: value for name, value in TEXT.items() if name not in ("height", "width")}
EULER_A = dict(scheduler=EulerAncestralDiscreteScheduler, steps_offset=1)
DDIM = dict(scheduler=DDIMScheduler, steps_offset=1, clip_sample=False, set_alpha_to_one=False)


def _sd(name: str, stochastic: bool = True, call: dict[str, Any] = TEXT, **build: Any) -> Case:
    return Case(name, partial(stable_diffusion, **build), call, "unet", stochastic)


CASES = [
    Case(
        f"ddpm-{name}",
        partial(ddpm, clip_sample=clip_sample),
        dict(num_inference_steps=6, output_type="pt"),
        "unet",
        count="batch_size",
        repeats="",
    )
    for name, clip_sample in (("free", False), ("clipped", True))
] + [
    _sd("sd-euler-a", **EULER_A),
    _sd("sd-checked-euler-a", parts=safety_checker, **EULER_A),
    _sd("sd-ddim", call=TEXT | dict(eta=1.0), **DDIM),
    _sd(
        "sd-dpm-sde",
        scheduler=DPMSolverMultistepScheduler,
        algorithm_type="sde-dpmsolver++",
        use_karras_sigmas=True,
        steps_offset=1,
    ),
    _sd(
        "sd-lcm",
        call=TEXT | dict(num_inference_steps=4, guidance_scale=1.0),
        scheduler=LCMScheduler,
        steps_offset=1,
    ),
    _sd(
        "sd-tcd",
        call=TEXT | dict(num_inference_steps=4, eta=0.3),
        scheduler=TCDScheduler,
        steps_offset=1,
    ),
    _sd("sd-kdpm2-a", scheduler=KDPM2AncestralDiscreteScheduler, steps_offset=1),
    _sd("sd-heun", stochastic=False, scheduler=HeunDiscreteScheduler, steps_offset=1),
    _sd(
        "sd-pndm",
        stochastic=False,
        scheduler=PNDMScheduler,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ),
    _sd("sd-unipc", stochastic=False, scheduler=UniPCMultistepScheduler, steps_offset=1),
    Case(
        "sdxl-euler-a",
        partial(stable_diffusion_xl, **EULER_A),
        TEXT,
        "unet",
    ),
    # Four channels: the known part is put back after every step.
    _sd(
        "sd-inpaint-euler-a",
        call=TEXT | dict(image=picture(), mask_image=left_half(), strength=1.0),
        kind=StableDiffusionInpaintPipeline,
        **EULER_A,
    ),
    # Nine channels: the mask and the known part go into the network.
    _sd(
        "sd-inpaint9-ddim",
        call=TEXT | dict(image=picture(), mask_image=left_half(), strength=1.0, eta=1.0),
        kind=StableDiffusionInpaintPipeline,
        in_channels=9,
        **DDIM,
    ),
    _sd(
        "sd-img2img-euler-a",
        call=IMAGES | dict(image=picture(), strength=0.8),
        kind=StableDiffusionImg2ImgPipeline,
        **EULER_A,
    ),
    _sd(
        "sd-controlnet-ddim",
        call=TEXT | dict(image=picture(), eta=1.0),
        kind=StableDiffusionControlNetPipeline,
        parts=lambda: dict(controlnet=controlnet()),
        **DDIM,
    ),
]
