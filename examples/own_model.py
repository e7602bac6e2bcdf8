"""Guide a denoiser of your own: any callable that maps tokens to logits.

Here it is a table: a chain over 30 sites in which each letter depends on the one before it. The
reward counts a motif, so plain samples rarely score and guided ones do.

    python examples/own_model.py
"""

import torch

import fastguide as fg

LENGTH, VOCAB, MASK = 30, 4, 4
MOTIF = torch.tensor([2, 0, 3, 1])
# logits of each letter (column) after each letter or after a mask (row)
AFTER = torch.randn(VOCAB + 1, VOCAB, generator=torch.Generator().manual_seed(0))


def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Tokens [B, L], times [B] -> logits [B, L, V]."""
    left = torch.nn.functional.pad(x, (1, 0), value=MASK)[:, :-1]
    return AFTER[left]


def reward(samples: torch.Tensor) -> torch.Tensor:
    """Most letters of the motif, from its start, found in a row; all four count double."""
    windows = samples.unfold(1, len(MOTIF), 1) == MOTIF
    longest = windows.long().cumprod(dim=2).sum(dim=2).max(dim=1).values
    return longest + 4.0 * (longest == len(MOTIF))


def main(num_samples: int = 64, num_steps: int = 64) -> dict[str, fg.Result]:
    """Print the mean reward and the cost of three methods, and return their results."""
    diffusion = fg.MaskedDiffusion(denoiser, LENGTH, VOCAB)
    samplers = {
        "unguided": fg.Unguided(diffusion, reward),
        "best of 10": fg.BestOfN(diffusion, reward, num_candidates=10),
        "SVDD": fg.SVDD(diffusion, reward, num_candidates=10, alpha=0.2),
    }
    results = {}
    for name, sampler in samplers.items():
        results[name] = result = sampler.sample(num_samples, num_steps=num_steps, progress=False)
        print(f"{name:<12} mean reward {result.rewards.mean():.2f}   {result.cost}")
    return results


if __name__ == "__main__":
    main()
