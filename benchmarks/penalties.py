"""Time per step of every orthogonality penalty against gamma 0, and what the approximate ones see of a trained decoder.

Steps of all kinds take turns in this process, and their processor time is what counts, so ratios hold on a busy machine
if there is one thread. A refresh (a new search, assignment or
whitening) is timed apart and spread over `orthogonality.refresh` steps. Recall is measured on the `W_dec` of an
artefact, if one is given, right after a refresh.
Usage: OMP_NUM_THREADS=1 python benchmarks/penalties.py [--shape F D ...] [--steps N] [--artefact FILE ...] [--out FILE]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from publish import publish
from safetensors.torch import load_file

from sae_cli.config.compose import compose
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY, neighbour_recall
from sae_cli.training.step import Stepper

BATCH = 1024
KINDS = {
    "none": ["orthogonality=none"],
    **{name: [f"orthogonality={name}"] for name in ("all_pairs", "gram", "nearest", "active_only", "mixed_max")},
    "unique_nearest": ["orthogonality=unique_nearest", "orthogonality.greedy=true"],
    "chunked": ["orthogonality=chunked"],
    "chunked, chunk as cells": ["orthogonality=chunked", "orthogonality.chunk=1024"],
    **{name: [f"orthogonality={name}"] for name in ("cells", "neighbours", "rica", "decomposable")},
}


def steppers(latents: int, width: int) -> dict[str, Stepper]:
    made = {}
    for name, words in KINDS.items():
        config = compose(["experiment=demo", "sae=relu", f"sae.latents={latents}", "train.precision=bf16", *words])
        stack = SAEStack.initialise([config], torch.zeros(width), "cpu", torch.empty(0))
        made[name] = Stepper(stack, [config], "cpu")
    return made


def timed(stepper: Stepper, step: int, x_BD: torch.Tensor) -> float:
    began = time.process_time()
    stepper.step(step, x_BD)
    return 1000 * (time.process_time() - began)


def cost(latents: int, width: int, steps: int) -> list[dict[str, Any]]:
    """Return milliseconds per step of each kind, refreshes spread over the steps between them."""
    x_BD = torch.randn(BATCH, width)
    made = steppers(latents, width)
    plain: dict[str, list[float]] = {name: [] for name in made}
    fresh: dict[str, list[float]] = {name: [] for name in made}
    for step in range(steps + 1):
        for name, stepper in made.items():
            refresh = stepper.shared.orthogonality.refresh
            milliseconds = timed(stepper, 2 * refresh * step + 1, x_BD)
            if step:
                plain[name].append(milliseconds)
            if step % 3 == 0:
                fresh[name].append(timed(stepper, 2 * refresh * (step + 1), x_BD))
    rows: list[dict[str, Any]] = []
    for name, stepper in made.items():
        between = statistics.median(plain[name])
        at_refresh = statistics.median(fresh[name]) if stepper.shared.orthogonality.kind in REFRESHED else between
        spread = between + max(0.0, at_refresh - between) / stepper.shared.orthogonality.refresh
        rows.append({"kind": name, "between": between, "refresh": at_refresh, "ms": spread})
    base = rows[0]["ms"]
    for row in rows:
        row["ratio"] = round(row["ms"] / base, 3)
        row |= {name: round(row[name], 1) for name in ("between", "refresh", "ms")}
    return rows


REFRESHED = ("unique_nearest", "cells", "neighbours", "rica")


def recall(artefact: Path, chunks: list[int]) -> list[dict[str, Any]]:
    W_FD = load_file(artefact)["W_dec"].float()
    rows = []
    for chunk in chunks:
        for kind in ("chunked", "cells"):
            settings = compose([f"orthogonality={kind}", f"orthogonality.chunk={chunk}"]).orthogonality
            directions = Directions(W_FD)
            penalty = ORTHOGONALITY[kind]
            assert penalty is not None
            penalty(directions, settings)
            found = {name: round(value, 4) for name, value in neighbour_recall(directions, settings).items()}
            rows.append({"artefact": artefact.parent.name, "kind": kind, "chunk": chunk, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("F", "D"))
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--chunk", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--artefact", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shapes = arguments.shape or [(4096, 256), (5120, 640)]
    result = {
        "what": f"processor milliseconds per step of one relu member, B {BATCH}, bf16, one thread; ratio to gamma 0",
        "cost": {f"F {F}, D {D}": cost(F, D, arguments.steps) for F, D in shapes},
        "recall": [row for artefact in arguments.artefact for row in recall(artefact, arguments.chunk)],
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
