"""Tiny pipelines of images around a transformer: DiT, PixArt, Sana, Stable Diffusion 3, Flux."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from pipelines_tiny_parts import (
    FLOW_DPM,
    IMAGE,
    LATENTS,
    PROMPTS,
    SAME_LENGTH,
    TEXT_LENGTH,
    TEXT_WIDTH,
    Case,
    Pipeline,
    clip_projected_text_model,
    clip_text_model,
    clip_tokenizer,
    gemma_text_model,
    image_autoencoder,
    letter_tokenizer,
    quiet,
    seeded,
    t5_text_model,
)

TEXT = dict(
    prompt=PROMPTS,
    height=IMAGE,
    width=IMAGE,
    num_inference_steps=5,
    max_sequence_length=TEXT_LENGTH,
    output_type="pt",
)


def dit() -> Pipeline:
    def transformer() -> DiTTransformer2DModel:
        return DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,  # the second half is the learned variance
            num_layers=1,
            sample_size=LATENTS,
        )

    scheduler = DDPMScheduler(clip_sample=False)
    return quiet(DiTPipeline(seeded(transformer), image_autoencoder(), scheduler))


def pixart(scheduler: type, **config: Any) -> Pipeline:
    def transformer() -> PixArtTransformer2DModel:
        return PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=16,
            caption_channels=TEXT_WIDTH,
            sample_size=LATENTS,
            use_additional_conditions=False,
        )

    return quiet(
        PixArtAlphaPipeline(
            tokenizer=letter_tokenizer(),
            text_encoder=t5_text_model(),
            vae=image_autoencoder(),
            transformer=seeded(transformer),
            scheduler=scheduler(**config),
        )
    )


def sana(scheduler: type, **config: Any) -> Pipeline:
    def transformer() -> SanaTransformer2DModel:
        return SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=TEXT_WIDTH,
            sample_size=LATENTS,
        )

    def autoencoder() -> AutoencoderDC:
        return AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41407,
        )

    return quiet(
        SanaPipeline(
            tokenizer=letter_tokenizer(),
            text_encoder=gemma_text_model(),
            vae=seeded(autoencoder, seed=4),
            transformer=seeded(transformer),
            scheduler=scheduler(**config),
        )
    )


def stable_diffusion_3(scheduler: type, **config: Any) -> Pipeline:
    def transformer() -> SD3Transformer2DModel:
        return SD3Transformer2DModel(
            sample_size=LATENTS,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=LATENTS,
        )

    return quiet(
        StableDiffusion3Pipeline(
            transformer=seeded(transformer),
            scheduler=scheduler(**config),
            vae=image_autoencoder(
                shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
            ),
            text_encoder=clip_projected_text_model(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_projected_text_model(seed=6),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def flux(scheduler: type, **config: Any) -> Pipeline:
    def transformer() -> FluxTransformer2DModel:
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )

    return quiet(
        FluxPipeline(
            scheduler=scheduler(**config),
            vae=image_autoencoder(
                shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
            ),
            text_encoder=clip_text_model(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_text_model(),
            tokenizer_2=letter_tokenizer(),
            transformer=seeded(transformer),
        )
    )


def qwen_image(scheduler: type, **config: Any) -> Pipeline:
    channels = 4

    def transformer() -> QwenImageTransformer2DModel:
        return QwenImageTransformer2DModel(
            in_channels=4 * channels,
            out_channels=channels,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(2, 2, 4),
        )

    def autoencoder() -> AutoencoderKLQwenImage:
        return AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=channels,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.8, -0.7, 0.1, 1.0],
            latents_std=[2.8, 1.5, 2.3, 1.2],
        )

    pipe = QwenImagePipeline(
        scheduler=scheduler(**config),
        vae=seeded(autoencoder, seed=4),
        text_encoder=gemma_text_model(),
        tokenizer=letter_tokenizer(),
        transformer=seeded(transformer),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return quiet(pipe)


CASES = [
    Case(
        "dit-ddpm",
        dit,
        dict(class_labels=[1, 3], num_inference_steps=5, output_type="pt"),
        "transformer",
        count="",
        repeats="class_labels",
    ),
    Case(
        "pixart-dpm-sde",
        partial(pixart, DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
        TEXT | dict(use_resolution_binning=False),
        "transformer",
    ),
    Case(
        "sana-dpm-sde",
        partial(sana, DPMSolverMultistepScheduler, flow_shift=3.0, **FLOW_DPM),
        TEXT
        | dict(
            prompt=SAME_LENGTH,
            height=4 * LATENTS,
            width=4 * LATENTS,
            use_resolution_binning=False,
            complex_human_instruction=None,
        ),
        "transformer",
    ),
    Case(
        "sd3-euler-sde",
        partial(
            stable_diffusion_3,
            FlowMatchEulerDiscreteScheduler,
            shift=3.0,
            stochastic_sampling=True,
        ),
        TEXT,
        "transformer",
    ),
    Case(
        "flux-euler-sde",
        partial(flux, FlowMatchEulerDiscreteScheduler, stochastic_sampling=True),
        TEXT,
        "transformer",
    ),
    Case(
        "flux-dpm-sde",
        partial(
            flux,
            DPMSolverMultistepScheduler,
            use_dynamic_shifting=True,
            time_shift_type="exponential",
            **FLOW_DPM,
        ),
        TEXT,
        "transformer",
    ),
    Case("flux-euler", partial(flux, FlowMatchEulerDiscreteScheduler), TEXT, "transformer", False),
    Case(
        "qwen-euler-sde",
        partial(
            qwen_image,
            FlowMatchEulerDiscreteScheduler,
            use_dynamic_shifting=True,
            stochastic_sampling=True,
        ),
        TEXT | dict(prompt=SAME_LENGTH, negative_prompt=["a", "a"], true_cfg_scale=2.0),
        "transformer",
    ),
]
