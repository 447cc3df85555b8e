"""Feature pages of SAEs: open them, choose latents, build the content, write the file."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from sae_cli.dashboard.build import Extent, Other, build
from sae_cli.dashboard.latents import ORDERS, parse_latents, top_latents
from sae_cli.device import choose_device
from sae_cli.dictionary.artifact import load_sae
from sae_cli.errors import UserError, suggest
from sae_cli.reporting.dashboard import PAGE, write_dashboard
from sae_cli.runs.subjects import Subject, open_subjects
from sae_cli.sources.registry import SYNTHETIC, ensure_cache, open_source, training_part


def write_dashboards(
    paths: Sequence[Path],
    words: Sequence[str],
    chosen: str | tuple[str, int],
    extent: Extent,
    against: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> dict[Path, Path]:
    """Write the feature page of every SAE that `open_subjects` finds and return the pages by the SAEs' folders.

    chosen: latents as `parse_latents` reads them, or (order, count) for `top_latents`. `out` defaults to
    dashboard.html in each folder. UserError for bad latents, another width D of `against`, a synthetic source.
    """
    if isinstance(chosen, tuple) and chosen[0] not in ORDERS:
        raise UserError(f"--top {chosen[0]}: choose {' | '.join(ORDERS)}.{suggest(chosen[0], ORDERS)}")
    subjects = open_subjects(paths, words)
    if out and (out.suffix != ".html" or len(subjects) > 1):
        raise UserError(f"--out {out}: give a file name that ends in .html, and one run")
    device = choose_device(device)
    return {one.path: _write(one, chosen, extent, against, out or one.path / PAGE, device) for one in subjects}


def _write(
    subject: Subject, chosen: str | tuple[str, int], extent: Extent, against: Path | None, page: Path, device: str
) -> Path:
    path, sae, config = subject.path, subject.sae, subject.config
    if config.source.kind in SYNTHETIC:
        raise UserError(f"{path}: source={config.source.kind} has no text; `sae report` shows its true features")
    (folder,) = ensure_cache(training_part(config))
    if isinstance(chosen, str):
        ids = parse_latents(chosen, len(sae.W_dec_FD))
    else:
        ids = top_latents(sae.to(device), open_source(config, device), *chosen, device)
    other = None
    if against:
        atoms = load_sae(against)
        if (theirs := len(atoms.b_dec_D)) != (own := len(sae.b_dec_D)):
            raise UserError(f"--against {against}: it has D={theirs}, {path} has D={own}; choose SAEs of one D")
        link = quote(os.path.relpath(against / PAGE, page.parent)) if (against / PAGE).exists() else None
        other = Other(atoms, str(against), link)
    content = build(sae, config, folder, ids, extent, device, other)
    return write_dashboard({"title": _title(subject), "run": str(path), **content}, page)


def _title(subject: Subject) -> str:
    """Name the SAE by what a run's configuration says of it; one without a run by its folder."""
    config = subject.config
    if not (subject.path / "config.yaml").exists():
        return f"{subject.sae.nonlinearity} · {subject.path.name}"
    gamma = config.orthogonality.weight
    penalty = [f"{config.orthogonality.kind} {gamma:g}"] if gamma else []
    return " · ".join([subject.sae.nonlinearity, *penalty, f"lambda {config.sparsity.weight:g}", f"seed {config.seed}"])
