"""Tiny pipelines of videos: Wan, CogVideoX, LTX from an image, and LTX-2, which makes sound too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from pipelines_tiny_parts import (
    FLOW_DPM,
    GEMMA_LAYERS,
    IMAGE,
    PROMPTS,
    SAME_LENGTH,
    TEXT_LENGTH,
    TEXT_WIDTH,
    Case,
    Pipeline,
    gemma_text_model,
    letter_tokenizer,
    picture,
    quiet,
    seeded,
    t5_text_model,
    umt5_text_model,
)

FRAMES = 5  # the autoencoders make two of them, the first alone
TEXT = dict(
    prompt=PROMPTS,
    height=IMAGE,
    width=IMAGE,
    num_frames=FRAMES,
    num_inference_steps=4,
    max_sequence_length=TEXT_LENGTH,
    output_type="pt",
)


def wan(scheduler: type, **config: Any) -> Pipeline:
    channels = 4

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=channels,
            out_channels=channels,
            text_dim=TEXT_WIDTH,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        )

    def autoencoder() -> AutoencoderKLWan:
        return AutoencoderKLWan(
            base_dim=4,
            z_dim=channels,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[-0.8, -0.7, 0.1, 1.0],
            latents_std=[2.8, 1.5, 2.3, 1.2],
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        )

    return quiet(
        WanPipeline(
            tokenizer=letter_tokenizer(),
            text_encoder=umt5_text_model(),
            vae=seeded(autoencoder, seed=4),
            scheduler=scheduler(**config),
            transformer=seeded(transformer),
        )
    )


def cogvideox() -> Pipeline:
    channels = 4

    def transformer() -> CogVideoXTransformer3DModel:
        return CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=channels,
            out_channels=channels,
            time_embed_dim=8,
            text_embed_dim=TEXT_WIDTH,
            num_layers=1,
            sample_width=IMAGE // 2,
            sample_height=IMAGE // 2,
            sample_frames=FRAMES,
            max_text_seq_length=TEXT_LENGTH,
            temporal_compression_ratio=2,
        )

    def autoencoder() -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX(
            block_out_channels=(8, 8),
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            latent_channels=channels,
            layers_per_block=1,
            norm_num_groups=4,
            temporal_compression_ratio=2,
        )

    return quiet(
        CogVideoXPipeline(
            tokenizer=letter_tokenizer(),
            text_encoder=t5_text_model(),
            vae=seeded(autoencoder, seed=4),
            transformer=seeded(transformer),
            scheduler=CogVideoXDPMScheduler(
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                snr_shift_scale=1.0,
                timestep_spacing="trailing",
            ),
        )
    )


def ltx_from_image(scheduler: type, **config: Any) -> Pipeline:
    channels = 4

    def transformer() -> LTXVideoTransformer3DModel:
        return LTXVideoTransformer3DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=TEXT_WIDTH,
        )

    def autoencoder() -> AutoencoderKLLTXVideo:
        return AutoencoderKLLTXVideo(
            latent_channels=channels,
            block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            decoder_block_out_channels=(8, 8),
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False),
            decoder_inject_noise=(False, False, False),
            upsample_residual=(False, False),
            upsample_factor=(1, 1),
            patch_size=2,
        )

    return quiet(
        LTXImageToVideoPipeline(
            scheduler=scheduler(**config),
            vae=seeded(autoencoder, seed=4),
            text_encoder=t5_text_model(),
            tokenizer=letter_tokenizer(),
            transformer=seeded(transformer),
        )
    )


def ltx2(scheduler: type, **config: Any) -> Pipeline:
    channels = 4
    sound_channels, mel_bins = 2, 8
    sound = sound_channels * mel_bins // 4  # its autoencoder divides by 4

    def transformer() -> LTX2VideoTransformer3DModel:
        return LTX2VideoTransformer3DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            vae_scale_factors=(2, 4, 4),
            audio_in_channels=sound_channels
            * mel_bins
            // 4,  # the sound's autoencoder divides by 4
            audio_out_channels=sound,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=1,
            caption_channels=TEXT_WIDTH,
            rope_double_precision=False,
        )

    def connectors() -> LTX2TextConnectors:
        return LTX2TextConnectors(
            caption_channels=TEXT_WIDTH,
            text_proj_in_factor=GEMMA_LAYERS + 1,
            video_connector_num_attention_heads=4,
            video_connector_attention_head_dim=TEXT_WIDTH // 4,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=4,
            audio_connector_attention_head_dim=TEXT_WIDTH // 4,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None,
            connector_rope_base_seq_len=TEXT_LENGTH,
            rope_double_precision=False,
        )

    def autoencoder() -> AutoencoderKLLTX2Video:
        return AutoencoderKLLTX2Video(
            latent_channels=channels,
            block_out_channels=(8,),
            down_block_types=("LTX2VideoDownBlock3D",),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatiotemporal",),
            upsample_type=("spatiotemporal",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=2,
        )

    def sound_autoencoder() -> AutoencoderKLLTX2Audio:
        return AutoencoderKLLTX2Audio(
            base_channels=4,
            ch_mult=(1,),
            num_res_blocks=1,
            resolution=32,
            latent_channels=sound_channels,
            mel_bins=mel_bins,
        )

    def vocoder() -> LTX2Vocoder:
        return LTX2Vocoder(
            in_channels=2 * mel_bins,  # stereo
            hidden_channels=8,
            upsample_kernel_sizes=[4],
            upsample_factors=[2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1]],
            output_sampling_rate=16000,
        )

    return quiet(
        LTX2Pipeline(
            scheduler=scheduler(**config),
            vae=seeded(autoencoder, seed=4),
            audio_vae=seeded(sound_autoencoder, seed=6),
            text_encoder=gemma_text_model(),
            tokenizer=letter_tokenizer(),
            connectors=seeded(connectors, seed=7),
            transformer=seeded(transformer),
            vocoder=seeded(vocoder, seed=8),
        )
    )


def _video(
    name: str,
    build: Callable[[], Pipeline],
    call: dict[str, Any] = TEXT,
    count: str = "num_videos_per_prompt",
) -> Case:
    return Case(name, build, call, "transformer", count=count, output="frames")


LTX_EULER = dict(use_dynamic_shifting=True, stochastic_sampling=True)
LTX_SIZE = dict(height=32, width=32)  # the pipelines refuse less

CASES = [
    _video(
        "wan-euler-sde",
        partial(wan, FlowMatchEulerDiscreteScheduler, shift=3.0, stochastic_sampling=True),
    ),
    _video("wan-dpm-sde", partial(wan, DPMSolverMultistepScheduler, flow_shift=3.0, **FLOW_DPM)),
    # The scheduler's history travels through the pipeline; num_videos_per_prompt is ignored.
    _video("cogvideox-dpm", cogvideox, count=""),
    # The first frame is given: the steps see the others.
    _video(
        "ltx-image-euler-sde",
        partial(ltx_from_image, FlowMatchEulerDiscreteScheduler, **LTX_EULER),
        TEXT | LTX_SIZE | dict(prompt=SAME_LENGTH, image=picture()),
    ),
    # Sound and pictures step with a scheduler each, one a deep copy of the other.
    _video(
        "ltx2-euler-sde",
        partial(ltx2, FlowMatchEulerDiscreteScheduler, **LTX_EULER),
        TEXT
        | LTX_SIZE
        | dict(
            prompt=SAME_LENGTH,
            stg_scale=0.0,
            audio_stg_scale=0.0,
            modality_scale=1.0,
            audio_modality_scale=1.0,
            guidance_rescale=0.0,
        ),
    ),
]
