"""Tokens per second of a full training step against peers' own steps on the same batch, in turn in one process.

A peer takes part if it can be imported (pip install dictionary-learning eai-sparsify, in an environment of its own);
each runs as it comes and under bf16 autocast put around its step. ReLU against ReLU with an L1 penalty and TopK against
TopK; peers' biases are set so that as many latents fire. Several members are a stack of ours, and of peers as many SAEs
that take the shared batch one after the other, which is faster than what they have for sweeps; tokens count per member.
Usage: OMP_NUM_THREADS=2 python benchmarks/step_peers.py [--steps N] [--shape D F MEMBERS] [--out FILE]
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from publish import publish
from step import BATCH, KINDS, in_turn, stepper
from torch import Tensor

from sae_cli.sparse.compiled import library
from sae_cli.training.allocator import keep_freed_memory

Step = Callable[[int], object]


def dictionary_learning(kind: str, x_BD: Tensor, latents: int, l0: int) -> Step:
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    shared: dict[str, Any] = {"steps": 10**9, "activation_dim": x_BD.shape[1], "dict_size": latents, "layer": 0}
    shared |= {"lm_name": "", "lr": 1e-9, "device": str(x_BD.device)}
    if kind == "topk":
        topk = TopKTrainer(k=l0, **shared)
        topk.ae.b_dec.data.zero_()
        return lambda turn: topk.update(turn + 1, x_BD)
    standard = StandardTrainer(l1_penalty=1e-3, **shared)
    with torch.no_grad():
        m_N = standard.ae.encoder(x_BD[:256]).flatten()
        standard.ae.encoder.bias -= m_N.kthvalue(len(m_N) - l0 * 256).values
    return lambda turn: standard.update(turn + 1, x_BD)


def sparsify(kind: str, x_BD: Tensor, latents: int, l0: int) -> Step:
    if x_BD.device.type == "cpu":
        sys.modules["triton"] = None  # type: ignore[assignment] # where it is installed, sparsify wants a GPU
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(x_BD.shape[1], SparseCoderConfig(num_latents=latents, k=l0), device=x_BD.device)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-9)

    def step(turn: int) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x_BD).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


PEERS = {"dictionary_learning": (dictionary_learning, ("relu", "topk")), "sparsify": (sparsify, ("topk",))}


def in_bf16(step: Step, device: str = "cpu") -> Step:
    def under(turn: int) -> object:
        with torch.autocast(device, torch.bfloat16):
            return step(turn)

    return under


def each_in_turn(steps: list[Step]) -> Step:
    return lambda turn: [step(turn) for step in steps]


def measure(width: int, latents: int, members: int, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    x_BD, l0 = torch.randn(BATCH, width), arguments.l0
    steps: dict[str, Step] = {}
    for precision in ("bf16", "fp32"):
        ours = stepper([*KINDS[kind], f"train.precision={precision}"], width, latents, members, l0, x_BD)
        steps[f"sae {precision}"] = lambda turn, ours=ours: ours.step(turn, x_BD)
    for name, (make, kinds) in PEERS.items():
        if kind in kinds and find_spec(name):
            peer = each_in_turn([make(kind, x_BD, latents, l0) for _ in range(members)])
            steps |= {f"{name} fp32": peer, f"{name} bf16": in_bf16(peer)}
    failed: dict[str, str] = {}
    working: dict[str, Step] = {}
    for name, step in steps.items():
        try:
            step(0)
            working[name] = step
        except RuntimeError as error:  # such as an operator that has no bf16 kernel
            failed[name] = str(error).splitlines()[0]
    found = in_turn(working, arguments.steps)
    speeds = {name: round(BATCH * members / statistics.median(seconds)) for name, seconds in found.items()}
    peers = {name: speed for name, speed in speeds.items() if not name.startswith("sae ")}
    best = max(peers, key=peers.__getitem__, default=None)
    ratios = [] if best is None else [a / b for a, b in zip(found[best], found["sae bf16"], strict=True)]
    return {
        "shape": {"D": width, "F": latents, "members": members, "kind": kind},
        "tokens_per_second": speeds,
        "failed": failed,
        "best_peer": best,
        "ratio": round(statistics.median(ratios), 2) if ratios else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--l0", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("D", "F", "MEMBERS"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    result = {
        "what": f"member-tokens per second of a step, B {BATCH}; best peer's time / ours in bf16, turn by turn",
        "threads": torch.get_num_threads(),
        "compiled": library() is not None,
        "load": round(os.getloadavg()[0], 1),
        "rows": [
            measure(*shape, kind, arguments)
            for shape in arguments.shape or [(512, 4096, 1), (640, 10240, 1), (256, 2048, 8)]
            for kind in KINDS
        ],
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
