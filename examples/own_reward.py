"""Design 5'UTRs for a reward of your own, with some nucleotides fixed.

The reward is the predicted ribosome load minus a penalty for G and C beyond 60 %, and every design
ends in GCCACC, which puts a strong Kozak context before the start codon that follows.

    python examples/own_reward.py
"""

import torch

import fastguide as fg

ENDING = "GCCACC"


def main(num_samples: int = 16, num_steps: int = 64) -> fg.Result:
    """Print the five best designs and return the result."""
    task = fg.zoo.load("utr")

    def reward(samples: torch.Tensor) -> torch.Tensor:
        is_g_or_c = (samples == 1) | (samples == 2)  # tokens 0..3 are A, C, G, T
        excess = (is_g_or_c.float().mean(dim=1) - 0.6).clamp_min(0)
        return task.reward(samples) - 20 * excess

    # positions that do not hold the mask stay as they are
    prompt = torch.full((task.diffusion.length,), task.diffusion.mask_token)
    prompt[-len(ENDING) :] = torch.tensor(["ACGT".index(letter) for letter in ENDING])

    sampler = fg.SVDD(task.diffusion, reward, num_candidates=10, alpha=0.1)
    result = sampler.sample(num_samples, num_steps=num_steps, prompt=prompt)

    best = result.samples[result.rewards.argsort(descending=True)[:5]]
    print("design                                              reward  judge")
    for sequence, scored, judged in zip(
        task.decode(best), reward(best).tolist(), task.oracle(best).tolist(), strict=True
    ):
        print(f"{sequence}  {scored:6.2f} {judged:6.2f}")
    print(result.cost)
    return result


if __name__ == "__main__":
    main()
