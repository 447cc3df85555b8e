"""Run folders read into points: configuration, state, training curve and evaluation; nothing is trusted to be whole."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    Metric("composition_random", "composition.random_ev", "random composition (EV of a meta-SAE on random directions)"),
    Metric("hubs", "geometry.alive.hub10_share", "hubs (share of directions nearest to one of ten)"),
    Metric("probe_1", "probing.mean.sae.1.accuracy", "probe of 1 latent (accuracy, mean over tasks)"),
    Metric("probe_16", "probing.mean.sae.16.accuracy", "probe of 16 latents (accuracy, mean over tasks)"),
    Metric("probe_1_random", "probing.mean.random.1.accuracy", "probe of 1 random latent (control)"),
    Metric("probe_16_random", "probing.mean.random.16.accuracy", "probe of 16 random latents (control)"),
    Metric("probe_x", "probing.mean.dense.accuracy", "probe of x (accuracy of all D numbers)"),
    Metric("letter_absorbed", "first_letter.sae.absorbed", "letters absorbed (share of words read)"),
    Metric("letter_absorbed_random", "first_letter.random.absorbed", "letters absorbed at random (control)"),
    Metric("letter_f1", "first_letter.sae.f1", "letter F1 (main latents as detectors of first letters)"),
    Metric("letter_f1_random", "first_letter.random.f1", "letter F1 at random (control)"),
    Metric(
        "neighbour_recall", "", "neighbour recall (share of true nearest that the penalty sees)", "neighbour_recall"
    ),
    Metric("neighbour_gap", "", "neighbour gap (cosine of the true nearest above the nearest seen)", "neighbour_gap"),
    Metric("step_seconds", "", "step time (seconds per step of all that trained together)", "step_seconds"),
)
"""The numbers of the report in the order of its table; one that no run has is shown nowhere."""

LABELS = {metric.name: metric.label for metric in METRICS}
SHORT = {name: label.split(" (")[0] for name, label in LABELS.items()}

HISTOGRAMS = ("geometry.histogram", "latents.density_histogram", "biases.histogram")
HEATMAP = "ground_truth.heatmap"
HEATMAP_BIAS = "ground_truth.heatmap_bias"
"""Where the arrays of eval.json stand."""

NOT_SHOWN = ("name", "device", "runs_dir", "tracker.", "eval.", "cache.dir", "cache.staging")
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
    """eval.json, its HISTOGRAMS and HEATMAP as arrays."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The METRICS that are known and finite."""
    sweep: str = ""
    """Name of the folder it was found in, if there are several."""
    device: str = ""

    @cached_property
    def curve(self) -> dict[str, np.ndarray]:
        """The columns of `lines`, and `step_seconds` between them; what is no number there is NaN."""
        keys = dict.fromkeys(key for line in self.lines for key in line)
        columns = {key: _numbers([line.get(key) for line in self.lines]) for key in keys}
        if {"seconds", "step"} <= set(columns) and len(self.lines) > 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                between = np.diff(columns["seconds"]) / np.diff(columns["step"])
            columns["step_seconds"] = np.append(np.nan, between)
        return columns


def _numbers(values: list[Any]) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        known = [type(value) in (int, float) and abs(value) < 1e300 for value in values]
        return np.array([value if use else np.nan for value, use in zip(values, known, strict=True)], dtype=float)


def at(data: Any, where: str) -> Any:
    """The value at a dotted place of nested dicts, or None."""
    for key in where.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def collect(folders: Sequence[Path]) -> list[Point]:
    """Read every run at or below the folders, each once. UserError if a folder is missing or holds no run."""
    if not folders:
        raise UserError("no folder given; name a run folder or a folder of runs, such as runs/demo")
    found: dict[Path, tuple[RunDirectory, Path]] = {}
    for folder in folders:
        whole = not (folder / "config.yaml").exists()
        lost = {file.parent for file in folder.glob("**/status.json") if "wandb" not in file.parts} if whole else set()
        for run in [*find_runs(folder), *map(RunDirectory, sorted(lost))]:
            found.setdefault(run.path.resolve(), (run, (folder if whole else folder.parent).resolve()))
    sweeps = dict.fromkeys(sweep for _, sweep in found.values())
    names = [sweep.name for sweep in sweeps]
    called = {sweep: sweep.name if names.count(sweep.name) == 1 else str(sweep) for sweep in sweeps}
    points = []
    for run, sweep in found.values():
        points.append(_read(run))
        points[-1].sweep = called[sweep] if len(sweeps) > 1 else ""
    return points


