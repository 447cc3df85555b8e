"""Targets that hold activations or text: caches, own vectors, text files, checkpoints."""

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import save

from sae_cli.config.compose import compose
from sae_cli.config.schema_data import TextConfig
from sae_cli.dictionary.stack import SAEStack
from sae_cli.runs.recovery import examine_path
from sae_cli.sources.text import documents
from sae_cli.sources.vectors import VectorRows
from sae_cli.store.contexts import read_contexts, read_tokens
from sae_cli.store.format import MANIFEST
from sae_cli.store.loader import CacheReader
from sae_cli.store.writer import write_caches
from sae_cli.training.checkpoint import _save_shards, common_step, load_checkpoint, member_tensors, save_checkpoint
from sae_cli.training.step import Stepper
from tests.fuzz.target import Target, contents, targets_of
from tests.store.fakes import FakeRows, small_cache
from tests.training.points import point

TEXT = [b'{"text": "a b", "id": 1}\n{"text": "c\\u00e9"}\n\n{"text": null}\n']
CACHE = small_cache(tokens=60, validation_tokens=20, shuffle_bytes=800, shard_bytes=400)
ROWS = FakeRows({"a": 8}, contexts=20)
VECTORS = compose(["cache.dtype=float32"])


def targets(scratch: Path) -> dict[str, Target]:
    """Return the targets by name; `scratch` is an empty folder."""
    found = {
        "text jsonl": Target(_text("text.jsonl"), "text.jsonl", TEXT),
        "text jsonl.gz": Target(_text("text.jsonl.gz"), "text.jsonl.gz", [gzip.compress(TEXT[0], mtime=0)]),
        "text txt": Target(_text("text.txt"), "text.txt", ["one é\n\ntwo".encode()]),
        "text parquet": Target(_text("text.parquet"), "text.parquet", [_parquet()]),
        "vectors npy": Target(_vectors, "x.npy", [_npy(np.float32), _npy(">f2")]),
        "vectors pt": Target(_vectors, "x.pt", [_pt(torch.ones(9, 4)), _pt({"x": torch.ones(9, 4), "n": 1})]),
        "text cut": Target(_text("text.txt", 4), "text.txt", ["one é\n\ntwo three".encode()]),
        "vectors safetensors": Target(_vectors, "x.safetensors", [save({"x": torch.ones(9, 4)})]),
    }
    cache = _cache(scratch / "cache")
    for name in (MANIFEST, "train-00000.safetensors", "tokens-train-00000.safetensors"):
        around = {other: content for other, content in cache.items() if other != name}
        parse = _read_cache if name == MANIFEST else _resealed(name)
        found[f"cache {name}"] = Target(parse, name, [cache[name]], around)
    unfinished = _unfinished(scratch / "unfinished")
    found["cache progress.json"] = targets_of("cache", unfinished, _continue_cache, True)["cache progress.json"]
    stepper = _stepper(scratch)
    for name, files in _checkpoints(scratch / "checkpoints", stepper).items():
        found |= targets_of(name, files, _restore(stepper))
    return found


def _text(name: str, cut: int = 0) -> Callable[[Path], object]:
    def parse(folder: Path) -> None:
        for _ in documents(TextConfig(name="fuzz", path=str(folder / name), validation=0.0, cut=cut), "train"):
            pass

    return parse


def _vectors(folder: Path) -> None:
    text, source = replace(VECTORS.text, validation=0.0), replace(VECTORS.source, kind="vectors", path=str(folder))
    for _ in islice(VectorRows(replace(VECTORS, text=text, source=source)).rows("train", 0), 3):
        pass


def _npy(kind: str | type) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((9, 4), dtype=kind))
    return stream.getvalue()


def _pt(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _parquet() -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", "c", None], "n": [1, 2, 3]}), stream)
    return stream.getvalue()


def _cache(folder: Path) -> dict[str, bytes]:
    write_caches(ROWS, CACHE, {"a": folder})
    return {name: content for name, content in contents(folder).items() if not name.startswith(".")}


def _unfinished(folder: Path) -> dict[str, bytes]:
    """Return a cache whose writing stopped after its first blocks."""

    def stop(done: int, wanted: int) -> None:
        if done > 60:
            raise KeyboardInterrupt

    try:
        write_caches(ROWS, CACHE, {"a": folder}, stop)
    except KeyboardInterrupt:
        return contents(folder)
    raise AssertionError("it was not interrupted")


def _read_cache(folder: Path) -> None:
    examine_path(folder)
    reader = CacheReader(folder, 1 << 20, 0)
    list(islice(reader.batches(0, 16), 2))
    list(reader.validation(16))
    list(read_contexts(folder, "train", 16))
    read_tokens(folder, "train", [0, 3, 11])


def _resealed(name: str) -> Callable[[Path], object]:
    """Return a parser that first puts the size and the hash of a changed file into the manifest."""

    def parse(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        data = (folder / name).read_bytes()
        for file in (*manifest["train"]["shards"], *manifest["train"]["tokens"]):
            if file["name"] == name:
                file |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        _read_cache(folder)

    return parse


def _continue_cache(folder: Path) -> None:
    write_caches(ROWS, CACHE, {"a": folder})


def _stepper(scratch: Path) -> Stepper:
    config = point(scratch, "sae.latents=4", "source.width=3", "source.features=4", "orthogonality.chunk=2")
    return Stepper(SAEStack.initialise([config], torch.zeros(3), "cpu", torch.randn(9, 3)), [config], "cpu")


def _checkpoints(scratch: Path, stepper: Stepper) -> dict[str, dict[str, bytes]]:
    """Return the files of a checkpoint in both layouts, without the hashes that they are checked by."""
    extra = {"log": {}, "clock": 1.0}
    save_checkpoint(scratch / "file", stepper, 0, 4, extra)
    tensors = {name: tensor.clone() for name, tensor in member_tensors(stepper, 0).items()}
    plain = save(tensors, {"step": "4", "extra": json.dumps(extra)})
    _save_shards(scratch / "shards", stepper, tensors, 4, extra)
    shards = contents(scratch / "shards")
    told = next(name for name in shards if name.endswith("extra.json"))
    shards[told] = json.dumps({"step": 4, "extra": extra}).encode()
    return {"checkpoint": {"step-000000004.safetensors": plain}, "checkpoint shards": shards}


def _restore(stepper: Stepper) -> Callable[[Path], object]:
    def parse(folder: Path) -> None:
        if step := common_step([folder]):
            load_checkpoint(folder, stepper, 0, step)

    return parse
