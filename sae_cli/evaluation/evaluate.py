"""Evaluate SAEs: one read of the data and of the language model for all that have the same data."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_cli.config.schema import Config, EvalConfig
from sae_cli.device import choose_device
from sae_cli.dictionary.artifact import SAE
from sae_cli.errors import UserError
from sae_cli.evaluation.absorption import first_letter
from sae_cli.evaluation.composition import composition
from sae_cli.evaluation.geometry import geometry
from sae_cli.evaluation.ground_truth import GroundTruth
from sae_cli.evaluation.language_model import spliced_losses
from sae_cli.evaluation.probing import probing_tasks, sparse_probing
from sae_cli.evaluation.reconstruction import Reconstruction, rows_within
from sae_cli.evaluation.words import word_activations
from sae_cli.files import write_json
from sae_cli.runs.directory import VERSIONS, RunDirectory
from sae_cli.runs.subjects import Subject, open_runs
from sae_cli.sources import ActivationSource
from sae_cli.sources.language_model import LanguageModel
from sae_cli.sources.registry import open_source
from sae_cli.sources.synthetic import SyntheticSource

BIAS_BINS = 60

log = logging.getLogger(__name__)


def evaluate(runs: list[RunDirectory], device: str = "auto", eval: EvalConfig | None = None) -> list[dict[str, Any]]:
    """Evaluate finished runs, under `eval` or else each under its own settings, as `evaluate_subjects` does.

    A run that is not finished or whose artefact is unusable is logged and skipped; UserError if none is left.
    """
    return evaluate_subjects(open_runs(runs, eval), device)


def evaluate_subjects(subjects: Sequence[Subject], device: str = "auto") -> list[dict[str, Any]]:
    """Write each subject's eval.json and return the contents, each with its folder under `run`.

    Those that have the same data and settings share one pass over it. UserError if an SAE does not fit its data.
    """
    device = choose_device(device)
    groups: dict[tuple, list[Subject]] = {}
    for subject in subjects:
        cache = subject.config.cache
        settings = astuple(subject.config.eval)
        key = (subject.fingerprint, cache.dir, cache.tokens, cache.validation_tokens, *settings)
        groups.setdefault(key, []).append(subject)
    results = {}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # Training may have allowed TF32.
    try:
        for group in groups.values():
            for subject, section in zip(group, _evaluate_group(group, device), strict=True):
                write_json(subject.path / "eval.json", section)
                results[subject.path] = {"run": str(subject.path), **section}
    finally:
        torch.set_float32_matmul_precision(precision)
    return [results[subject.path] for subject in subjects]


@torch.no_grad()
def _evaluate_group(subjects: Sequence[Subject], device: str) -> list[dict[str, Any]]:
    """Return the content of eval.json of each subject; all have the data and the settings of the first."""
    config = subjects[0].config
    settings = config.eval
    source = open_source(config, device)
    for subject in subjects:
        if (width := len(subject.sae.b_dec_D)) != source.d_model:
            raise UserError(f"{subject.path}: its width is {width}, that of the data {source.d_model}: give other data")
    saes = [subject.sae.to(device) for subject in subjects]
    log.info("evaluating %d SAEs on %s", len(saes), device)
    sections: list[dict[str, Any]] = []
    for sae, (sums, truth) in zip(saes, _read(saes, source, settings, device), strict=True):
        counts, edges = np.histogram(sae.b_enc_F.float().cpu().numpy(), bins=BIAS_BINS)
        section = {
            "version": VERSIONS["eval.json"],
            "rows": sums.rows,
            "reconstruction": sums.metrics(),
            "latents": sums.latents(),
            "biases": {
                "negative": float((sae.b_enc_F < 0).double().mean()),
                "histogram": {"edges": edges.astype(float).tolist(), "counts": counts.tolist()},
            },
            "geometry": geometry(sae.W_dec_FD, sums.fired_F > 0, settings.memory_bytes),
        }
        if truth:
            section["ground_truth"] = truth.section()
        if settings.composition:
            section["composition"] = composition(sae.W_dec_FD, sums.fired_F > 0)
        sections.append(section)
    if config.source.kind == "language_model" and (settings.contexts or settings.words or settings.probe_rows):
        for name, parts in _model_sections(saes, config, source.mean_D.to(device), device).items():
            for section, part in zip(sections, parts, strict=True):
                section[name] = part
    return [finite(section) for section in sections]


def _model_sections(saes: list[SAE], config: Config, mean_D: Tensor, device: str) -> dict[str, Sequence[Any]]:
    """Return the sections that need the language model, of each SAE, as far as the settings ask for them.

    All SAEs share its forward passes.
    """
    model, hook = LanguageModel(config.model, device), config.model.hook
    settings, memory = config.eval, config.eval.memory_bytes
    found: dict[str, Sequence[Any]] = {}
    if settings.words:
        words, x_ND = word_activations(model, hook, settings.words)
        log.info("first letters: %d words", len(words))
        found["first_letter"] = first_letter(saes, words, x_ND, memory)
    if settings.probe_rows:
        tasks = probing_tasks(model, config.text, hook, settings.probe_rows)
        log.info("probing: %s", ", ".join(f"{name} {len(task.x_ND)} rows" for name, task in tasks.items()))
        found["probing"] = sparse_probing(saes, tasks, memory)
    if settings.contexts:
        tokens = _contexts(model, config, settings.contexts)
        keep_first = config.model.prepend_bos and config.model.drop_bos
        found["language_model"] = spliced_losses(model, tokens, hook, saes, mean_D, keep_first, memory)
    return found


def _read(
    saes: list[SAE], source: ActivationSource, settings: EvalConfig, device: str
) -> list[tuple[Reconstruction, GroundTruth | None]]:
    """Read the validation rows once for all SAEs."""
    sums = [Reconstruction(source.d_model, len(sae.W_dec_FD), device) for sae in saes]
    truths: list[GroundTruth | None] = [None] * len(saes)
    if source.true_GD is not None:
        true_GD = source.true_GD.to(device)
        truths = [GroundTruth(sae.W_dec_FD, sae.b_dec_D, true_GD, source.parents_G) for sae in saes]
    rows = 0
    features = 0 if source.true_GD is None else len(source.true_GD)
    latents = max(len(sae.W_dec_FD) for sae in saes)
    size = min(settings.batch, rows_within(settings.memory_bytes, latents, source.d_model, features))
    batches: Iterator[tuple[Tensor, Tensor | None]] = ((x_BD, None) for x_BD in source.validation(size))
    if isinstance(source, SyntheticSource):
        batches = source.validation_features(size)
    for x_BD, strengths_BG in batches:
        if settings.rows:
            x_BD = x_BD[: settings.rows - rows]
        x_BD = x_BD.to(device).float()
        for sae, reconstruction, truth in zip(saes, sums, truths, strict=True):
            acts_BF, x_hat_BD = sae.forward(x_BD)
            reconstruction.add(x_BD, acts_BF, x_hat_BD)
            if truth and strengths_BG is not None:
                truth.add(acts_BF, strengths_BG[: len(x_BD)].to(device))
        rows += len(x_BD)
        log.info("reconstruction: %d rows", rows)
        if rows == settings.rows:
            break
    if not rows:
        raise UserError("the validation part is empty; set cache.validation_tokens above 0 and cache again")
    return list(zip(sums, truths, strict=True))


def _contexts(model: LanguageModel, config: Config, limit: int) -> Iterator[Tensor]:
    """Yield tokens (C, T) of the first `limit` validation contexts."""
    count = 0
    for batch in model.contexts(config.text, "validation"):
        tokens_CT = batch.tokens_CT[: limit - count]
        yield tokens_CT
        count += len(tokens_CT)
        log.info("cross-entropy: %d contexts", count)
        if count == limit:
            return


def finite(value: Any) -> Any:
    """Return a JSON value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
