"""Activations that the user already has: .npy, .safetensors and .pt files of (rows, width) arrays."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_cli.config.schema import Config
from sae_cli.errors import UserError, suggest
from sae_cli.files import short_hash, user_path
from sae_cli.pickles import is_whole, load_plain
from sae_cli.sources import RowBlock, Split
from sae_cli.sources.text import content_hash

HOOK = "vectors"
SUFFIXES = (".npy", ".safetensors", ".pt")
KEYS = ("x", "activations", "vectors")
"""Names that pick the array of a .safetensors or .pt file that holds several two-dimensional ones."""
BLOCK = 4096
"""Rows read at a time."""


def rows_fingerprint(config: Config, hook: str) -> str:
    """Return a short hash of the files' names and contents and of what else decides the rows."""
    return short_hash([content_hash(*_files(config.source.path)), config.text.validation, config.cache.dtype])


class VectorRows:
    """The rows of all files in the order of their names: a RowSource with the single hook `vectors`.

    A row belongs to the validation part if a 64-bit hash of its file's name and its index, as a number in [0, 1), is
    below text.validation. So a row keeps its part when files are added. `context_N` counts blocks of 4,096 rows over
    all files, `position_N` rows within a block. Files are mapped, never read whole.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root, files = _files(config.source.path)
        shapes = {path: _shape(path) for path in files}
        self.lengths = {path: rows for path, (rows, _) in shapes.items()}
        first, width = files[0], shapes[files[0]][1]
        for path, (_, other) in shapes.items():
            if other != width:
                raise UserError(f"source.path: {first} has width {width} but {path} has {other}; keep one")
        self.widths = {HOOK: width}

    def fingerprint(self, hook: str) -> str:
        """Return rows_fingerprint of the configuration."""
        return rows_fingerprint(self.config, hook)

    def describe(self, hook: str) -> dict[str, Any]:
        """Return what the manifest records about the rows' origin."""
        files = [{"name": self._name(path), "rows": rows} for path, rows in self.lengths.items()]
        return {"source": "vectors", "hook": hook, "path": self.config.source.path, "files": files}

    def count(self, split: Split) -> int:
        """Return the number of rows of a part, without reading them."""
        return sum(int(mask_N.sum()) for *_, mask_N in self._blocks(split))

    def rows(self, split: Split, start: int) -> Iterator[RowBlock]:
        """Yield the part's rows block by block in cache.dtype, from the block that holds row `start` on.

        Raises UserError if the part is empty, or names the file and row of a value that is not finite.
        """
        done = 0
        for context, (path, first, mask_N) in enumerate(self._blocks(split)):
            index_N = np.flatnonzero(mask_N)
            if len(index_N) and done + len(index_N) > start:
                yield RowBlock(
                    start=done,
                    x={HOOK: self._read(path, first, len(mask_N), index_N)},
                    context_N=torch.full((len(index_N),), context, dtype=torch.int32),
                    position_N=torch.from_numpy(index_N.astype(np.int32)),
                )
            done += len(index_N)
        if not done:
            raise UserError(
                f"source.path={self.root}: none of its {sum(self.lengths.values())} rows falls into the {split} part: "
                f"change text.validation (now {self.config.text.validation}) or give more rows"
            )

    def _blocks(self, split: Split) -> Iterator[tuple[Path, int, np.ndarray]]:
        """Yield file, first row and the mask of the rows that belong to the part."""
        for path, length in self.lengths.items():
            seed = int.from_bytes(hashlib.sha256(self._name(path).encode()).digest()[:8], "big")
            for first in range(0, length, BLOCK):
                rows_N = np.arange(first, min(first + BLOCK, length), dtype=np.uint64)
                yield path, first, (_uniform(seed, rows_N) < self.config.text.validation) == (split == "validation")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path != self.root else path.name

    def _read(self, path: Path, first: int, count: int, index_N: np.ndarray) -> Tensor:
        """Return the chosen rows (N, D) of a block in cache.dtype."""
        with _opened(path) as (array, *_):
            part_ND = array[first : first + count][index_N]
        if isinstance(part_ND, np.ndarray):  # torch takes the machine's byte order only
            part_ND = torch.from_numpy(part_ND.astype(part_ND.dtype.newbyteorder("=")))
        x_ND = part_ND.to(getattr(torch, self.config.cache.dtype))
        finite_N = x_ND.isfinite().all(dim=1)
        if not finite_N.all():
            row = first + int(index_N[int((~finite_N).nonzero()[0])])
            kind = self.config.cache.dtype
            wider = ", or set cache.dtype=bfloat16 if it only overflows" if kind == "float16" else ""
            raise UserError(f"source.path: {path} row {row} is not finite in {kind}: remove the row{wider}")
        return x_ND


