"""The order of rows: how they are cut into blocks and shards, and the permutations of writer and loader."""

from typing import TYPE_CHECKING

from sae_cli.config.schema_data import CacheConfig
from sae_cli.randomness import derive_seed
from sae_cli.store.format import DTYPES

if TYPE_CHECKING:
    from torch import Tensor


def row_limit(split: str, cache: CacheConfig) -> int:
    """Return the most rows that a part stores; 0: as many as there are."""
    return cache.tokens if split == "train" else cache.validation_tokens


def block_rows(index: int, limit: int, width: int, cache: CacheConfig) -> int:
    """Return the rows of block `index` of a part: those that are shuffled together.

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
