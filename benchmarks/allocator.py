"""Time of a training step with and without `keep_freed_memory`, in turn, each in a fresh process.

Usage: python benchmarks/allocator.py [--repeats N] [--out FILE]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from publish import publish

MEMBERS, WARM, STEPS = 4, 5, 30


def step_milliseconds(keep: bool) -> float:
    """Median time of one step of one member at the demo's shape (D 256, F 1,024, B 1,024)."""
    import torch

    from sae_cli.config.compose import compose
    from sae_cli.dictionary.stack import SAEStack
    from sae_cli.training.allocator import keep_freed_memory
    from sae_cli.training.step import Stepper

    if keep:
        keep_freed_memory()
    configs = [compose(["experiment=demo", "sae=relu"])] * MEMBERS
    stack = SAEStack.initialise(configs, torch.zeros(256), "cpu", torch.empty(0))
    stepper, x_BD = Stepper(stack, configs, "cpu"), torch.randn(1024, 256)
    times = []
    for step in range(WARM + STEPS):
        began = time.perf_counter()
        stepper.step(step, x_BD)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[WARM:]) / MEMBERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=["default", "kept"])
    arguments = parser.parse_args()
    if arguments.measure:
        print(step_milliseconds(arguments.measure == "kept"))
        return
    rows = []
    for _ in range(arguments.repeats):
        row = {}
        for kind in ("default", "kept"):
            command = [sys.executable, __file__, "--measure", kind]
            row[kind] = round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 2)
        rows.append(row | {"ratio": round(row["kept"] / row["default"], 3)})
    result = {
        "what": "milliseconds per member and step, D 256, F 1,024, B 1,024, bf16: kept memory / malloc's default",
        "rows": rows,
        "median_ratio": statistics.median(row["ratio"] for row in rows),
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
