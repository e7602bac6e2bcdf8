"""Guide a text-to-image pipeline of diffusers toward pictures with much detail.

Give a prompt, and the folder of a Stable Diffusion, SDXL, SD3 or Flux model on this machine:

    python examples/guide_pipeline.py path/to/model "a lighthouse in fog"
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import fastguide as fg


def main(
    folder: str,
    prompt: str,
    *,
    num_candidates: int = 8,
    alpha: float = 5.0,
    out: str = "out/guided",
    **call,
) -> torch.Tensor:
    """Save a plain and a guided picture; return the rewards of both."""
    on_gpu = torch.cuda.is_available()
    pipe = DiffusionPipeline.from_pretrained(
        folder, dtype=torch.float16 if on_gpu else torch.float32
    ).to("cuda" if on_gpu else "cpu")
    # SD3 and Flux ship without noise in their steps; eta adds it at the same noise levels
    flow = not hasattr(pipe.scheduler, "alphas_cumprod")
    if not flow:
        pipe.scheduler = fg.integrations.diffusers.stochastic_scheduler(pipe)
    eta = 1.0 if flow else None

    kilobytes = fg.rewards.JpegIncompressibility()  # needs no gradient
    folder_out = Path(out)
    folder_out.mkdir(parents=True, exist_ok=True)
    rewards = []
    for method in ("best_of_n", "svdd"):
        settings = {"alpha": alpha} if method == "svdd" else {}
        count = num_candidates if method == "svdd" else 1
        with fg.guide(
            pipe,
            kilobytes,
            method=method,
            num_candidates=count,
            eta=eta,
            max_rows=8,
            seed=0,
            **settings,
        ):
            made = pipe(prompt, **call)
        made.images[0].save(folder_out / f"{method}_{count}.png")
        print(f"{method} of {count}: {float(made.rewards[0]):.1f} kB; {made.cost}")
        rewards.append(made.rewards[0])
    return torch.stack(rewards)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
