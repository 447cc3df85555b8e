"""Compare finished runs and write compare.json."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from sae_cli.comparison.arithmetic import arithmetic
from sae_cli.comparison.similarity import similarity
from sae_cli.comparison.splitting import splitting
from sae_cli.device import choose_device
from sae_cli.dictionary.artifact import SAE, load_sae
from sae_cli.errors import UserError
from sae_cli.files import write_json
from sae_cli.randomness import derive_seed
from sae_cli.runs.directory import VERSIONS, RunDirectory, find_runs
from sae_cli.sources.registry import check_unchanged, open_source

ROWS = 16_384
"""Validation rows of a run on which its latents are alive or dead, and on which co-activation is counted."""
BATCH = 2048
SAME = ("source", "model_name", "hook_name")
"""What dictionaries share unless --force is given, in the artefact's metadata."""

log = logging.getLogger(__name__)


@dataclass
class Dictionary:
    """One dictionary of a comparison."""

    name: str
    """A, B, C, ... in the order given."""
    run: RunDirectory
    sae: SAE
    rows: list[Tensor]
    """Validation batches (B, D), raw units, of the run's source."""
    alive: Tensor
    """Ids (N,) of the latents that fire on these rows."""

    @property
    def directions_ND(self) -> Tensor:
        """Alive directions."""
        return self.sae.W_dec_FD[self.alive]

    def describe(self) -> dict[str, Any]:
        """Return the dictionary's entry in compare.json."""
        metadata = {key: self.sae.metadata.get(key) for key in (*SAME, "run_id")}
        latents, width = self.sae.W_dec_FD.shape
        return {
            "name": self.name,
            "run": str(self.run.path),
            "width": width,
            "latents": latents,
            "alive": len(self.alive),
            "rows": sum(map(len, self.rows)),
            "orthogonality": self.run.config.orthogonality.kind,
            "gamma": self.run.config.orthogonality.weight,
            "nonlinearity": self.sae.nonlinearity,
            **metadata,
        }


@torch.no_grad()
def compare(
    paths: Sequence[Path],
    out: Path | None = None,
    force: bool = False,
    sample: int = 0,
    seed: int = 0,
    device: str = "auto",
) -> tuple[Path, dict[str, Any]]:
    """Compare two or more finished runs on their alive directions; return compare.json's path and content.

    Written into the last run's folder unless `out` is given. sample: targets of the arithmetic test per dictionary, 0:
    all. UserError if a run is unfinished, widths D differ, or (without force) source, model or hook differ.
    """
    runs = _runs(paths)
    saes = [_load(run) for run in runs]
    _check_same(runs, saes, force)
    given = _open(runs, saes, choose_device(device))
    content = {
        "version": VERSIONS["compare.json"],
        "seed": seed,
        "sample": sample,
        "dictionaries": [one.describe() for one in given],
        "similarity": [
            {"a": a.name, "b": b.name}
            | similarity(a.directions_ND, b.directions_ND, a.alive.tolist(), b.alive.tolist())
            for a, b in pairwise(given)
        ],
        "arithmetic": [_arithmetic(targets, atoms, sample, seed) for targets, atoms in _tests(given)],
        "splitting": _splitting(given),
    }
    out = out or runs[-1].path / "compare.json"
    write_json(out, content)
    return out, content


def _runs(paths: Sequence[Path]) -> list[RunDirectory]:
    """Return the run at each path; UserError if there are not two, or one is no single run or is named twice."""
    if len(paths) < 2:
        raise UserError("sae compare: give two or more run folders, such as runs/a/1f2e3d runs/b/4c5b6a")
    if len(paths) > len(ascii_uppercase):
        raise UserError(f"sae compare: {len(paths)} runs are too many; give at most {len(ascii_uppercase)}")
    runs = []
    for path in paths:
        found = find_runs(path)
        if len(found) > 1:
            raise UserError(f"{path} holds {len(found)} runs; name one of them, such as {found[0].path}")
        runs += found
    for a, b in combinations(runs, 2):
        if a.path.resolve() == b.path.resolve():
            raise UserError(f"{a.path} is named twice; each run is also compared with itself")
    return runs


def _load(run: RunDirectory) -> SAE:
    """Return a finished run's SAE."""
    state = run.status["state"]
    if state != "done":
        raise UserError(f"{run.path}: its state is {state}, not done; finish it with sae train first")
    sae = load_sae(run.path)
    if not bool(sae.W_dec_FD.isfinite().all()):
        raise UserError(f"{run.path}: its weights are not finite; compare another run")
    return sae


