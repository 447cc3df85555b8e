"""Evaluate finished runs: one read of the data and of the language model for all runs of a source."""

import logging
import math
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_cli.config.schema import Config, EvalConfig
from sae_cli.device import choose_device
from sae_cli.dictionary.artifact import SAE, load_sae
from sae_cli.errors import UserError
from sae_cli.evaluation.composition import composition
from sae_cli.evaluation.geometry import geometry
from sae_cli.evaluation.ground_truth import GroundTruth
from sae_cli.evaluation.language_model import spliced_losses
from sae_cli.evaluation.reconstruction import Reconstruction
from sae_cli.evaluation.tasks import task_sections
from sae_cli.files import write_json
from sae_cli.runs.directory import RunDirectory
from sae_cli.sources import ActivationSource
from sae_cli.sources.language_model import LanguageModel
from sae_cli.sources.registry import open_source
from sae_cli.sources.synthetic import SyntheticSource

VERSION = 1
"""Version of the eval.json format (docs/eval-format.md)."""
BIAS_BINS = 60

log = logging.getLogger(__name__)


def evaluate(runs: list[RunDirectory], device: str = "auto", eval: EvalConfig | None = None) -> list[dict[str, Any]]:
    """Evaluate runs, write each one's eval.json and return the contents, each with its folder under `run`.

    Runs that read the same data under the same settings share one pass over it. `eval` replaces the settings that
    the runs were configured with. A run that is not finished or whose artefact is unusable is logged and skipped;
    UserError if none is left.
    """
    device = choose_device(device)
    groups: dict[tuple, tuple[Config, EvalConfig, dict[Path, SAE]]] = {}
    for run in runs:
        try:
            sae, config, fingerprint = _load(run), run.config, run.fingerprint
        except UserError as problem:
            log.warning("skipped %s: %s", run.path, problem)
            continue
        cache, settings = config.cache, eval or config.eval
        key = (fingerprint, cache.dir, cache.tokens, cache.validation_tokens, *astuple(settings))
        groups.setdefault(key, (config, settings, {}))[-1][run.path] = sae
    if not groups:
        raise UserError(f"none of the {len(runs)} runs can be evaluated; finish them first with sae train or sae sweep")
    results = {}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # Training may have allowed TF32.
    try:
        for config, settings, saes in groups.values():
            sections = _evaluate_group(list(saes.values()), config, settings, device)
            for path, section in zip(saes, sections, strict=True):
                write_json(path / "eval.json", section)
                results[path] = {"run": str(path), **section}
    finally:
        torch.set_float32_matmul_precision(precision)
    return [results[run.path] for run in runs if run.path in results]


def _load(run: RunDirectory) -> SAE:
    """Return a finished run's SAE; UserError says why it cannot be evaluated."""
    state = run.status["state"]
    if state != "done":
        raise UserError(f"its state is {state}, not done")
    sae = load_sae(run.path)
    if not all(bool(W.isfinite().all()) for W in (sae.W_enc_DF, sae.b_enc_F, sae.W_dec_FD, sae.b_dec_D)):
        raise UserError("its weights are not finite")
    return sae


@torch.no_grad()
def _evaluate_group(saes: list[SAE], config: Config, settings: EvalConfig, device: str) -> list[dict[str, Any]]:
    """Return the content of eval.json of each SAE; all were trained on the source of `config`."""
    source = open_source(config, device)
    saes = [sae.to(device) for sae in saes]
    log.info("evaluating %d SAEs on %s", len(saes), device)
    sections: list[dict[str, Any]] = []
    for sae, (sums, truth) in zip(saes, _read(saes, source, settings, device), strict=True):
        counts, edges = np.histogram(sae.b_enc_F.float().cpu().numpy(), bins=BIAS_BINS)
        section = {
            "version": VERSION,
            "rows": sums.rows,
            "reconstruction": sums.metrics(),
            "latents": sums.latents(),
            "biases": {
                "negative": float((sae.b_enc_F < 0).double().mean()),
                "histogram": {"edges": edges.astype(float).tolist(), "counts": counts.tolist()},
            },
            "geometry": geometry(sae.W_dec_FD, sums.fired_F > 0),
        }
        if truth:
            section["ground_truth"] = truth.section()
        if settings.composition:
            section["composition"] = composition(sae.W_dec_FD, sums.fired_F > 0)
        sections.append(section)
    for section, more in zip(sections, task_sections(saes, config, settings, device), strict=True):
        section |= more
    if config.source.kind == "language_model" and settings.contexts:
        model = LanguageModel(config.model, device)
        tokens = _contexts(model, config, settings.contexts)
        keep_first = config.model.prepend_bos and config.model.drop_bos
        losses = spliced_losses(model, tokens, config.model.hook, saes, source.mean_D.to(device), keep_first)
        for section, loss in zip(sections, losses, strict=True):
            section["language_model"] = loss
    return [finite(section) for section in sections]


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
    for x_BD, strengths_BG in _validation(source, settings.batch):
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


def _validation(source: ActivationSource, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the validation rows (B, D) and, of a synthetic source, the true strengths (B, G)."""
    if isinstance(source, SyntheticSource):
        yield from source.validation_features(size)
    else:
        for x_BD in source.validation(size):
            yield x_BD, None


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
