"""The order of rows: how they are cut into blocks and shards, and the permutations of writer and loader."""

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from sae_cli.config.schema_data import CacheConfig
from sae_cli.randomness import derive_seed
from sae_cli.store.format import DTYPES

if TYPE_CHECKING:
    from torch import Tensor


def row_limit(split: str, cache: CacheConfig) -> int:
    """Return the most rows that a part stores; 0: as many as there are."""
    return cache.tokens if split == "train" else cache.validation_tokens


def share_rows(share: int, limit: int, cache: CacheConfig) -> tuple[int, int]:
    """Return the first row, and the number of rows, of the `share` of a part that one of cache.parts workers stores."""
    first, end = (limit * index // cache.parts for index in (share, share + 1))
    return first, end - first


def share_suffix(share: int, cache: CacheConfig) -> str:
    """Return what the names of a share's files have in common: nothing if there is one share only."""
    return f"-{share:04d}" if cache.parts > 1 else ""


def block_sizes(limit: int, width: int, cache: CacheConfig, rows: int) -> Iterator[int]:
    """Yield the rows of each block of a part of `rows` rows in the order of the source, share by share."""
    done = 0
    for share in range(cache.parts):
        first, within = share_rows(share, limit, cache)
        end = min(rows, first + within) if limit else rows
        for index in count():
            if done == end:
                break
            size = min(block_rows(index, within, width, cache), end - done)
            yield size
            done += size


def block_rows(index: int, limit: int, width: int, cache: CacheConfig) -> int:
    """Return the rows of block `index` of a share of `limit` rows (0: unknown): those that are shuffled together.

    A known number of rows is cut into the fewest even blocks, so that no small rest is mixed with itself alone.
    """
    most = max(1, cache.shuffle_bytes // (width * DTYPES[cache.dtype][1]))
    if not limit:
        return most
    blocks = -(-limit // most)
    return limit // blocks + (index < limit % blocks)


def shard_rows(block: int, width: int, cache: CacheConfig) -> list[int]:
    """Return the rows of each shard into which a block of `block` rows is cut: even, the larger first."""
    most = max(1, cache.shard_bytes // (width * DTYPES[cache.dtype][1]))
    shards = -(-block // most)
    return [block // shards + (index < block % shards) for index in range(shards)]


def permutation(count: int, *key: int | str) -> "Tensor":
    """Return a permutation of range(count), int64, that is a pure function of `count` and `key`."""
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(*key)))
