"""A training step on CUDA: sparse against dense products and peers, a stack against its members one by one.

`bound` is what a step of the five dense products alone would reach in bf16, measured in the same turns. The bias is
set once so that about `--l0` latents fire, and the learning rate is too small to move that. Where a kernel's time goes
is in `kernels`, microseconds a step. Peers take part if they can be imported, under bf16 autocast.
Usage: PYTHONPATH=. python benchmarks/gpu.py [--turns N] [--quick] [--out FILE]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from publish import publish
from step_peers import PEERS, in_bf16

from sae_cli.config.compose import compose
from sae_cli.dictionary.stack import SAEStack
from sae_cli.training.step import Stepper

KINDS = {"relu": ["sae=relu", "sparsity=l1"], "topk": ["sae=topk", "sparsity=none"]}
STEPS = 10
"""Steps of a turn: the device is waited for after these only."""


def stepper(kind: str, path: str, latents: int, members: int, l0: int, x_BD: torch.Tensor) -> Stepper:
    fixed = [f"sae.latents={latents}", f"train.batch={len(x_BD)}", "train.lr=1e-9", f"sae.k={l0}", "orthogonality=none"]
    config = compose(["experiment=demo", *KINDS[kind], *fixed, "train.precision=bf16", f"train.sparse={path}"])
    stack = SAEStack.initialise([config] * members, torch.zeros(x_BD.shape[1]), "cuda", torch.empty(0))
    if kind == "relu":
        m_N = stack.pre_activations(stack.centred(x_BD[:256]))[0].detach().flatten().cpu()
        stack.b_enc_KF.fill_(-m_N.kthvalue(len(m_N) - l0 * 256).values.item())
    return Stepper(stack, [config] * members, "cuda")


def products(latents: int, x_BD: torch.Tensor) -> Callable[[int], object]:
    """Return the five dense products of a step: encode, decode, and the gradients of W_dec, f and W_enc."""
    (B, D), F = x_BD.shape, latents
    x_BD, f_BF, W_FD = (torch.randn(n, m, device="cuda").bfloat16() for n, m in ((B, D), (B, F), (F, D)))

    def run(turn: int) -> None:
        x_BD @ W_FD.T, f_BF @ W_FD, f_BF.T @ x_BD, x_BD @ W_FD.T, x_BD.T @ f_BF

    return run


def in_turn(actions: dict[str, Callable[[int], object]], turns: int) -> dict[str, list[float]]:
    """Return milliseconds a step of each action in each turn; the first two turns are not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + 2):
        for name, action in actions.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            for step in range(STEPS):
                action(turn * STEPS + step)
            torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - began) / STEPS)
    return {name: found[2:] for name, found in times.items()}


def ratio(times: dict[str, list[float]], slower: str, faster: str) -> float:
    return round(statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True)), 2)


def kernels(action: Callable[[int], object]) -> dict[str, float]:
    """Return the kernels that take most time, microseconds a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for step in range(STEPS):
            action(step)
        torch.cuda.synchronize()
    found = {event.key[:60]: event.self_device_time_total / STEPS for event in profile.key_averages()}
    largest = sorted(found, key=found.__getitem__, reverse=True)[:25]
    return {"all": round(sum(found.values()), 1), **{name: round(found[name], 1) for name in largest}}


def one(kind: str, width: int, latents: int, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare a step of one member by entries with dense products, with the bound, and with peers."""
    x_BD = torch.randn(batch, width, device="cuda")
    made = {path: stepper(kind, path, latents, 1, arguments.l0, x_BD) for path in ("dense", "auto")}
    actions: dict[str, Callable[[int], object]] = {"bound": products(latents, x_BD)}
    actions |= {path: lambda turn, path=path: made[path].step(turn, x_BD) for path in made}
    failed: dict[str, str] = {}
    for name, (make, kinds) in PEERS.items():
        if kind in kinds and find_spec(name):
            try:
                peer = in_bf16(make(kind, x_BD, latents, arguments.l0), "cuda")
                peer(0)
                actions[name] = peer
            except Exception as error:  # whatever a peer says ends its part alone
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times = in_turn(actions, arguments.turns)
    medians = {name: statistics.median(found) for name, found in times.items()}
    peers = sorted(medians.keys() & PEERS.keys(), key=medians.__getitem__)
    return {
        "shape": {"D": width, "F": latents, "B": batch, "kind": kind},
        "ms": {name: round(ms, 3) for name, ms in medians.items()},
        "tokens_per_second": {name: round(1000 * batch / ms) for name, ms in medians.items()},
        "l0": {path: round(made[path].take_metrics(STEPS * (arguments.turns + 2))[0, 5].item(), 1) for path in made},
        "dense_over_sparse": ratio(times, "dense", "auto"),
        "bound_over_sparse": ratio(times, "bound", "auto"),
        "best_peer": peers[0] if peers else None,
        "peer_over_sparse": ratio(times, peers[0], "auto") if peers else None,
        "failed": failed,
        "bound_tflops": round(1e-9 * 10 * batch * width * latents / medians["bound"]),
        "kernels": kernels(actions["auto"]),
    }


def sweep(width: int, latents: int, batch: int, members: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare a step of a stack with as many steps of one member."""
    x_BD = torch.randn(batch, width, device="cuda")
    made = {count: stepper("relu", "auto", latents, count, arguments.l0, x_BD) for count in (1, members)}
    actions: dict[str, Callable[[int], object]] = {
        "stack": lambda turn: made[members].step(turn, x_BD),
        "single": lambda turn: made[1].step(turn, x_BD),
    }
    times = in_turn(actions, arguments.turns)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "shape": {"D": width, "F": latents, "B": batch, "members": members},
        "ms": {name: round(ms, 3) for name, ms in medians.items()},
        "member_tokens_per_second": round(1000 * members * batch / medians["stack"]),
        "one_by_one_over_stack": round(members * ratio(times, "single", "stack"), 2),
        "kernels": kernels(actions["stack"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--l0", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device here, nothing is measured")
        return
    (width, latents, batch), (sweep_width, sweep_latents, members) = (768, 24576, 4096), (512, 8192, 16)
    if arguments.quick:
        (width, latents, batch), (sweep_width, sweep_latents, members) = (128, 8192, 2048), (64, 4096, 4)
    result = {
        "what": f"milliseconds of a training step in bf16, L0 {arguments.l0}, medians of {arguments.turns} turns",
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "one": [one(kind, width, latents, batch, arguments) for kind in KINDS],
        "sweep": sweep(sweep_width, sweep_latents, batch, members, arguments),
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
