"""Run folders whose numbers come from formulas, in the files and the schema of real ones."""

import json
import math
from pathlib import Path

import numpy as np

from sae_cli.config.convert import from_dict, to_yaml
from sae_cli.config.schema import Config

EFFECT = {"relu": 1.0, "prolu_relu": 0.86, "prolu_ste": 0.78}


def config(
    nonlinearity: str = "relu", weight: float = 1.0, gamma: float = 0.0, seed: int = 0, name: str = "demo"
) -> Config:
    return from_dict(
        {
            "model": {"name": "tiny", "path": "bundled:tiny", "hook": "blocks.1.hook_out"},
            "text": {"name": "wiki", "path": "bundled:wiki"},
            "source": {"kind": "language_model"},
            "sae": {"nonlinearity": nonlinearity},
            "sparsity": {"kind": "l1", "weight": weight},
            "orthogonality": {"kind": "chunked" if gamma else "none", "weight": gamma},
            "tracker": {"kind": "jsonl"},
            "name": name,
            "seed": seed,
        }
    )


def numbers(point: Config) -> dict[str, float]:
    """Metrics that fall and rise with lambda as real ones do."""
    weight, gamma = point.sparsity.weight, point.orthogonality.weight
    effect = EFFECT.get(point.sae.nonlinearity, 1.0) * (1 + 0.04 * point.seed)
    jitter = 1 + 0.02 * math.sin(12.9 * point.seed + 7.3 * weight) * (point.seed > 0)
    l0 = 62 * weight**-1.15 * effect * (1 - 0.4 * gamma) * jitter
    fvu = 0.045 * weight**0.62 * effect**0.5 * (1 + 0.1 * gamma) / jitter**0.5
    return {
        "l0": l0,
        "fvu": fvu,
        "l1": 41 * weight**-0.7 * effect**1.2,
        "mse": 310 * fvu,
        "delta_ce": 0.9 * fvu + 0.004 * weight,
        "nearest": 0.34 * math.exp(-3.2 * gamma) * effect**-0.5 * weight**-0.1 + 0.12,
        "dead": 0.02 * weight**0.5,
        "negative": 0.55 + 0.1 * math.log2(1 + weight),
    }


def evaluation(point: Config, truth: bool = False) -> dict:
    n = numbers(point)
    cosine, density, bias = np.linspace(-1, 1, 201), np.linspace(-8, 0, 81), np.linspace(-1.5, 0.8, 65)

    def bell(edges: np.ndarray, centre: float, width: float) -> np.ndarray:
        middle = (edges[1:] + edges[:-1]) / 2
        share = np.exp(-(((middle - centre) / width) ** 2) / 2)
        return share / share.sum()

    alive = 0.8 * bell(cosine, n["nearest"], 0.06) + 0.2 * bell(cosine, min(0.9, n["nearest"] + 0.25), 0.12)
    counts = 1024 * bell(density, math.log10(n["l0"] / 1024) - 0.4, 0.55)
    result = {
        "version": 1,
        "rows": 16384,
        "reconstruction": {k: n[k] for k in ("l0", "l1", "mse", "fvu")} | {"shrinkage": 1 - 0.3 * n["fvu"]},
        "latents": {
            "dead": n["dead"],
            "dead_over_rows": 16384,
            "density_histogram": {"edges": density.tolist(), "counts": counts.round().tolist()},
        },
        "biases": {
            "negative": n["negative"],
            "histogram": {"edges": bias.tolist(), "counts": (1024 * bell(bias, -0.1 - n["dead"] * 6, 0.2)).tolist()},
        },
        "geometry": {
            "alive": {"count": 1000, "nearest_median": n["nearest"]},
            "random_alive": {"nearest_median": 0.186},
            "histogram": {
                "edges": cosine.tolist(),
                "all": alive.tolist(),
                "alive": alive.tolist(),
                "random": bell(cosine, 0.19, 0.024).tolist(),
            },
        },
        "language_model": {"delta_nats": n["delta_ce"], "recovered_mean": 1 - n["delta_ce"] / 5, "kl": n["delta_ce"]},
    }
    if truth:
        noise = 0.25 * np.abs(np.random.default_rng(point.seed).normal(size=(24, 32)))
        heatmap = np.clip(noise + np.eye(24, 32) * (1 - n["fvu"] * 4), 0, 1)
        result["ground_truth"] = {"mcc": 0.9 - n["fvu"], "mmcs": 0.88 - n["fvu"], "heatmap": heatmap.tolist()}
    return result


def write_run(
    folder: Path, point: Config, state: str = "done", error: str = "", evaluated: bool = True, truth: bool = False
) -> Path:
    """Write one run folder and return it; its name is its run id."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(point))
    status = {"state": state, "step": 480, "steps": 480, "error": error, "run_id": folder.name}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "stamp.json").write_text(json.dumps({"device": "cpu", "run_id": folder.name}))
    n = numbers(point)
    lines = []
    for step in range(1, 481 if state == "done" else 160):
        left = math.exp(-step / 60)
        wave = 1 + 0.03 * math.sin(step * 1.7 + n["l0"])
        values = {
            "fvu": n["fvu"] * wave + left * 0.8,
            "l0": n["l0"] * wave + 150 * left,
            "dead": n["dead"] * (1 - left),
        }
        values |= {"loss": (n["mse"] + 30) * wave + 200 * left, "negative_biases": n["negative"] * (1 - left)}
        if step % 40 == 0:
            values |= {f"bias_p{q:02d}": -0.1 * (1 - left) + 0.002 * (q - 50) for q in (5, 50, 95)}
            values["nearest_cosine"] = n["nearest"] + 0.1 * left
            if point.orthogonality.weight:
                values |= {"neighbour_recall": 0.98 - 0.3 * left, "neighbour_gap": 0.001 + 0.02 * left}
        # Points of one gamma trained together: they share a clock, and a penalty takes time.
        values["seconds"] = round(step * (0.1 + 0.2 * point.orthogonality.weight), 3)
        lines.append(json.dumps({"step": step, "tokens": step * 2048, **values}))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if evaluated and state == "done":
        (folder / "eval.json").write_text(json.dumps(evaluation(point, truth)))
    return folder


def write_sweep(
    folder: Path,
    truth: bool = False,
    lambdas: tuple[float, ...] = (1.0, 2.0, 4.0),
    seeds: int = 1,
    gammas: tuple[float, ...] = (0.0, 0.25),
    nonlinearities: tuple[str, ...] = tuple(EFFECT),
) -> Path:
    """Write a run for each nonlinearity x lambda x gamma x seed."""
    grid = [(n, w, g, s) for n in nonlinearities for w in lambdas for g in gammas for s in range(seeds)]
    for index, (nonlinearity, weight, gamma, seed) in enumerate(grid):
        write_run(folder / f"{index * 7919 + 4096:010x}", config(nonlinearity, weight, gamma, seed), truth=truth)
    return folder
