"""Wall time of an 8-point sweep as one stack, evaluation included, against eight `sae train` + `sae eval` commands.

Both sides start from the same finished cache and run in turn in this process's child processes, so the ratio holds on
a noisy machine. Usage: python benchmarks/stack_against_singles.py [--repeats N] [--out FILE]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from publish import publish

SETTINGS = ["experiment=demo", "tracker=jsonl", "orthogonality=chunked"]
LAMBDAS, GAMMAS = [0.5, 1, 2, 4], [0, 0.25]


def sae(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "sae_cli", *words], check=True, capture_output=True)


def one_stack(folder: str, cache: str) -> float:
    began = time.perf_counter()
    grid = [f"sparsity.weight={','.join(map(str, LAMBDAS))}", f"orthogonality.weight={','.join(map(str, GAMMAS))}"]
    sae("sweep", *SETTINGS, *grid, f"runs_dir={folder}", cache, "name=stack")
    return time.perf_counter() - began


def singles(folder: str, cache: str) -> float:
    began = time.perf_counter()
    for weight in LAMBDAS:
        for gamma in GAMMAS:
            point = [f"sparsity.weight={weight}", f"orthogonality.weight={gamma}", f"name=single-{weight}-{gamma}"]
            sae("train", *SETTINGS, *point, f"runs_dir={folder}", cache)
            sae("eval", f"{folder}/single-{weight}-{gamma}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = f"cache.dir={folder}/caches"
        sae("cache", *SETTINGS, cache)
        for repeat in range(arguments.repeats):
            stack, alone = one_stack(f"{folder}/{repeat}", cache), singles(f"{folder}/{repeat}", cache)
            rows.append({"stack_seconds": round(stack, 1), "singles_seconds": round(alone, 1), "ratio": stack / alone})
    result = {
        "what": "8-point sweep as one stack / eight sae train + sae eval, same cache, evaluation included",
        "rows": rows,
        "median_ratio": round(statistics.median(row["ratio"] for row in rows), 3),
        "settings": SETTINGS,
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