def frame(points: list[Point]) -> "pd.DataFrame":
    """One row per point: run_id, folder, state, error, every metric, then config.* (lists as JSON text)."""
    import pandas as pd

    rows = []
    for point in points:
        row: dict[str, Any] = {name: getattr(point, name) for name in ("run_id", "folder", "state", "error")}
        row |= {"sweep": point.sweep} if point.sweep else {}
        row |= {"evaluated": bool(point.evaluation)} | dict.fromkeys(LABELS, math.nan) | point.metrics
        config = point.config.items()
        rows.append(row | {f"config.{key}": json.dumps(v) if isinstance(v, list) else v for key, v in config})
    return pd.DataFrame(rows)


def varying(points: list[Point]) -> list[str]:
    """Keys of the configuration in which the points differ, in the schema's order."""
    configs = [point.config for point in points if point.config]
    keys = dict.fromkeys(key for config in configs for key in config if not key.startswith(NOT_SHOWN))
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


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

    point.config = attempt("config.yaml", dict, lambda: run.flat_config)
    point.status = status = attempt("status.json", dict, lambda: run.status)
    stamp = attempt("stamp.json", dict, lambda: run.stamp if (run.path / "stamp.json").exists() else {})
    lines = attempt("metrics.jsonl", list, run.metrics)
    point.lines = [line for line in lines if isinstance(line, dict)]
    point.evaluation = attempt("eval.json", dict, lambda: _evaluation(run))
    point.run_id, point.state = str(status.get("run_id") or point.run_id), str(status.get("state", "new"))
    point.error, point.device = str(status.get("error") or ""), str(stamp.get("device", ""))
    if problems:
        point.state, point.error = "corrupt", "; ".join(problems)
    last = dict(point.lines[-1]) if point.lines else {}
    if "step_seconds" in point.curve:
        times = point.curve["step_seconds"]
        last["step_seconds"] = float(np.median(times[np.isfinite(times)])) if np.isfinite(times).any() else None
    for metric in METRICS:
        for value in (at(point.evaluation, metric.where), last.get(metric.trained)):
            if isinstance(value, int | float) and abs(value) < math.inf:
                point.metrics[metric.name] = float(value)
                break
    return point


def _evaluation(run: RunDirectory) -> dict[str, Any]:
    """eval.json with its numbers and arrays checked, so that figures can rely on them. ValueError if one is wrong."""
    evaluation = run.evaluation or {}
    for metric in METRICS:
        section, value = metric.where.split(".")[0], at(evaluation, metric.where)
        if not isinstance(evaluation.get(section, {}), dict):
            raise ValueError(f"{section} holds {type(evaluation[section]).__name__}, not dict")
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{metric.where} holds {type(value).__name__}, not a number")
        float(value or 0)  # raises for whole numbers beyond all floats
    for place in HISTOGRAMS:
        if histogram := at(evaluation, place):
            if not isinstance(histogram, dict) or "edges" not in histogram:
                raise ValueError(f"{place} has no edges")
            for name, values in histogram.items():
                histogram[name] = _array(values, 1, f"{place}.{name}")
            if any(len(values) != len(histogram["edges"]) - (name != "edges") for name, values in histogram.items()):
                raise ValueError(f"{place} needs one edge more than counts")
    for place, dimensions in ((HEATMAP, 2), (HEATMAP_BIAS, 1)):
        if value := at(evaluation, place):
            evaluation["ground_truth"][place.split(".")[1]] = _array(value, dimensions, place)
    return evaluation


def _array(values: Any, dimensions: int, place: str) -> np.ndarray:
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0)
    if array.ndim != dimensions or array.dtype.kind not in "if" or not np.isfinite(array).all():
        raise ValueError(f"{place} is not a {'table' if dimensions > 1 else 'list'} of numbers")
    return array.astype(float)
