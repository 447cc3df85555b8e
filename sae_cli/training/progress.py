"""What training says about itself: tokens/s, ETA, loss, L0, FVU, dead share and memory."""

import resource
from collections.abc import Sequence

import torch

from sae_cli.progress import Bar


class TrainingProgress(Bar):
    """Progress of a stack; metrics are ranges over its members."""

    def __init__(self, steps: int, start: int) -> None:
        super().__init__(steps, start)
        self.steps = steps

    def update(self, step: int, members: Sequence[dict[str, float]]) -> None:
        """Show the newest metrics of all members."""
        line = describe(members)
        left = members[0]["seconds"] / step * (self.steps - step)
        self.show(step, self.steps, line, f"step {step}/{self.steps}  {left:.0f} s left  {line}")


def describe(members: Sequence[dict[str, float]]) -> str:
    """Return one line of metrics; with several members each metric is a range over them."""
    speed = members[0]["tokens_per_second"] * len(members)
    parts = [f"{speed:,.0f} tokens/s"]
    for name, key, factor, digits in (
        ("loss", "loss", 1, 2),
        ("L0", "l0", 1, 1),
        ("FVU", "fvu", 1, 4),
        ("dead %", "dead", 100, 1),
        ("data wait %", "data_wait", 100, 0),
    ):
        values = sorted(member[key] * factor for member in members)
        low, high = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
        parts.append(f"{name} {low}" if low == high else f"{name} {low}-{high}")
    return "  ".join([*parts, f"{memory_gigabytes():.1f} GB"])


def memory_gigabytes() -> float:
    """Return peak memory: the process's, or the accelerator's where it is in use. Unit: 10^9 bytes."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
