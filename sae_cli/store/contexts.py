"""Read a cache in the order of its text: whole contexts, with memory for one shuffled block and its copy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sae_cli.config.schema_data import CacheConfig
from sae_cli.sources import Split
from sae_cli.store.format import Manifest, Part, StoredFile, check_size, find_x, read_manifest
from sae_cli.store.order import block_rows, row_limit


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
    rest = ContextRows(torch.empty(0, manifest.width, dtype=getattr(torch, manifest.dtype)), *torch.empty(2, 0).long())
    blocks = list(_blocks(part, split, manifest))
    for index, shards in enumerate(blocks):
        block = _sorted(rest, [_load(folder, shard, manifest) for shard in shards])
        end = len(block.context_N)
        if index + 1 < len(blocks):
            end -= int((block.context_N == block.context_N[-1]).sum())
        begin = 0
        for length in _batches(block.context_N[:end], size):
            yield _slice(block, begin, begin + length)
            begin += length
        rest = _slice(block, end, len(block.context_N))


def read_tokens(folder: Path, split: Split, contexts: Iterable[int]) -> dict[int, list[int]]:
    """Return the token ids of the given contexts of a part; empty for vectors. No file is read without need."""
    part: Part = getattr(read_manifest(folder), split)
    wanted, first = sorted(set(contexts)), 0
    found: dict[int, list[int]] = {}
    for file in part.tokens:
        here = [context for context in wanted if first <= context < first + file.rows]
        if here:
            check_size(folder, file)
            with safe_open(folder / file.name, framework="pt") as stream:
                rows_CT = stream.get_tensor("tokens")[[context - first for context in here]]
            found |= dict(zip(here, rows_CT.tolist(), strict=True))
        first += file.rows
    return found


def _blocks(part: Part, split: Split, manifest: Manifest) -> Iterator[list[StoredFile]]:
    """Yield the shards that were shuffled together, block by block."""
    cache = CacheConfig(**manifest.settings)
    shards = iter(part.shards)
    index = done = 0
    while done < part.rows:
        end = done + block_rows(index, row_limit(split, cache), manifest.width, cache)
        block: list[StoredFile] = []
        while done < min(end, part.rows):
            block.append(next(shards))
            done += block[-1].rows
        yield block
        index += 1


def _load(folder: Path, shard: StoredFile, manifest: Manifest) -> ContextRows:
    find_x(folder, shard, manifest)
    tensors = load_file(folder / shard.name)
    return ContextRows(tensors["x"], tensors["context"].long(), tensors["position"].long())


def _sorted(rest: ContextRows, shards: list[ContextRows]) -> ContextRows:
    """Join rows and put them in text order."""
    parts = [rest, *shards]
    context_N = torch.cat([part.context_N for part in parts])
    position_N = torch.cat([part.position_N for part in parts])
    order_N = (context_N * (int(position_N.max()) + 1) + position_N).argsort()
    x_ND = torch.cat([part.x_ND for part in parts])
    return ContextRows(x_ND[order_N], context_N[order_N], position_N[order_N])


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


def _slice(rows: ContextRows, begin: int, end: int) -> ContextRows:
    return ContextRows(rows.x_ND[begin:end], rows.context_N[begin:end], rows.position_N[begin:end])
