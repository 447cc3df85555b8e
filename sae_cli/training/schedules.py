"""Schedules as functions of the step."""

import torch
from torch import Tensor

from sae_cli.config.schema import TrainConfig


def total_steps(train: TrainConfig) -> int:
    """Number of optimiser steps."""
    return train.tokens // train.batch


def ramp(step: int, share_K: Tensor, steps: int) -> Tensor:
    """Return the linear warm-up factor (K,) of `step` (from 0): 1 from `share * steps` steps on."""
    return ((step + 1) / (share_K * steps).clamp(min=1)).clamp(max=1)


def learning_rate(step: int, lr: float, warmup: float, train: TrainConfig) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, constant, linear decay to final_lr * lr.

    It rises again over `resample_warmup` after each resampling.
    """
    steps = total_steps(train)
    rise = min(1.0, (step + 1) / max(warmup * steps, 1))
    since = min((step - due for due in due_steps(train.resample_at, steps) if due <= step), default=steps)
    again = min(1.0, (since + 1) / max(train.resample_warmup * steps, 1))
    left = (train.decay_end * steps - step) / max(train.decay * steps, 1)
    fall = train.final_lr + (1 - train.final_lr) * min(1.0, max(0.0, left))
    return lr * rise * again * fall


def due_steps(shares: list[float], steps: int) -> set[int]:
    """Return the steps after which something that is due at these shares of training happens."""
    return {max(1, round(share * steps)) for share in shares}


def per_member(values: list[float], device: str) -> Tensor:
    """Return per-member settings as a tensor (K,)."""
    return torch.tensor(values, dtype=torch.float32, device=device)
