"""Read a cache in the order of its text: whole contexts, with memory for one shuffled block."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from sae_cli.config.schema_data import CacheConfig
from sae_cli.files import sha256_of
from sae_cli.sources import Split
from sae_cli.store.format import (
    MANIFEST,
    Manifest,
    Part,
    StoredFile,
    check_size,
    check_sizes,
    damaged,
    find_x,
    read_manifest,
)
from sae_cli.store.order import block_sizes, row_limit
from sae_cli.store.remote import is_remote


@dataclass
class ContextRows:
    """All stored rows of consecutive contexts, in text order."""

    x_ND: Tensor
    """Activations in the dtype of the cache, raw units."""
    context_N: Tensor
    position_N: Tensor
    """int64 context, counted in its part, and position in it."""


def read_contexts(folder: Path, split: Split, size: int) -> Iterator[ContextRows]:
    """Yield a part's rows in text order, whole contexts in batches of at most `size` rows (a longer context alone).

    One pass over the shards: a shuffled block holds consecutive rows, so it is put in order in memory, and a context
    that a block cuts waits for its rest. Raises UserError naming the file if one is not sound.
    """
    manifest = read_manifest(folder)
    part: Part = getattr(manifest, split)
    check_sizes(folder, part.shards)
    rest = _empty(0, manifest)
    try:
        blocks = list(_blocks(part, split, manifest))
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        raise damaged(folder / MANIFEST, f"its settings do not fit its shards ({error})") from error
    for index, shards in enumerate(blocks):
        block = _join(rest, shards, folder, manifest)
        order_N = (block.context_N * (int(block.position_N.max()) + 1) + block.position_N).argsort()
        context_N = block.context_N[order_N]
        end = len(order_N)
        if index + 1 < len(blocks):
            end -= int((context_N == context_N[-1]).sum())
        for rows_N in order_N[:end].split(list(_batches(context_N[:end], size))):
            yield _take(block, rows_N)
        rest = _take(block, order_N[end:])


def read_tokens(folder: Path, split: Split, contexts: Iterable[int]) -> dict[int, list[int]]:
    """Return the token ids of the given contexts of a part; empty for vectors. No file is read without need."""
    part: Part = getattr(read_manifest(folder), split)
    wanted, first = sorted(set(contexts)), 0
    found: dict[int, list[int]] = {}
    for file in part.tokens:
        here = [context for context in wanted if first <= context < first + file.rows]
        if here:
            check_size(folder, file)
            tokens_CT = _tensors(folder, file).get("tokens", torch.empty(0))
            if tokens_CT.ndim != 2 or len(tokens_CT) != file.rows or tokens_CT.dtype != torch.int32:
                raise damaged(folder / file.name, f"not {file.rows} contexts of tokens")
            found |= dict(zip(here, tokens_CT[[context - first for context in here]].tolist(), strict=True))
        first += file.rows
    return found


def _blocks(part: Part, split: Split, manifest: Manifest) -> Iterator[list[StoredFile]]:
    """Yield the shards that were shuffled together, block by block."""
    cache = CacheConfig(**manifest.settings)
    shards = iter(part.shards)
    if not 1 <= cache.parts <= part.rows:
        raise ValueError(f"parts={cache.parts}")
    for left in block_sizes(row_limit(split, cache), manifest.width, cache, part.rows):
        block: list[StoredFile] = []
        if left < 1:
            raise ValueError(f"a block of {left} rows")
        while left > 0:
            block.append(next(shards))
            left -= block[-1].rows
        yield block


def _empty(rows: int, manifest: Manifest) -> ContextRows:
    x_ND = torch.empty(rows, manifest.width, dtype=getattr(torch, manifest.dtype))
    return ContextRows(x_ND, *torch.empty(2, rows, dtype=torch.int64))


def _join(rest: ContextRows, shards: list[StoredFile], folder: Path, manifest: Manifest) -> ContextRows:
    """Return the rows that were left and those of the shards, in no order; one shard is held twice at a time."""
    block = _empty(len(rest.context_N) + sum(shard.rows for shard in shards), manifest)
    begin = 0
    for part in chain([rest], (_load(folder, shard, manifest) for shard in shards)):
        end = begin + len(part.context_N)
        block.x_ND[begin:end] = part.x_ND
        block.context_N[begin:end], block.position_N[begin:end] = part.context_N, part.position_N
        begin = end
    return block


def _load(folder: Path, shard: StoredFile, manifest: Manifest) -> ContextRows:
    find_x(folder, shard, manifest)
    tensors = _tensors(folder, shard)
    return ContextRows(tensors["x"], tensors["context"], tensors["position"])


def _tensors(folder: Path, file: StoredFile) -> dict[str, Tensor]:
    """Return a file's tensors. Raises UserError if it is not the one that the manifest names."""
    path = folder / file.name
    data = path.read_bytes() if is_remote(path) else None
    if (sha256_of(path) if data is None else hashlib.sha256(data).hexdigest()) != file.sha256:
        raise damaged(path, f"its content is not that of {MANIFEST} (SHA-256)")
    try:
        return load_file(path) if data is None else load(data)
    except SafetensorError as error:
        raise damaged(path, f"damaged ({error})") from error


def _batches(context_N: Tensor, size: int) -> Iterator[int]:
    """Yield the rows of each batch of whole contexts."""
    filled = 0
    for rows in context_N.unique_consecutive(return_counts=True)[1].tolist():
        if filled and filled + rows > size:
            yield filled
            filled = 0
        filled += rows
    if filled:
        yield filled


def _take(rows: ContextRows, index_N: Tensor) -> ContextRows:
    return ContextRows(rows.x_ND[index_N], rows.context_N[index_N], rows.position_N[index_N])
