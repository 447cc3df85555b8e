"""Tokens per second of a full training step, dense against sparse products, in turn in one process.

The bias is set once so that about `--l0` latents fire, and the learning rate is too small to move that. `bound` is what
a step of the five dense products alone would reach at the rate of the encoder's product, measured in the same turns.
Usage: OMP_NUM_THREADS=2 python benchmarks/step.py [--steps N] [--precision bf16] [--out FILE]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from publish import publish

from sae_cli.bench.step import Size, bench_config
from sae_cli.bench.step import stepper as steady
from sae_cli.sparse.compiled import library
from sae_cli.training.allocator import keep_freed_memory
from sae_cli.training.step import Stepper

BATCH = 2048
SHAPES = [(512, 4096, 1), (640, 10240, 1), (256, 2048, 8)]
KINDS = {"relu": ["sae=relu", "sparsity=l1"], "topk": ["sae=topk", "sparsity=none"]}


def stepper(words: list[str], width: int, latents: int, members: int, l0: int, x_BD: torch.Tensor) -> Stepper:
    config = bench_config(["experiment=demo", *words, f"train.batch={BATCH}", "orthogonality=none"], latents, l0)
    return steady(config, Size(width, latents, members), "cpu", x_BD, l0)


def in_turn(actions: dict[str, Callable[[int], object]], turns: int) -> dict[str, list[float]]:
    """Return seconds of each action in each turn; the first two turns are not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + 2):
        for name, action in actions.items():
            began = time.perf_counter()
            action(turn)
            times[name].append(time.perf_counter() - began)
    return {name: found[2:] for name, found in times.items()}


def measure(width: int, latents: int, members: int, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    x_BD = torch.randn(BATCH, width)
    words = [*KINDS[kind], f"train.precision={arguments.precision}"]
    made = {
        path: stepper([*words, f"train.sparse={path}"], width, latents, members, arguments.l0, x_BD)
        for path in ("dense", "auto")
    }
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    a_BD, b_DF = x_BD.to(dtype), torch.randn(width, latents).to(dtype)
    actions: dict[str, Callable[[int], object]] = {"product": lambda turn: a_BD @ b_DF}
    actions |= {path: lambda turn, path=path: made[path].step(turn, x_BD) for path in made}
    times = in_turn(actions, arguments.steps)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    bound = BATCH / (5 * seconds["product"])
    rows = {
        path: {
            "ms": round(1000 * seconds[path], 1),
            "best_ms": round(1000 * min(times[path]), 1),
            "tokens_per_second": round(BATCH / seconds[path]),
            "member_tokens_per_second": round(members * BATCH / seconds[path]),
            "of_bound": round(members * BATCH / seconds[path] / bound, 3),
            "l0": round(made[path].take_metrics(arguments.steps + 2)[0, 5].item(), 1),
        }
        for path in made
    }
    return {
        "shape": {"D": width, "F": latents, "members": members, "kind": kind},
        "product_ms": round(1000 * seconds["product"], 2),
        "product_gflops": round(2e-9 * BATCH * width * latents / seconds["product"]),
        "bound_tokens_per_second": round(bound),
        **rows,
        "ratio": round(statistics.median(a / b for a, b in zip(times["dense"], times["auto"], strict=True)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--l0", type=int, default=50)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("D", "F", "MEMBERS"))
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    result = {
        "what": f"a training step, B {BATCH}, {arguments.precision}; dense / sparse products (train.sparse=auto)",
        "threads": torch.get_num_threads(),
        "compiled": library() is not None,
        "load": round(os.getloadavg()[0], 1),
        "rows": [
            measure(*shape, kind, arguments) for shape in arguments.shape or SHAPES for kind in arguments.kind or KINDS
        ],
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
