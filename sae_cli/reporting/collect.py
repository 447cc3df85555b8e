"""Run folders read into points: configuration, state, training curve and evaluation; nothing is trusted to be whole."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_cli.config.convert import load_flat
from sae_cli.errors import UserError
from sae_cli.runs.directory import RunDirectory, find_runs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """One number of a point: where it stands in eval.json, and in a training line where that has the same meaning."""

    name: str
    where: str
    label: str
    trained: str = ""


METRICS = (
    Metric("l0", "reconstruction.l0", "L0 (active latents per row)", "l0"),
    Metric("fvu", "reconstruction.fvu", "FVU (share of variance unexplained)", "fvu"),
    Metric("delta_ce", "language_model.delta_nats", "delta CE (nats per token)"),
    Metric("l1", "reconstruction.l1", "L1 (sum of active latents per row)"),
    Metric("mse", "reconstruction.mse", "MSE (squared error per row)"),
    Metric("nearest_cosine", "geometry.alive.nearest_median", "nearest cosine (median of alive latents)"),
    Metric("nearest_p99", "geometry.alive.nearest_p99", "nearest cosine (99th percentile of alive latents)"),
    Metric(
        "nearest_random", "geometry.random_alive.nearest_median", "random nearest cosine (median of random directions)"
    ),
    Metric("mcc", "ground_truth.mcc", "MCC (matched mean |cos| with true features)"),
    Metric("mmcs", "ground_truth.mmcs", "MMCS (mean largest |cos| of a true feature)"),
    Metric("f1", "ground_truth.f1_present", "F1 (matched latents as detectors of features that fire)"),
    Metric("absorption", "ground_truth.absorption", "absorption (parent's latent silent beside a child)"),
    Metric("true_composition", "ground_truth.composition", "composition (second largest |cos| with true features)"),
    Metric("composition", "composition.ev", "composition (EV of a meta-SAE on directions)"),
    Metric("dead", "latents.dead", "dead latents (share)", "dead"),
    Metric("negative_biases", "biases.negative", "negative biases (share)", "negative_biases"),
    Metric("shrinkage", "reconstruction.shrinkage", "shrinkage (below 1: reconstructions too short)"),
    Metric("recovered", "language_model.recovered_mean", "CE recovered (against mean ablation)"),
    Metric("kl", "language_model.kl", "KL (nats per token)"),
)
"""The numbers of the report in the order of its table."""

LABELS = {metric.name: metric.label for metric in METRICS}
SHORT = {name: label.split(" (")[0] for name, label in LABELS.items()}

HISTOGRAMS = ("geometry.histogram", "latents.density_histogram", "biases.histogram")
HEATMAP = "ground_truth.heatmap"
HEATMAP_BIAS = "ground_truth.heatmap_bias"
"""Where the arrays of eval.json stand."""

NOT_SHOWN = ("name", "device", "runs_dir", "tracker.", "eval.", "cache.dir")
"""Configuration that does not tell points apart: where they ran and where they were logged."""


@dataclass(eq=False)
class Point:
    """What a report knows of one run."""

    run_id: str
    folder: str
    state: str
    """new | running | done | failed | interrupted as the run says, or corrupt: its files cannot be read."""
    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """Flat: {"sae.latents": 1024, ...}; empty if corrupt."""
    status: dict[str, Any] = field(default_factory=dict)
    """status.json."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """The METRICS that are known and finite."""

    @cached_property
    def curve(self) -> "pd.DataFrame":
        """The lines of metrics.jsonl as a table; what is no number there is NaN."""
        import pandas as pd  # 0.4 s, which `sae show` need not wait for

        return pd.DataFrame(self.lines).apply(pd.to_numeric, errors="coerce")


def at(data: Any, where: str) -> Any:
    """Return the value at a dotted place of nested dictionaries, None where a part is missing."""
    for key in where.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def collect(folders: Sequence[Path]) -> list[Point]:
    """Read every run at or below the folders, each once. UserError if a folder is missing or holds no run."""
    if not folders:
        raise UserError("no folder given; name a run folder or a folder of runs, such as runs/demo")
    runs = {run.path.resolve(): run for folder in folders for run in find_runs(folder)}
    return [_read(run) for run in runs.values()]


def frame(points: list[Point]) -> "pd.DataFrame":
    """One row per point: run_id, folder, state, error, every metric, then config.* (lists as JSON text)."""
    import pandas as pd

    rows = []
    for point in points:
        row: dict[str, Any] = {name: getattr(point, name) for name in ("run_id", "folder", "state", "error")}
        row |= {"evaluated": bool(point.evaluation)} | dict.fromkeys(LABELS, math.nan) | point.metrics
        config = point.config.items()
        rows.append(row | {f"config.{key}": json.dumps(v) if isinstance(v, list) else v for key, v in config})
    return pd.DataFrame(rows)


def varying(points: list[Point]) -> list[str]:
    """Keys of the configuration in which the points differ, in the schema's order."""
    configs = [point.config for point in points if point.config]
    keys = dict.fromkeys(key for config in configs for key in config if not key.startswith(NOT_SHOWN))
    return [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]


def _read(run: RunDirectory) -> Point:
    """Read one run; a part that cannot be read makes the point corrupt and the rest is kept."""
    point = Point(run.path.name, str(run.path), "new")
    problems: list[str] = []

    def attempt(name: str, kind: type, read: Callable[[], Any]) -> Any:
        try:
            value = read()
            if not isinstance(value, kind):
                raise ValueError(f"holds {type(value).__name__}, not {kind.__name__}")
            return value
        except Exception as error:
            # Whatever is wrong with one run's files, the report of the others has to come out.
            problems.append(f"{name}: {error}".split("\n")[0])
            return kind()

    point.config = attempt("config.yaml", dict, lambda: load_flat(run.path / "config.yaml"))
    point.status = status = attempt("status.json", dict, lambda: run.status)
    lines = attempt("metrics.jsonl", list, run.metrics)
    point.evaluation = attempt("eval.json", dict, lambda: _evaluation(run))
    point.lines = lines = [line for line in lines if isinstance(line, dict)]
    point.run_id, point.state = str(status.get("run_id") or point.run_id), str(status.get("state", "new"))
    point.error = str(status.get("error") or "")
    if problems:
        point.state, point.error = "corrupt", "; ".join(problems)
    last = lines[-1] if lines else {}
    for metric in METRICS:
        for value in (at(point.evaluation, metric.where), last.get(metric.trained)):
            if isinstance(value, int | float) and math.isfinite(value):
                point.metrics[metric.name] = float(value)
                break
    return point


def _evaluation(run: RunDirectory) -> dict[str, Any]:
    """eval.json with its arrays checked, so that figures can rely on their shapes. ValueError if one is wrong."""
    evaluation = run.evaluation or {}
    for place in HISTOGRAMS:
        if histogram := at(evaluation, place):
            lengths = {name: len(np.asarray(values, dtype=float)) for name, values in histogram.items()}
            edges = lengths.pop("edges", 0)
            if any(length != edges - 1 for length in lengths.values()):
                raise ValueError(f"{place} needs one edge more than counts")
    if np.asarray(at(evaluation, HEATMAP) or [[]], dtype=float).ndim != 2:
        raise ValueError(f"{HEATMAP} is not a table")
    return evaluation