def _uniform(seed: int, index_N: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) from 64-bit hashes of the indices: SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z_N = np.uint64(seed) + (index_N + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z_N = (z_N ^ (z_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_N = (z_N ^ (z_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z_N = z_N ^ (z_N >> np.uint64(31))
    return (z_N >> np.uint64(11)).astype(np.float64) / 2**53


def _files(path: str) -> tuple[Path, list[Path]]:
    """Return the root and the sorted files that source.path means."""
    root = user_path(path)
    if not path or not root.exists():
        beside = [str(other) for other in root.parent.iterdir()] if path and root.parent.is_dir() else []
        raise UserError(f"source.path={path}: there is no such file or folder.{suggest(str(root), beside)}")
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    files = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"source.path={path}: give a .npy, .safetensors or .pt file, or a folder of these")
    return root, files


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, tuple[int, ...], str]]:
    """Give the file's array, its shape and dtype. It is mapped; slicing it gives a NumPy array or a tensor."""
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        yield array, array.shape, array.dtype.name
        return
    if path.suffix.lower() == ".pt":
        tensors = _saved_tensors(path)
        tensor = tensors[_chosen(path, {key: tuple(tensor.shape) for key, tensor in tensors.items()})]
        yield tensor, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        return
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        key = _chosen(path, {key: tuple(part.get_shape()) for key, part in slices.items()})
        yield slices[key], tuple(slices[key].get_shape()), slices[key].get_dtype().lower()


def _saved_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pt file by name, mapped; no pickle is run. A tensor that repeats its values is none."""
    try:
        loaded = load_plain(path, mmap=True)
    except Exception as error:  # zip, pickle and tensor errors share no base class
        raise UserError(
            f"source.path: {path} is not tensors alone ({type(error).__name__}); no pickle is run"
        ) from error
    found = loaded if isinstance(loaded, dict) else {KEYS[0]: loaded}
    plain = {str(key): x.detach() for key, x in found.items() if isinstance(x, Tensor) and x.layout == torch.strided}
    return {key: x for key, x in plain.items() if is_whole(x)}


def _chosen(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Return the name of the array to read among those of a file: one of KEYS, or else the only one."""
    flat = [key for key, shape in shapes.items() if len(shape) == 2] or list(shapes)
    found = [key for key in KEYS if key in flat] or flat
    if not found or (len(found) > 1 and found[0] not in KEYS):
        held = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "no array"
        raise UserError(f"source.path: {path} holds {held}; name the one of shape (rows, width) to read {KEYS[0]!r}")
    return found[0]


def _shape(path: Path) -> tuple[int, ...]:
    """Return (rows, width); UserError if the file is not a two-dimensional floating array with rows."""
    try:
        with _opened(path) as (_, shape, kind):
            pass
    except UserError:
        raise
    except Exception as error:  # NumPy and safetensors raise different errors for a broken file
        raise UserError(f"source.path: cannot read {path}: {error}") from error
    if len(shape) != 2 or 0 in shape or not kind.startswith(("f", "bf")):
        fix = f": save x.reshape(-1, {shape[-1]})" if len(shape) > 2 and 0 not in shape else ""
        raise UserError(
            f"source.path: {path} holds {kind} of shape {shape}; floats of shape (rows, width) are needed{fix}"
        )
    return shape
