"""Fine-tuning towards p_pre(x) exp(r(x) / alpha) with the processes and streams of the samplers."""

from fastguide.finetune.adjoint_matching import AdjointMatching
from fastguide.finetune.elegant import ELEGANT
from fastguide.finetune.export import load_learned
from fastguide.finetune.forward_process import ForwardProcess
from fastguide.finetune.history import History
from fastguide.finetune.loggers import tensorboard, wandb
from fastguide.finetune.method import Method
from fastguide.finetune.path_consistency import PathConsistency
from fastguide.finetune.ppo import PPO
from fastguide.finetune.reward_backprop import RewardBackprop
from fastguide.finetune.reward_weighted_mle import RewardWeightedMLE
from fastguide.finetune.update import cosine, linear
from fastguide.finetune.value_weighted import ValueWeighted

__all__ = [
    "ELEGANT",
    "PPO",
    "AdjointMatching",
    "ForwardProcess",
    "History",
    "Method",
    "PathConsistency",
    "RewardBackprop",
    "RewardWeightedMLE",
    "ValueWeighted",
    "cosine",
    "linear",
    "load_learned",
    "tensorboard",
    "wandb",
]
