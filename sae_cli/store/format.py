"""The files of a cache: manifest.json and safetensors files beside it. docs/cache-format.md is the normative text."""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sae_cli.errors import UserError
from sae_cli.files import read_json, refuse_newer, replacing, write_json
from sae_cli.sources import Split

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "sae-activations"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress{}.json"
"""Name of the progress file, to be formatted with the suffix of a share (`share_suffix`)."""
SPLITS: tuple[Split, ...] = ("validation", "train")
"""Parts of a cache in the order in which they are written: the small one first, so that too little text shows early."""

DTYPES = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4), "int32": ("I32", 4)}
"""Safetensors code and bytes per number, by torch's name."""

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Names, dtypes and shapes of a file's tensors, in the order in which they lie in it."""


@dataclass(frozen=True)
class StoredFile:
    """One safetensors file; `rows` counts activations, or contexts in a tokens file."""

    name: str
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        # A manifest may come from elsewhere: a name must not lead out of the folder.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", self.name):
            raise ValueError(f"unfit file name {self.name!r}")
        if not all(type(number) is int and number >= 0 for number in (self.rows, self.bytes)):
            raise ValueError(f"{self.name}: rows and bytes must be counts")


@dataclass
class Part:
    """The training or the validation part."""

    rows: int = 0
    shards: list[StoredFile] = field(default_factory=list)
    tokens: list[StoredFile] = field(default_factory=list)
    """Text of the contexts, in order; empty for vectors."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Convert what JSON gave. Raises ValueError, TypeError or KeyError if it is not sound."""
        part = cls(**data | {key: [StoredFile(**file) for file in data[key]] for key in ("shards", "tokens")})
        if part.rows != sum(shard.rows for shard in part.shards) or not all(shard.rows for shard in part.shards):
            raise ValueError("rows of the shards do not add up")
        return part

    def files(self) -> list[StoredFile]:
        """Return every file of the part."""
        return [*self.shards, *self.tokens]


@dataclass
class Manifest:
    """What manifest.json says."""

    fingerprint: str
    hook: str
    dtype: str
    width: int
    train: Part
    validation: Part
    mean: list[float]
    """Mean of the training rows as stored, by dimension."""
    mean_squared_norm: float
    """E||x||^2 of the training rows."""
    variance: float
    """E||x - mean||^2 of the training rows."""
    source: dict[str, Any]
    """What the source says of itself: model, processing, tokenizer, text, library versions."""
    settings: dict[str, Any]
    """The cache settings that decided the bytes."""
    created_by: str

    def write(self, folder: Path) -> None:
        """Write manifest.json: from here on the cache is finished."""
        write_json(folder / MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})


def damaged(path: Path, why: str) -> UserError:
    """Return the error for a file that cannot be read as part of a cache."""
    folder = path.parent
    return UserError(f"{path}: {why}; see `sae cache verify {folder}`, or delete {folder} and run `sae cache` again")


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json. Raises UserError if it is absent, damaged or of another format version."""
    path = folder / MANIFEST
    try:
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("not an activation cache")
        check_version(path, data)
        data = {key: value for key, value in data.items() if not key.startswith("format")}
        manifest = Manifest(**data | {split: Part.from_dict(data[split]) for split in SPLITS})
        if manifest.dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"unknown dtype {manifest.dtype!r}")
        numbers = [*manifest.mean, manifest.mean_squared_norm, manifest.variance]
        spread = 0 <= manifest.variance <= manifest.mean_squared_norm
        if manifest.width != len(manifest.mean) or not spread or not all(map(math.isfinite, numbers)):
            raise ValueError("mean, mean_squared_norm or variance is not sound")
        counts = [value for key, value in manifest.settings.items() if key != "dtype"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("settings are not whole numbers")
        for shard in (*manifest.train.shards, *manifest.validation.shards):
            if shard.bytes != file_bytes(shard_tensors(shard.rows, manifest.width, manifest.dtype)):
                raise ValueError(f"{shard.name}: {shard.bytes} bytes are not those of {shard.rows} rows")
    except FileNotFoundError:
        raise UserError(f"{folder}: no finished cache here ({MANIFEST} is missing); run `sae cache`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"damaged ({error})") from error
    return manifest


def check_version(path: Path, data: dict[str, Any]) -> None:
    """Refuse a file of another format version. Raises UserError."""
    found = data.get("format_version")
    refuse_newer(path, found, FORMAT_VERSION)
    if found != FORMAT_VERSION:
        remedy = f"delete {path.parent} and run `sae cache` again"
        raise UserError(f"{path}: cache format version {found}, this program reads {FORMAT_VERSION}; {remedy}")


def shard_tensors(rows: int, width: int, dtype: str) -> Tensors:
    """Return a shard's tensors. The int32 ones come first so that all stay aligned whatever the width."""
    return {"context": ("int32", (rows,)), "position": ("int32", (rows,)), "x": (dtype, (rows, width))}


