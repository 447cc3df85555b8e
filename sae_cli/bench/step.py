"""Speed of training steps on synthetic rows, beside what the machine could do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sae_cli.bench.machine import Peak, seconds_per_call
from sae_cli.bench.work import Work
from sae_cli.config.compose import compose
from sae_cli.config.schema import Config
from sae_cli.dictionary.stack import SAEStack
from sae_cli.training.step import METRICS, Stepper
from sae_cli.training.terms import find_entries

L0_ROWS, HALVINGS = 128, 20
"""Rows on which thresholds are set, and halvings of the interval that they lie in."""


@dataclass(frozen=True)
class Size:
    """Width D, latents F and number of members of a stack."""

    width: int
    latents: int
    members: int = 1


def stepper(config: Config, size: Size, device: str, x_BD: Tensor, l0: float) -> Stepper:
    """Return a Stepper on whose rows about `l0` latents fire; only a tiny learning rate leaves it so."""
    configs = [config] * size.members
    stack = SAEStack.initialise(configs, torch.zeros(size.width), device, x_BD.cpu())
    hold_l0(stack, x_BD, l0)
    return Stepper(stack, configs, device)


@torch.no_grad()
def hold_l0(stack: SAEStack, x_BD: Tensor, l0: float) -> None:
    """Set encoder biases so that about `l0` latents of each row fire, where biases decide that."""
    m_KBF = stack.pre_activations(stack.centred(x_BD[:L0_ROWS]))
    low, high = -2 * float(m_KBF.abs().max()), 2 * float(m_KBF.abs().max())
    for _ in range(HALVINGS):
        stack.b_enc_KF.fill_((low + high) / 2)
        if float((stack.latents(m_KBF) != 0).sum(2).float().mean()) > l0:
            high = (low + high) / 2
        else:
            low = (low + high) / 2


def bench_config(overrides: Sequence[str], latents: int | None, l0: int, config_dir: str | None = None) -> Config:
    """Return the configuration to measure: k is `l0` unless the overrides say otherwise, and nothing is learned."""
    size = [f"sae.latents={latents}"] if latents else []
    return compose([f"sae.k={l0}", *overrides, *size, "train.lr=1e-9"], config_dir)


def path_taken(made: Stepper, x_BD: Tensor) -> str:
    """Return `dense`, or by what the products over latents that fire run: `compiled` kernels or `torch`'s operators."""
    part, narrow = made.stack.part(made.parts[0]), made.train.precision == "bf16"
    with torch.no_grad(), torch.autocast(x_BD.device.type, torch.bfloat16, enabled=narrow):
        found = find_entries(part, made.shared, part.pre_activations(part.centred(x_BD)))
    if found is None:
        return "dense"
    name = type(found[0].operators).__name__
    return "torch" if name == "Operators" else name.lower()


def measure(config: Config, size: Size, device: str, l0: int, seconds: float = 4.0) -> dict[str, Any]:
    """Return what a step takes, how often each latent fires on it, and the memory of training at its peak.

    ms is the median over steps.
    """
    peak = Peak(device)
    torch.manual_seed(0)
    x_BD = torch.randn(config.train.batch, size.width, device=device)
    made = stepper(config, size, device, x_BD, l0)
    turns = count()
    found = median(seconds_per_call(lambda: made.step(next(turns), x_BD), device, seconds, least=6)[1:])
    l0_K = made.take_metrics(next(turns))[:, METRICS.index("l0")]
    return {
        **asdict(size),
        "batch": len(x_BD),
        "precision": config.train.precision,
        "path": path_taken(made, x_BD),
        "l0": l0_K.mean().item(),
        "ms": 1000 * found,
        "tokens_per_second": len(x_BD) / found,
        "member_tokens_per_second": size.members * len(x_BD) / found,
        "peak_bytes": peak.read(),
    }


def shares(row: dict[str, Any], ceilings: dict[str, Any], cache: dict[str, float]) -> dict[str, float]:
    """Return which share of a step's time the machine would need for its parts at its own ceilings.

    products: dense products that the path takes; bandwidth: (B, F) tensors and parameters to and from memory;
    data: reading the batch. dense_bound: the rate over that of five dense products alone; sparse steps may exceed 1.
    """
    narrow, sparse, seconds = row["precision"] == "bf16", row["path"] != "dense", row["ms"] / 1000
    shape = row["batch"], row["width"], row["latents"], row["l0"], narrow
    work, dense = Work.of(*shape, sparse), Work.of(*shape, False)
    moved, rate = work.latent_bytes + work.parameter_bytes, ceilings[f"{row['precision']}_flops"]
    return {
        "products": row["members"] * work.flops / rate / seconds,
        "bandwidth": row["members"] * moved / ceilings["copy_bytes"] / seconds,
        "data": 2 * row["batch"] * row["width"] / cache["read_bytes"] / seconds,
        "dense_bound": row["members"] * dense.flops / rate / seconds,
    }
