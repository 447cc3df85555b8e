"""What training costs against its sizes, on this machine, and a cost model fitted to that.

Curves around one size (D 512, F 4,096, B 2,048, L0 50, bf16), memory, cache files, and ranks where torchrun can share
out work. `--predict` prints what the model means for a large dictionary, without measuring; `--write` puts the tables
between the markers of a Markdown file.
Usage: OMP_NUM_THREADS=2 python benchmarks/scaling.py [--out FILE] [--write docs/scaling.md]
       python benchmarks/scaling.py --predict [--from FILE]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_model import TERMS, Device, Goal, fitted, predict, terms
from publish import publish

from sae_cli.bench.machine import cache_rates, machine
from sae_cli.bench.step import Size, bench_config, measure
from sae_cli.config.schema import TrainConfig
from sae_cli.training.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "scaling.json"
BASE = {"width": 512, "latents": 4096, "batch": 2048, "l0": 50, "members": 1, "kind": "relu"}
CURVES: dict[str, list[Any]] = {
    "latents": [1024, 2048, 4096, 8192, 16384, 32768],
    "width": [128, 256, 512, 1024, 2048],
    "batch": [256, 512, 1024, 2048, 4096, 8192],
    "l0": [8, 16, 32, 64, 128, 256],
    "members": [1, 2, 4, 8],
    "k": [8, 16, 32, 64, 128],
}
NAMES = {"latents": "F", "width": "D", "batch": "B", "l0": "L0", "members": "members", "k": "k (TopK)"}
CACHES = [1 << 14, 1 << 15, 1 << 16]
"""Rows of width 512."""
CACHE_MEMORY = 8 << 20
RANKS = (1, 2)
WORDS = {"relu": ["sae=relu", "sparsity=l1"], "topk": ["sae=topk", "sparsity=none"]}


def point(curve: str, value: Any, seconds: float) -> dict[str, Any]:
    at = BASE | ({"l0": value, "kind": "topk"} if curve == "k" else {curve: value})
    words = [*WORDS[at["kind"]], f"train.batch={at['batch']}"]
    size = Size(at["width"], at["latents"], at["members"])
    row = measure(bench_config(words, size.latents, at["l0"]), size, "cpu", at["l0"], seconds)
    return {"curve": curve, "value": value, "kind": at["kind"], **row}


def rank_rows(tokens: int = 61_440) -> Iterator[dict[str, Any]]:
    """Yield training by processes that torchrun starts, by what they share out; steps after the first log line."""
    if "parallel" not in {field.name for field in fields(TrainConfig)}:
        return
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", np.random.default_rng(0).standard_normal((16384, 512), np.float32))
        place = [f"source.path={folder}/x.npy", f"cache.dir={folder}/caches", "cache.tokens=0", "tracker=jsonl"]
        words = ["source=vectors", *place, "sae=topk", "sae.k=50", "sae.latents=4096", "train.batch=2048"]
        for way in ("rows", "latents"):
            for ranks in RANKS:
                runs = f"{folder}/{way}{ranks}"
                train = [
                    *words,
                    f"train.tokens={tokens}",
                    "train.log_every=5",
                    f"train.parallel={way}",
                    f"runs_dir={runs}",
                ]
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(
                    [*launch, "-m", "sae_cli", "-q", "train", *train],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                )
                (metrics,) = Path(runs).glob("*/*/metrics.jsonl")
                lines = [json.loads(line) for line in metrics.read_text().splitlines()]
                first, last = lines[0], lines[-1]
                rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
                yield {"shares_out": way, "ranks": ranks, "tokens_per_second": round(rate)}


def measured(seconds: float) -> dict[str, Any]:
    keep_freed_memory()
    point("latents", 1024, 0)  # loads what a first step loads
    rows = []
    for curve, values in CURVES.items():
        for value in values:
            rows.append(point(curve, value, seconds))
            print(f"{curve} {value}: {rows[-1]['ms']:.1f} ms", file=sys.stderr)
    return {
        "what": "training steps, memory and caches against their sizes, and a cost model fitted to the steps",
        "threads": torch.get_num_threads(),
        "timed": f"Wall time, load {os.getloadavg()[0]:.1f}",
        "ceilings": machine("cpu"),
        "rows": rows,
        "caches": [{"rows": rows, **cache_rates(512, rows, 0.5, CACHE_MEMORY)} for rows in CACHES],
        "ranks": list(rank_rows()),
        "model": fitted(rows),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def curve_tables(result: dict[str, Any]) -> str:
    """Return one table per curve: measured, as the model says, and memory."""
    ceilings, base = result["ceilings"], ", ".join(f"{NAMES.get(name, name)} {value}" for name, value in BASE.items())
    tables = [
        f"{result['timed']}; {ceilings['device']}, {result['threads']} thread(s), torch {ceilings['torch']}; bf16 "
        f"products {ceilings['bf16_flops'] / 1e9:.0f} Gflop/s, fp32 {ceilings['fp32_flops'] / 1e9:.0f}, copies "
        f"{ceilings['copy_bytes'] / 1e9:.0f} GB/s. Beside the curve's own size: {base}."
    ]
    for curve in CURVES:
        chosen = [
            (row, residual)
            for row, residual in zip(result["rows"], result["model"]["residuals"], strict=True)
            if row["curve"] == curve
        ]
        heads = [f"{row['value']:,}" for row, _ in chosen]
        lines = [
            ["ms per step", *(f"{row['ms']:.1f}" for row, _ in chosen)],
            ["model", *(f"{row['ms'] * (1 + residual):.1f}" for row, residual in chosen)],
            ["member-tokens/s", *(f"{row['member_tokens_per_second']:,.0f}" for row, _ in chosen)],
            ["peak memory, MB", *(f"{(row['peak_bytes'] or 0) / 1e6:.0f}" for row, _ in chosen)],
        ]
        tables.append(table([NAMES[curve], *heads], lines))
    lines = [
        [
            f"{row['rows']:,}",
            f"{row['bytes_per_row']:.0f}",
            *(f"{row[name] / 1e6:,.0f}" for name in ("write_bytes", "read_bytes", "write_peak", "read_peak")),
        ]
        for row in result["caches"]
    ]
    heads = ["rows of 512", "bytes per row on disk", "written, MB/s", "read mixed, MB/s", "peak writing, MB", "reading"]
    tables.append(table(heads, lines))
    if result["ranks"]:
        lines = [[row["shares_out"], row["ranks"], f"{row['tokens_per_second']:,}"] for row in result["ranks"]]
        tables.append(table(["train.parallel", "ranks of one thread", "tokens/s (TopK 50)"], lines))
    return "\n\n".join(tables)


def model_table(result: dict[str, Any]) -> str:
    """Return the constants as rates, the share of the base step that each takes, and residuals."""
    model = result["model"]
    base = next(row for row in result["rows"] if row["curve"] == "members" and row["value"] == 1)
    amounts = dict(zip(TERMS, terms(base).tolist(), strict=True))
    lines = []
    for name, constant in model["seconds_per"].items():
        rate = f"{1 / constant / 1e9:.3g} {'Gflop/s' if name == 'flops' else 'GB/s'}" if constant else "costs nothing"
        rate = f"{1e3 * constant:.2f} ms" if name == "overhead" else rate
        lines.append([name.replace("_", " "), rate, f"{1000 * constant * amounts[name]:.1f}"])
    off = sorted(abs(value) for value in model["residuals"])
    heavy = sorted(abs(value) for value in model["memory_residuals"])
    memory = model["bytes_per"]
    return "\n\n".join(
        [
            table(["term", "fitted", "ms of the base step"], lines),
            f"Steps: median error {off[len(off) // 2]:.1%}, largest {off[-1]:.1%} over {len(off)} points. "
            f"Memory: {memory['parameters']:.1f} bytes per parameter, {memory['latents']:.1f} per number of (B, F), "
            f"{memory['fixed'] / 1e6:.0f} MB besides; median error {heavy[len(heavy) // 2]:.1%}, "
            f"largest {heavy[-1]:.1%}.",
        ]
    )


def prediction(result: dict[str, Any]) -> str:
    """Return the table of what a large dictionary takes."""
    goal, device = Goal(), Device()
    beside = result["caches"][-1]["bytes_per_row"] - 2 * 512
    return table(["", ""], predict(goal, device, 2 * goal.width + beside))


def write(result: dict[str, Any], document: Path) -> None:
    """Put the tables between the markers of a Markdown file."""
    text = document.read_text()
    for name, part in (("curves", curve_tables), ("model", model_table), ("prediction", prediction)):
        opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.S)
        assert pattern.search(text), f"{document} has no {opening} ... {closing}"
        new = f"{opening}\n{part(result)}\n{closing}"
        text = pattern.sub(lambda _, new=new: new, text)
    document.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time per point")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    parser.add_argument("--predict", action="store_true", help="measure nothing; print the prediction")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="measure nothing; read this result")
    arguments = parser.parse_args()
    source = arguments.source or (RESULTS if arguments.predict else None)
    result = json.loads(source.read_text()) if source else measured(arguments.seconds)
    if arguments.write:
        write(result, arguments.write)
    if arguments.predict:
        print(prediction(result))
    elif not source:
        publish(result, arguments.out)


if __name__ == "__main__":
    main()
