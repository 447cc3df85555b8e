"""What orthogonality penalties cost: time per step against gamma 0, memory at a million directions, neighbours seen.

Blocks of consecutive steps take turns in this process, one of each kind; a block holds whole periods of what is not
done at each use (refreshes, turns of the rolling search), so a mean over it is what a run pays. With one thread the
processor's time counts, so ratios hold on a busy machine; with more, the clock's. Before, rolling searches come round
once. Peak memory is that of a process which takes three uses of a penalty with their gradients, above what it held
before. Recall is measured on the `W_dec` of an artefact, if one is given, right after a refresh.
Usage: OMP_NUM_THREADS=2 python benchmarks/penalties.py [--all] [--turns N] [--artefact FILE ...] [--out FILE]
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from publish import publish
from safetensors.torch import load_file

from sae_cli.config.compose import compose
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY, neighbour_recall
from sae_cli.training.allocator import keep_freed_memory
from sae_cli.training.step import Stepper

PERIOD = 20
"""Steps of a block: twice `refresh`, and five turns of a rolling search."""
EXACT = ["orthogonality.search_rows=0", "orthogonality.neighbours=8", "orthogonality.chunk=1024"]
MAIN = {
    "none": ["orthogonality=none"],
    "cells": ["orthogonality=cells"],
    "neighbours": ["orthogonality=neighbours"],
    "neighbours, k 4": ["orthogonality=neighbours", "orthogonality.neighbours=4"],
    "cells, 1024, exact inside": ["orthogonality=cells", *EXACT],
    "nearest": ["orthogonality=nearest"],
}
ALL = {
    **MAIN,
    "neighbours, exact": ["orthogonality=neighbours", *EXACT],
    **{name: [f"orthogonality={name}"] for name in ("active_only", "gram", "all_pairs", "mixed_max")},
    "unique_nearest": ["orthogonality=unique_nearest", "orthogonality.greedy=true"],
    "chunked": ["orthogonality=chunked"],
    "chunked, 1024": ["orthogonality=chunked", "orthogonality.chunk=1024"],
    **{name: [f"orthogonality={name}"] for name in ("rica", "decomposable")},
}
OFTEN = ("none", "cells", "neighbours")
"""What has its block in each turn; the others have theirs in the first three."""
AT_EACH_STEP = ("nearest", "all_pairs", "mixed_max", "gram", "decomposable", "chunked")
"""Kinds whose steps cost the same, of which four are a block."""
WIDTH = 16
"""Of a million directions, so that time goes into what memory is asked about."""


def stepper(words: list[str], latents: int, width: int, batch: int) -> Stepper:
    fixed = [f"sae.latents={latents}", f"train.batch={batch}", "train.precision=bf16", "train.lr=1e-9"]
    config = compose(["experiment=demo", "sae=topk", "sae.k=50", "sparsity=none", *fixed, *words])
    made = Stepper(SAEStack.initialise([config], torch.zeros(width), "cpu", torch.empty(0)), [config], "cpu")
    settings, W_FD = config.orthogonality, made.stack.W_dec_KFD[0]
    if settings.search_rows and settings.kind != "none":
        with torch.autocast("cpu", torch.bfloat16):
            for step in range(-(-latents // settings.search_rows)):
                run(settings.kind, Directions(W_FD, step=step, state=made.penalty_states[0], unit=True), settings)
    return made


def run(kind: str, directions: Directions, settings: Any) -> torch.Tensor:
    penalty = ORTHOGONALITY[kind]
    assert penalty is not None
    return penalty(directions, settings)


def cost(latents: int, width: int, batch: int, kinds: dict[str, list[str]], turns: int) -> list[dict[str, Any]]:
    """Return milliseconds per step of each kind, and its penalty's share of the step without."""
    x_BD = torch.randn(batch, width)
    made = {name: stepper(words, latents, width, batch) for name, words in kinds.items()}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(turns + 1):
        for name, one in made.items():
            if turn > 3 and name not in OFTEN:
                continue
            steps = 4 if one.shared.orthogonality.kind in AT_EACH_STEP else PERIOD
            began = clock()
            for step in range(turn * PERIOD, turn * PERIOD + (steps if turn else 2)):
                one.step(step, x_BD)
            times[name] += [1000 * (clock() - began) / steps] if turn else []
    base = statistics.median(times["none"])
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [
        {"kind": name, "ms": round(ms, 1), "best_ms": round(min(times[name]), 1), "share": round(ms / base - 1, 3)}
        for name, ms in medians.items()
    ]


def peak(kind: str, latents: int) -> int:
    """Return the bytes by which three uses of a penalty on random directions raise this process's peak."""
    settings = compose([f"orthogonality={kind}", f"sae.latents={latents}", *MILLION[kind]]).orthogonality
    W_FD = torch.nn.functional.normalize(torch.randn(latents, WIDTH), dim=1).requires_grad_()
    before = status("VmRSS")
    state: dict[str, torch.Tensor] = {}
    for step in range(0, 12, 4):
        with torch.autocast("cpu", torch.bfloat16):
            directions = Directions(W_FD, seed=step, step=step, state=state, unit=True)
            torch.autograd.grad(run(kind, directions, settings), W_FD)
    return status("VmHWM") - before


def status(name: str) -> int:
    """Return a number of bytes that Linux counts for this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


MILLION = {
    "cells": [f"orthogonality.chunk={2**20}", "orthogonality.threshold=0.5"],
    "neighbours": ["orthogonality.threshold=0.5"],
    "chunked": ["orthogonality.chunk=1024", "orthogonality.threshold=0.5"],
}


def memory() -> list[dict[str, Any]]:
    rows = []
    for kind in MILLION:
        for latents in (2**18, 2**20):
            command = [sys.executable, __file__, "--peak", kind, str(latents)]
            found = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            per_direction = round(found / latents)
            rows.append({"kind": kind, "F": latents, "MB": round(found / 2**20), "bytes_per_direction": per_direction})
    return rows


def recall(artefact: Path, chunks: list[int]) -> list[dict[str, Any]]:
    W_FD = load_file(artefact)["W_dec"].float()
    rows = []
    for chunk in chunks:
        for kind in ("chunked", "cells"):
            words = [f"orthogonality={kind}", f"orthogonality.chunk={chunk}", "orthogonality.search_rows=0"]
            settings, directions = compose(words).orthogonality, Directions(W_FD)
            run(kind, directions, settings)
            found = {name: round(value, 4) for name, value in neighbour_recall(directions, settings).items()}
            rows.append({"artefact": artefact.parent.name, "kind": kind, "chunk": chunk, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--all", action="store_true", help="also every other kind, at two smaller shapes")
    parser.add_argument("--chunk", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--artefact", type=Path, nargs="*", default=[])
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "F"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    shapes = {"F 16384, D 512, B 2048": partial(cost, 16384, 512, 2048, MAIN)}
    if arguments.all:
        shapes |= {f"F {F}, D {D}, B 1024": partial(cost, F, D, 1024, ALL) for F, D in ((4096, 256), (5120, 640))}
    result = {
        "what": "milliseconds per step of one TopK member, k 50, bf16, and the penalty's share of the step without one",
        "threads": torch.get_num_threads(),
        "cost": {shape: measure(arguments.turns) for shape, measure in shapes.items()},
        "memory": memory(),
        "recall": [row for artefact in arguments.artefact for row in recall(artefact, arguments.chunk)],
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
