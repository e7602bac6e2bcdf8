"""What the tiny diffusers pipelines are made of: random weights from configs, nothing downloaded.

Weights depend on nothing but the configuration: every part is built under its own fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
import transformers

transformers.logging.set_verbosity_error()  # before diffusers imports image processors, which talk

import diffusers  # noqa: E402
from diffusers import AutoencoderKL, DiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import (  # noqa: E402
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

diffusers.utils.logging.set_verbosity_error()

TEXT_WIDTH = 32
TEXT_LENGTH = 16  # tokens of a prompt, padding included
GEMMA_LAYERS = 1
LATENTS = 8  # rows and columns of the latents of an image
IMAGE = 2 * LATENTS  # pixels: the autoencoder halves once
PROMPTS = ["a red cat", "two dogs"]
# For the pipelines that repeat the prompts' masks in another order than the prompts.
SAME_LENGTH = ["two cats", "two dogs"]
FLOW_DPM: dict[str, Any] = dict(
    algorithm_type="sde-dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True
)

Module = TypeVar("Module", bound=torch.nn.Module)


class Pipeline(Protocol):
    """A diffusers pipeline, as far as the tests know it."""

    scheduler: Any

    def __call__(self, **arguments: Any) -> Any: ...


@dataclass(frozen=True)
class Case:
    """A pipeline and scheduler that are tested together.

    Attributes:
        name: Pipeline and scheduler in a few letters, for test ids.
        build: Makes the pipeline: float32, on the CPU, in eval mode, the same weights every time.
        call: Arguments of a call: few steps, two prompts or classes where the pipeline takes any.
        denoiser: Attribute of the pipeline that holds the network.
        stochastic: Whether a step draws noise.
        count: Argument of the call that multiplies the outputs; "" where there is none, or where
            the pipeline ignores it, and the caller repeats the entries of `repeats`.
        repeats: Argument of the call with an entry for each output; "" where there is none.
        output: Field of the output that holds the images or videos.
    """

    name: str
    build: Callable[[], Pipeline]
    call: dict[str, Any] = field(repr=False)
    denoiser: str
    stochastic: bool = True
    count: str = "num_images_per_prompt"
    repeats: str = "prompt"
    output: str = "images"

    @property
    def groups(self) -> int:
        """How many different prompts or classes `call` has."""
        return len(self.call[self.repeats]) if self.repeats else 1

    def arguments(self, copies: int) -> dict[str, Any]:
        """Arguments of a call with `copies` outputs for each prompt, neighbours of each other."""
        if self.count:
            return self.call | {self.count: copies}
        entries = [entry for entry in self.call[self.repeats] for _ in range(copies)]
        return self.call | {self.repeats: entries}


def seeded(build: Callable[[], Module], seed: int = 0) -> Module:
    """What `build` makes, with weights that depend on `seed` only; the caller's draws stay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def quiet(pipe: DiffusionPipeline) -> Pipeline:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return cast(Pipeline, pipe)


def picture(size: int = IMAGE) -> Image.Image:
    """An image with a gradient of its own in each colour."""
    ramp = Image.linear_gradient("L").resize((size, size))
    return Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))


def left_half(size: int = IMAGE) -> Image.Image:
    """A mask that repaints the left half."""
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size))
    return mask


def letters() -> list[str]:
    return [chr(code) for code in range(ord("!"), ord("~") + 1)]


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: a token a letter."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters(), *(f"{c}</w>" for c in letters())]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TEXT_LENGTH)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """In place of those whose files come with weights (T5, UMT5, Gemma): a token a letter."""
    vocab = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *letters()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), "_")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_LENGTH,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def clip_config() -> CLIPTextConfig:
    vocab_size = len(clip_tokenizer())
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def clip_text_model() -> CLIPTextModel:
    return seeded(lambda: CLIPTextModel(clip_config()), seed=1)


def clip_projected_text_model(seed: int = 2) -> CLIPTextModelWithProjection:
    return seeded(lambda: CLIPTextModelWithProjection(clip_config()), seed)


T5_SIZES: dict[str, Any] = dict(
    d_model=TEXT_WIDTH, d_kv=8, d_ff=TEXT_WIDTH, num_layers=1, num_heads=2, dropout_rate=0.0
)


def t5_text_model() -> T5EncoderModel:
    config = T5Config(vocab_size=len(letter_tokenizer()), **T5_SIZES)
    return seeded(lambda: T5EncoderModel(config), seed=3)


def umt5_text_model() -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=len(letter_tokenizer()), **T5_SIZES)
    return seeded(lambda: UMT5EncoderModel(config), seed=3)


def gemma_text_model() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=len(letter_tokenizer()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=GEMMA_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=TEXT_LENGTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return seeded(lambda: Gemma2Model(config), seed=3)


def image_autoencoder(**config: Any) -> AutoencoderKL:
    """Four latent channels, one halving."""
    settings: dict[str, Any] = dict(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE,
    )
    return seeded(lambda: AutoencoderKL(**settings | config), seed=4)