def tokens_tensors(contexts: int, length: int) -> Tensors:
    """Return the tensors of a tokens file."""
    return dict.fromkeys(("tokens", "document"), ("int32", (contexts, length)))


def header_bytes(tensors: Tensors) -> bytes:
    """Return a safetensors header, length included, padded to 8 bytes."""
    entries, begin = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = begin + DTYPES[dtype][1] * math.prod(shape)
        entries[name] = {"dtype": DTYPES[dtype][0], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(tensors: Tensors) -> int:
    """Return the exact size of a file with these tensors."""
    return len(header_bytes(tensors)) + sum(DTYPES[dtype][1] * math.prod(shape) for dtype, shape in tensors.values())


def bytes_of(tensor: "Tensor") -> memoryview:
    """Return the bytes of a contiguous CPU tensor without a copy."""
    import torch

    return memoryview(tensor.view(torch.uint8).numpy().reshape(-1))  # type: ignore[arg-type]


def write_tensors(path: Path, tensors: Tensors, chunks: Iterable[Any]) -> StoredFile:
    """Write a safetensors file atomically from buffers that hold the tensors' bytes in order."""
    digest, size = hashlib.sha256(), 0
    with replacing(path) as stream:
        for chunk in (header_bytes(tensors), *chunks):
            stream.write(chunk)
            digest.update(chunk)
            size += memoryview(chunk).nbytes
        assert size == file_bytes(tensors), f"{path}: {size} bytes for {tensors}"
    rows = next(iter(tensors.values()))[1][0]
    return StoredFile(path.name, rows, size, digest.hexdigest())


def check_size(folder: Path, file: StoredFile, size: int | None = None) -> None:
    """Compare a file's size, looked up if it is not given, with the manifest. Raises UserError naming the file."""
    path = folder / file.name
    if size is None:
        size = path.stat().st_size if path.is_file() else -1
    if size < 0:
        raise damaged(path, "missing")
    if size != file.bytes:
        raise damaged(path, f"{size} bytes instead of {file.bytes}")


def check_sizes(folder: Path, files: Iterable[StoredFile]) -> None:
    """Compare the sizes of many files of a folder with the manifest, by one listing. Raises UserError naming a file."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    for file in files:
        check_size(folder, file, sizes.get(file.name, -1))


def find_x(folder: Path, shard: StoredFile, manifest: Manifest) -> int:
    """Return at which byte of a shard its activations begin. Raises UserError if its header is not sound."""
    tensors = shard_tensors(shard.rows, manifest.width, manifest.dtype)
    header = header_bytes(tensors)
    path = folder / shard.name
    try:
        with path.open("rb", buffering=0) as stream:
            if stream.read(len(header)) != header:
                raise ValueError(f"not a shard of {shard.rows} x {manifest.width} {manifest.dtype}")
    except (OSError, ValueError) as error:
        raise damaged(path, f"damaged ({error})") from error
    return len(header) + 8 * shard.rows  # x comes after two int32 columns
