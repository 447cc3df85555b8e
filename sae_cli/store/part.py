"""Write one part (train or validation) of one cache: shuffle a block in memory, store it, record it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from sae_cli.config.schema_data import CacheConfig
from sae_cli.errors import UserError
from sae_cli.sources import RowBlock, Split
from sae_cli.store.format import Part, bytes_of, shard_tensors, tokens_tensors, write_tensors
from sae_cli.store.order import block_rows, permutation, row_limit, shard_rows

_SUM_NUMBERS = 16_384
"""Numbers that are summed at a time: less than what torch shares among threads, whose waiting costs far more."""


@dataclass
class PartState(Part):
    """What is stored of a part, as progress.json records it after every block."""

    blocks: int = 0
    sum_D: list[float] = field(default_factory=list)
    sum_squares: float = 0.0
    complete: bool = False


class PartWriter:
    """Gathers rows from `state.rows` on. `save` makes the state durable; it is called after each block's files."""

    def __init__(
        self, folder: Path, split: Split, hook: str, width: int, cache: CacheConfig, state: PartState, save: Callable
    ) -> None:
        self.folder, self.split, self.hook, self.width = folder, split, hook, width
        self.cache, self.state, self.save = cache, state, save
        self.limit = row_limit(split, cache)
        columns = shard_tensors(block_rows(0, self.limit, width, cache), width, cache.dtype)
        self.columns = {k: torch.empty(shape, dtype=getattr(torch, dtype)) for k, (dtype, shape) in columns.items()}
        self.filled = 0
        self.texts: list[RowBlock] = []

    @property
    def next_row(self) -> int:
        """The row of the stream that is wanted next."""
        return self.state.rows + self.filled

    @property
    def full(self) -> bool:
        """Whether no more rows are wanted."""
        open_ended = self.split == "train" and not self.limit
        return not open_ended and self.next_row >= self.limit

    def add(self, block: RowBlock) -> None:
        """Take what is wanted of a block; rows that are there already and those beyond the limit are dropped."""
        begin, rows = self.next_row - block.start, len(block.context_N)
        assert begin >= 0, f"the source left out rows {self.next_row} to {block.start}"
        if block.tokens_CT is not None:
            self.texts.append(replace(block, x={}))
        arrived = {"x": block.x[self.hook], "context": block.context_N, "position": block.position_N}
        while begin < rows and not self.full:
            size = block_rows(self.state.blocks, self.limit, self.width, self.cache)
            taken = min(size - self.filled, rows - begin)
            here, there = slice(self.filled, self.filled + taken), slice(begin, begin + taken)
            for name, column in self.columns.items():
                column[here] = arrived[name][there]
            self.filled, begin = self.filled + taken, begin + taken
            if self.filled == size:
                self._store_block()

    def end(self) -> None:
        """Store what is left. Raises UserError if the source ended too early; cache.tokens=0 takes what there is."""
        if self.cache.tokens and not self.full:
            key = "cache.tokens" if self.split == "train" else "cache.validation_tokens"
            raise UserError(
                f"{key}={self.limit}: the source has only {self.next_row} {self.split} rows; "
                f"set {key} to at most {self.next_row}, or give it more text"
            )
        if self.filled:
            self._store_block()
        self.state.complete = True
        self.save()

    def _store_block(self) -> None:
        """Write the gathered rows as shards, in shuffled order, then record them."""
        state = self.state
        self._sum()
        order_N = permutation(self.filled, self.cache.seed, "write", self.split, state.blocks)
        for index_N in order_N.split(shard_rows(self.filled, self.width, self.cache)):
            path = self.folder / f"{self.split}-{len(state.shards):05d}.safetensors"
            columns = (bytes_of(column[index_N]) for column in self.columns.values())
            state.shards.append(write_tensors(path, shard_tensors(len(index_N), self.width, self.cache.dtype), columns))
        self._store_tokens(int(self.columns["context"][: self.filled].max()) + 1)
        state.rows += self.filled
        state.blocks += 1
        self.filled = 0
        self.save()

    def _sum(self) -> None:
        """Add the block to the sums, in float64 and in fixed pieces, so that no thread count changes a bit.

        Raises UserError if a value is not finite in the dtype on disk.
        """
        x_ND = self.columns["x"][: self.filled]
        sum_D = np.array(self.state.sum_D or [0.0] * self.width)
        with np.errstate(invalid="ignore"):
            for piece in x_ND.split(max(1, _SUM_NUMBERS // self.width)):
                piece_ND = piece.double().numpy()
                sum_D += piece_ND.sum(axis=0)
                self.state.sum_squares += float(np.square(piece_ND).sum())
        if not np.isfinite(self.state.sum_squares):
            row = int((~torch.isfinite(x_ND).all(dim=1)).nonzero()[0])
            context, position = (int(self.columns[name][row]) for name in ("context", "position"))
            raise UserError(
                f"cache.dtype={self.cache.dtype}: not finite at hook {self.hook}, {self.split} row "
                f"{self.state.rows + row} (context {context}, position {position}); "
                "use cache.dtype=bfloat16 or float32, which hold larger values"
            )
        self.state.sum_D = sum_D.tolist()

    def _store_tokens(self, end: int) -> None:
        """Write the tokens of the contexts before `end` that no file holds yet."""
        begin = sum(file.rows for file in self.state.tokens)
        if not self.texts or begin >= end:
            return
        ids: list[torch.Tensor] = []
        for name in ("tokens_CT", "document_CT"):
            pieces = ((text.first_context, getattr(text, name)) for text in self.texts)
            ids.append(torch.cat([ids_CT[max(0, begin - at) : max(0, end - at)].int() for at, ids_CT in pieces]))
        count = len(ids[0])
        assert count == end - begin, f"the source gave {count} texts for contexts {begin} to {end}"
        path = self.folder / f"tokens-{self.split}-{len(self.state.tokens):05d}.safetensors"
        self.state.tokens.append(write_tensors(path, tokens_tensors(*ids[0].shape), map(bytes_of, ids)))
        # The text that came last may hold contexts whose rows belong to the next block.
        self.texts = self.texts[-1:]
