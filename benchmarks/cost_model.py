"""What a training step costs as a sum of a few terms, fitted to measured steps; and what that means for a large model.

seconds = members (flops / R + entry bytes / E + latent bytes / L + parameter bytes / P + overhead)

The amounts are those of sae_cli/bench/work.py; R, E, L and P are rates. No constant is negative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from sae_cli.bench.work import Work

TERMS = ("flops", "entry_bytes", "latent_bytes", "parameter_bytes", "overhead")
MEMORY = ("parameters", "latents", "fixed")


def terms(row: Mapping[str, Any]) -> np.ndarray:
    """Return the amounts (T,) of TERMS of a measured step."""
    B, D, F = row["batch"], row["width"], row["latents"]
    work = Work.of(B, D, F, row["l0"], row["precision"] == "bf16", row["path"] != "dense")
    amounts = asdict(work) | {"overhead": 1}
    return row["members"] * np.array([amounts[name] for name in TERMS], float)


def memory_terms(row: Mapping[str, Any]) -> np.ndarray:
    """Return parameters, (B, F) numbers and 1, of which a step's peak of memory is a sum."""
    D, F = row["width"], row["latents"]
    return np.array([row["members"] * (2 * D * F + D + F), row["batch"] * F, 1.0])


def fit(amounts_NT: np.ndarray, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return constants (T,) >= 0 of least squared relative error, and predicted / measured - 1 (N,)."""
    scaled_NT = amounts_NT / values_N[:, None]
    norms_T = np.linalg.norm(scaled_NT, axis=0)
    norms_T[norms_T == 0] = 1
    constants_T = nnls(scaled_NT / norms_T, np.ones(len(values_N)))[0] / norms_T
    return constants_T, scaled_NT @ constants_T - 1


def fitted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the constants of time and of memory, and how far they are from each row."""
    amounts_NT, seconds_N = np.stack([terms(row) for row in rows]), np.array([row["ms"] / 1000 for row in rows])
    constants_T, residuals_N = fit(amounts_NT, seconds_N)
    weighed = [row for row in rows if row["peak_bytes"]]
    memory_M, memory_residuals_N = fit(
        np.stack([memory_terms(row) for row in weighed]), np.array([row["peak_bytes"] for row in weighed], float)
    )
    return {
        "seconds_per": dict(zip(TERMS, constants_T.tolist(), strict=True)),
        "residuals": [round(value, 4) for value in residuals_N.tolist()],
        "bytes_per": dict(zip(MEMORY, memory_M.tolist(), strict=True)),
        "memory_residuals": [round(value, 4) for value in memory_residuals_N.tolist()],
    }


@dataclass(frozen=True)
class Device:
    """A vendor's figures for one accelerator, and the share of them that work is assumed to reach."""

    name: str = "H100 SXM"
    flops: float = 989e12
    """bf16, dense products."""
    memory: float = 80e9
    bandwidth: float = 3.35e12
    """Of its memory, byte/s."""
    network: float = 50e9
    """To other machines, byte/s each way (one 400 Gb/s adapter per device)."""
    reached: float = 0.5


@dataclass(frozen=True)
class Goal:
    """A dictionary on a large language model's activations."""

    width: int = 8192
    latents: int = 1 << 24
    tokens: float = 1e11
    l0: float = 100
    batch: int = 1 << 15
    micro_batch: int = 1 << 12
    """Rows whose pre-activations are in memory at a time."""
    model: float = 70e9
    """Parameters of the language model."""


def predict(goal: Goal, device: Device, row_bytes: float) -> list[tuple[str, str]]:
    """Return names and values of what the goal takes, with latents shared out to devices; `row_bytes` on disk."""
    B, D, F = goal.batch, goal.width, goal.latents
    parameters, used = 2 * D * F + D + F, device.reached
    # fp32 weights, gradients and two moments, and the bf16 copies that products read
    held = {"weights": 4 * parameters, "gradients": 4 * parameters, "Adam": 8 * parameters, "bf16": 2 * parameters}
    ranks = 8
    while sum(held.values()) / ranks + _activations(goal, ranks) > 0.9 * device.memory:
        ranks *= 2
    sparse, dense = (Work.of(B, D, F, goal.l0, True, path) for path in (True, False))
    seconds = {
        "encoder's product": sparse.flops / ranks / device.flops / used,
        "latents that fire": sparse.entry_bytes / ranks / device.bandwidth / used,
        "pre-activations": sparse.latent_bytes / ranks / device.bandwidth / used,
        "weights and Adam": sparse.parameter_bytes / ranks / device.bandwidth / used,
        "sum of reconstructions over ranks": 2 * 4 * B * D / device.network / used,
        "x to every rank": 2 * B * D / device.network / used,
    }
    step = sum(seconds.values())
    days = goal.tokens / B * step / 86400
    five = goal.tokens / B * (step + 0.8 * dense.flops / ranks / device.flops / used) / 86400
    forward = 2 * goal.model * goal.tokens / device.flops / used / 86400
    rate = B / step
    return [
        ("parameters", f"{parameters:.3g}"),
        *((f"{name} in all", tera(size)) for name, size in held.items()),
        (f"devices of {device.memory / 1e9:.0f} GB that hold it", str(ranks)),
        ("latents that 8 devices hold", f"{0.9 * 8 * device.memory / (18 * 2 * D) / 1e6:.1f}M"),
        ("of these, parameters and Adam per rank", f"{sum(held.values()) / ranks / 1e9:.0f} GB"),
        (f"activations per rank, {goal.micro_batch:,} rows at a time", f"{_activations(goal, ranks) / 1e9:.1f} GB"),
        (f"a step of {B:,} tokens", f"{1000 * step:.0f} ms"),
        *((f"... {name}", f"{1000 * part:.1f} ms") for name, part in seconds.items()),
        ("tokens per second", f"{rate:,.0f}"),
        (f"days for {goal.tokens:.0e} tokens", f"{days:.1f}"),
        ("the same with five dense products", f"{five:.1f}"),
        ("all-reduced over the network by each rank in all", tera(8 * goal.tokens * D)),
        ("device-days of the dictionary", f"{days * ranks:,.0f}"),
        ("device-days of the language model's forward passes", f"{forward:,.0f}"),
        ("cache on disk", tera(goal.tokens * row_bytes)),
        ("read from it", f"{rate * row_bytes / 1e9:.1f} GB/s"),
        ("a checkpoint", tera(12 * parameters)),
        ("one search of every direction's nearest", f"{2 * D * F * F / ranks / device.flops / used:,.0f} s"),
    ]


def tera(amount: float) -> str:
    """Return bytes in TB or PB."""
    return f"{amount / 1e12:.2f} TB" if amount < 1e15 else f"{amount / 1e15:.2f} PB"


def _activations(goal: Goal, ranks: int) -> float:
    """Return bytes of a rank's activations: x and the error in fp32 and bf16, and m of a micro-batch in bf16, twice."""
    return 12 * goal.batch * goal.width + 4 * goal.micro_batch * goal.latents / ranks
