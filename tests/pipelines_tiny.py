"""Every pipeline and scheduler that the adapter is tested with, tiny and with random weights.

Import after `pytest.importorskip("diffusers")` and `pytest.importorskip("transformers")`. Tests
mark themselves with `WARNINGS`: diffusers' own, which the settings would turn into errors.
"""

from __future__ import annotations

# The parts come first: they quieten transformers before diffusers imports its image processors.
import pipelines_tiny_parts as parts
import pipelines_tiny_transformer as transformer
import pipelines_tiny_unet as unet
import pipelines_tiny_video as video
import pytest

CASES: dict[str, parts.Case] = {
    case.name: case for case in [*unet.CASES, *transformer.CASES, *video.CASES]
}

# Schedulers hand tensors to NumPy functions; image to image repeats the one image with a warning.
WARNINGS = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You have passed .* text prompts:FutureWarning"),
]
