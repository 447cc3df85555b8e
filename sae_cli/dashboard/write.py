"""Feature pages of runs: open them, choose latents, build the content, write the file."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from sae_cli.dashboard.build import Extent, Other, build
from sae_cli.dashboard.latents import ORDERS, parse_latents, top_latents
from sae_cli.device import choose_device
from sae_cli.dictionary.artifact import load_sae
from sae_cli.errors import UserError, suggest
from sae_cli.reporting.dashboard import write_dashboard
from sae_cli.runs.directory import RunDirectory, find_runs
from sae_cli.sources.registry import SYNTHETIC, ensure_cache, open_source, training_part

NAME = "dashboard.html"

log = logging.getLogger(__name__)


def write_dashboards(
    paths: Sequence[Path],
    chosen: str | tuple[str, int],
    extent: Extent,
    against: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> list[Path]:
    """Write the feature page of every finished run at or below the paths and return the pages.

    chosen: latents as `parse_latents` reads them, or (order, count) for `top_latents`. `out` defaults to
    dashboard.html in each run. A run that is not finished is logged and skipped if there are others. UserError for bad
    latents, another width D of `against`, a synthetic source, or no finished run.
    """
    if isinstance(chosen, tuple) and chosen[0] not in ORDERS:
        raise UserError(f"--top {chosen[0]}: choose {' | '.join(ORDERS)}.{suggest(chosen[0], ORDERS)}")
    runs = [run for path in paths for run in find_runs(path)]
    if out and (out.suffix != ".html" or len(runs) > 1):
        raise UserError(f"--out {out}: give a file name that ends in .html, and one run")
    device, pages = choose_device(device), []
    for run in runs:
        if (state := run.status["state"]) == "done":
            pages.append(_write(run, chosen, extent, against, out or run.path / NAME, device))
        else:
            log.warning("skipped %s: its state is %s, not done", run.path, state)
    if not pages:
        raise UserError(f"none of the {len(runs)} runs is done; finish them first with sae train or sae sweep")
    return pages


def _write(
    run: RunDirectory, chosen: str | tuple[str, int], extent: Extent, against: Path | None, page: Path, device: str
) -> Path:
    config, sae = run.config, load_sae(run.path)
    if config.source.kind in SYNTHETIC:
        raise UserError(f"{run.path}: source={config.source.kind} has no text; `sae report` shows its true features")
    (folder,) = ensure_cache(training_part(config))
    if isinstance(chosen, str):
        ids = parse_latents(chosen, len(sae.W_dec_FD))
    else:
        ids = top_latents(sae.to(device), open_source(config, device), *chosen, device)
    other = None
    if against:
        atoms = load_sae(against)
        if atoms.W_dec_FD.shape[1] != sae.W_dec_FD.shape[1]:
            widths = f"D={atoms.W_dec_FD.shape[1]}, {run.path} has D={sae.W_dec_FD.shape[1]}"
            raise UserError(f"--against {against}: it has {widths}; choose runs of one D")
        link = os.path.relpath(against / NAME, page.parent) if (against / NAME).exists() else None
        other = Other(atoms, str(against), link)
    content = build(sae, config, folder, ids, extent, device, other)
    penalty, gamma = config.orthogonality.kind, config.orthogonality.weight
    title = [sae.nonlinearity, f"lambda {config.sparsity.weight:g}", f"seed {config.seed}"]
    if gamma:
        title.insert(1, f"{penalty} {gamma:g}")
    return write_dashboard({"title": " · ".join(title), "run": str(run.path), **content}, page)
