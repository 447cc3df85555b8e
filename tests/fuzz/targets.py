"""What is fuzzed: each parser with valid inputs to start from. Anything but a UserError is a defect."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from sae_cli.config.compose import compose, expand
from sae_cli.config.convert import load_config, to_yaml
from sae_cli.config.schema_data import TextConfig
from sae_cli.dictionary.artifact import load_sae, save_sae
from sae_cli.errors import UserError
from sae_cli.interop.reading import load_foreign
from sae_cli.interop.writing import save_foreign
from sae_cli.reporting.collect import collect
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.grid import read_grid_file
from sae_cli.sources.text import documents
from sae_cli.sources.vectors import _shape
from sae_cli.store.format import Manifest, Part, StoredFile, read_manifest
from sae_cli.training.checkpoint import saved_steps
from tests.interop.test_writing import example


@dataclass
class Target:
    """A parser of one file, or of one input."""

    parse: Callable[[Path], object]
    """Reads the folder in which the input lies; UserError is the only thing it may raise."""
    name: str
    """File that holds the input."""
    seeds: list[bytes]
    """Valid inputs."""
    around: dict[str, bytes]
    """Sound files beside it."""


def attempt(target: Target, folder: Path, data: bytes) -> bool:
    """Parse one input in a folder that holds what is around it; return whether it was accepted."""
    (folder / target.name).write_bytes(data)
    try:
        target.parse(folder)
    except UserError as problem:
        if "\n" in str(problem):
            raise RuntimeError("an error of several lines") from problem
        return False
    return True


def make_targets(scratch: Path) -> dict[str, Target]:
    """Return the targets by name; `scratch` is an empty folder."""
    targets = {
        "overrides": Target(_overrides, "words", OVERRIDES, {}),
        "grid": Target(lambda folder: read_grid_file(folder / "grid.yaml"), "grid.yaml", GRIDS, {}),
        "config": Target(lambda f: load_config(f / "config.yaml"), "config.yaml", [to_yaml(compose([])).encode()], {}),
        "text": Target(_text("text.jsonl"), "text.jsonl", [b'{"text": "a b"}\n{"text": "c\\u00e9"}\n'], {}),
        "manifest": Target(read_manifest, "manifest.json", [_manifest(scratch)], {}),
        "npy": Target(lambda folder: _shape(folder / "x.npy"), "x.npy", [_npy()], {}),
        "vectors": Target(lambda f: _shape(f / "x.safetensors"), "x.safetensors", [save({"x": torch.ones(3, 4)})], {}),
        "checkpoint": Target(saved_steps, "step-000000004.safetensors", [_checkpoint()], {}),
    }
    save_sae(scratch / "own", example("jumprelu"))
    targets |= _folder_targets("artefact", scratch / "own", load_sae)
    for library, kind in (("saelens", "topk"), ("dictionary_learning", "gated"), ("sparsify", "topk")):
        save_foreign(scratch / library, example(kind), library)
        targets |= _folder_targets(library, scratch / library, load_foreign)
    run = _run(scratch / "run")
    for name in run:
        around = {other: content for other, content in run.items() if other != name}
        targets[f"report {name}"] = Target(_collected, name, [run[name]], around)
    return targets


def fill(target: Target, folder: Path) -> None:
    """Write what lies around a target's input."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in target.around.items():
        (folder / name).write_bytes(content)


OVERRIDES = [
    b"sae=prolu_ste\ntrain.lr=3e-4\nsparsity.weight=1,2,4",
    b"experiment=demo\nsae.grow=[64,64]\n~sae.k\n+x=1",
    b"orthogonality=nearest orthogonality.weight='0.1'\nname=\"a b\"",
    b"train.resample_at=[0.25,0.5]\nmodel.path=${name}\nsae.latents=range(1,4)",
]
GRIDS = [
    b"method: grid\nparameters:\n  sae: {values: [relu, topk]}\n  train.lr: {value: 1e-3}\n",
    b"program: sae\nmethod: grid\nname: x\nparameters:\n  sparsity.weight:\n    values: [0.5, 1, [1, 2]]\n",
]


def _overrides(folder: Path) -> None:
    words = (folder / "words").read_bytes().decode(errors="replace").split("\n")[:6]
    words = [word.replace("\0", "") for word in words if word.replace("\0", "")]
    if not any(word.startswith("--") for word in words):
        points = expand(words) if words else [[]]
        compose(points[0])


def _text(name: str) -> Callable[[Path], object]:
    def parse(folder: Path) -> None:
        for _ in documents(TextConfig(name="fuzz", path=str(folder / name)), "train"):
            pass

    return parse


def _collected(folder: Path) -> None:
    collect([folder])
    with contextlib.suppress(ValueError):  # its readers name the file
        RunDirectory(folder).metrics()


def _folder_targets(prefix: str, folder: Path, parse: Callable[[Path], object]) -> dict[str, Target]:
    """Return a target for each file of a folder, the others around it."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {
        f"{prefix} {name}": Target(parse, name, [content], {other: c for other, c in files.items() if other != name})
        for name, content in files.items()
    }


def _manifest(scratch: Path) -> bytes:
    part = Part(4, [StoredFile("train-00000.safetensors", 4, 200, "0" * 64)], [])
    Manifest(
        fingerprint="0" * 12, hook="blocks.0.hook_out", dtype="float32", width=2, train=part, validation=part,
        mean=[0.5, 1.0], mean_squared_norm=2.0, variance=0.75, source={}, settings={}, created_by="fuzz",
    ).write(scratch)  # fmt: skip
    return (scratch / "manifest.json").read_bytes()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 4), dtype=np.float32))
    return stream.getvalue()


def _checkpoint() -> bytes:
    return save({"W": torch.ones(2, 3)}, {"step": "4", "extra": json.dumps({"log": {}})})


def _run(folder: Path) -> dict[str, bytes]:
    from tests.reporting.fake import write_run

    write_run(folder, compose([]))
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