def _check_same(runs: list[RunDirectory], saes: list[SAE], force: bool) -> None:
    """Refuse dictionaries whose directions do not lie in the same space; with `force`, only different widths."""
    for (run_a, a), (run_b, b) in pairwise(zip(runs, saes, strict=True)):
        widths = a.W_dec_FD.shape[1], b.W_dec_FD.shape[1]
        if widths[0] != widths[1]:
            raise UserError(f"{run_a.path} has D={widths[0]} and {run_b.path} has D={widths[1]}; choose runs of one D")
        for key in SAME:
            values = a.metadata.get(key), b.metadata.get(key)
            if values[0] == values[1]:
                continue
            message = f"{key} is {values[0]} in {run_a.path} and {values[1]} in {run_b.path}"
            if not force:
                raise UserError(f"{message}; --force compares them all the same")
            log.warning("%s", message)
        if run_a.fingerprint != run_b.fingerprint:
            log.warning("%s and %s were trained on different data", run_a.path, run_b.path)


def _open(runs: list[RunDirectory], saes: list[SAE], device: str) -> list[Dictionary]:
    """Read validation rows, once per source, and find the alive latents of each SAE."""
    read: dict[tuple, list[Tensor]] = {}
    given = []
    for name, run, sae in zip(ascii_uppercase, runs, saes, strict=False):
        cache = run.config.cache
        key = (run.fingerprint, cache.dir, cache.tokens, cache.validation_tokens)
        if key not in read:
            read[key] = _rows(run, device)
        sae = sae.to(device)
        fired_F = torch.zeros(len(sae.W_dec_FD), dtype=torch.bool, device=device)
        for x_BD in read[key]:
            fired_F |= (sae.encode(x_BD) != 0).any(0)
        alive = fired_F.nonzero()[:, 0]
        if not len(alive):
            raise UserError(f"{run.path}: no latent fires on its validation rows; compare another run")
        given.append(Dictionary(name, run, sae, read[key], alive))
    return given


def _rows(run: RunDirectory, device: str) -> list[Tensor]:
    rows, count = [], 0
    check_unchanged(run.config, run.fingerprint, run.path)
    for x_BD in open_source(run.config, device).validation(BATCH):
        rows.append(x_BD[: ROWS - count].to(device).float())
        count += len(rows[-1])
        if count == ROWS:
            break
    if not rows:
        raise UserError(f"{run.path}: its validation part is empty; set cache.validation_tokens above 0")
    return rows


def _tests(given: list[Dictionary]) -> list[tuple[Dictionary, Dictionary]]:
    """Return (targets, atoms): both ways between neighbours in the list, then each dictionary on itself."""
    between = [pair for a, b in pairwise(given) for pair in ((a, b), (b, a))]
    return between + [(one, one) for one in given if len(one.alive) > 1]


def _arithmetic(targets: Dictionary, atoms: Dictionary, sample: int, seed: int) -> dict[str, Any]:
    log.info("arithmetic test: directions of %s on those of %s", targets.name, atoms.name)
    ids = targets.alive
    if 0 < sample < len(ids):
        generator = torch.Generator().manual_seed(derive_seed(seed, "sample", len(ids)))
        ids = ids[torch.randperm(len(ids), generator=generator)[:sample].sort().values.to(ids.device)]
    names = {"targets": targets.name, "atoms": atoms.name}
    directions_ND = targets.sae.W_dec_FD[ids]
    within = targets is atoms
    return names | arithmetic(directions_ND, atoms.directions_ND, ids.tolist(), atoms.alive.tolist(), seed, within)


def _splitting(given: list[Dictionary]) -> list[dict[str, Any]]:
    """Return the levels of the splitting tree from the narrowest to the widest; equal widths are no split."""
    levels = sorted(given, key=lambda one: len(one.sae.W_dec_FD))
    result = []
    for narrow, wide in pairwise(levels):
        if len(narrow.sae.W_dec_FD) < len(wide.sae.W_dec_FD):
            names = {"narrow": narrow.name, "wide": wide.name}
            result.append(names | splitting(narrow.sae, wide.sae, narrow.alive, wide.alive, wide.rows))
    return result
