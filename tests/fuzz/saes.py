"""Targets that are results: SAEs of every layout, and the files of a run."""

import json
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

from sae_cli.config.compose import compose
from sae_cli.config.convert import load_config
from sae_cli.config.schema import Config
from sae_cli.dictionary.artifact import save_sae
from sae_cli.interop.card import training_figure
from sae_cli.interop.reading import open_sae
from sae_cli.interop.writing import save_foreign
from sae_cli.reporting.collect import collect
from sae_cli.reporting.one_run import show_run
from sae_cli.reporting.report import _page
from sae_cli.reporting.terminal import show_sweep
from sae_cli.runs import directory
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.recovery import examine_path
from sae_cli.runs.subjects import open_subjects
from sae_cli.sources.registry import source_fingerprint
from tests.fuzz.target import Target, contents, targets_of
from tests.interop.test_reading import LENS, rows, write_lens
from tests.interop.test_writing import D, example
from tests.reporting.fake import write_run
from tests.reporting.test_composites import content


def targets(scratch: Path) -> dict[str, Target]:
    """Return the targets by name; `scratch` is an empty folder."""
    found: dict[str, Target] = {}
    for kind in ("jumprelu", "topk"):
        save_sae(scratch / kind, example(kind))
        found |= targets_of(f"artefact {kind}", contents(scratch / kind), _encode)
    for library, kind in (("saelens", "topk"), ("dictionary_learning", "gated"), ("sparsify", "topk")):
        save_foreign(scratch / library, example(kind), library)
        found |= targets_of(library, contents(scratch / library), _encode)
    cfg, vectors = LENS[5]
    (scratch / "lens").mkdir()
    write_lens(scratch / "lens", cfg | {"normalize_activations": "expected_average_only_in"}, vectors, D, 15)
    (scratch / "lens" / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    found |= targets_of("saelens batchtopk", contents(scratch / "lens"), _encode)
    run = write_run(scratch / "run", compose([]), truth=True)
    (run / "overrides.txt").write_text("model=tiny\nsae=relu\n")
    (run / "compare.json").write_text(json.dumps(content()))
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:50]))
    stamp = {"device": "cpu", "source_fingerprint": source_fingerprint(compose([])), "git": {"commit": "0"}}
    (run / "stamp.json").write_text(json.dumps(stamp))
    save_sae(run, example("relu"))
    read, shown = targets_of("run", contents(run), _read), targets_of("report", contents(run), _report, every=20)
    for name in ("cfg.json", "sae.safetensors", "config.yaml"):  # others read these as well
        del read[f"run {name}"]
    for name in ("cfg.json", "sae.safetensors", "overrides.txt", "stamp.json"):
        del shown[f"report {name}"]
    return found | read | shown


def _encode(folder: Path) -> None:
    sae = open_sae(folder)
    sae.forward(rows(len(sae.b_dec_D)))


def _read(folder: Path) -> None:
    with patch.object(directory, "load_config", lambda path: _config(path, path.read_bytes())):
        collect([folder])
        examine_path(folder)
        training_figure(RunDirectory(folder).metrics())
        open_subjects([folder])


@lru_cache(8)
def _config(path: Path, content: bytes) -> Config:
    """Return what load_config does, which takes longer than all else that is done with a run."""
    return load_config(path)


def _report(folder: Path) -> None:
    points = collect([folder])
    for data, draw in (show_run(points[0]), show_sweep(points, [folder])):
        assert json.dumps(data, allow_nan=False)
        assert draw(80, False)
    page, _ = _page(points, "fuzz", folder)
    assert "</html>" in page
