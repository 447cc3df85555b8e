"""Write a share of one part (train or validation) of a cache: shuffle a block in memory, store it, record it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sae_cli.config.schema_data import CacheConfig
from sae_cli.errors import UserError
from sae_cli.sources import RowBlock, Split
from sae_cli.store.format import Part, bytes_of, shard_tensors, tokens_tensors, write_tensors
from sae_cli.store.order import block_rows, permutation, row_limit, shard_rows, share_rows, share_suffix

_SUM_NUMBERS = 16_384
"""Numbers that are summed at a time: less than what torch shares among threads, whose waiting costs far more."""


@dataclass
class PartState(Part):
    """What is stored of a part, as progress.json records it after every block."""

    blocks: int = 0
    sum_D: list[float] = field(default_factory=list)
    sum_squares: float = 0.0
    complete: bool = False

    def __post_init__(self) -> None:
        if not all(
            isinstance(number, int | float) and abs(number) < 1e300 for number in (*self.sum_D, self.sum_squares)
        ):
            raise ValueError("sums are not finite numbers")
        if type(self.blocks) is not int or bool(self.sum_D) != bool(self.rows):
            raise ValueError("blocks or sums do not fit the rows")


class PartWriter:
    """Gathers a share's rows, `state.rows` of which are stored. `save` makes the state durable, after each block.

    Its work is copied by NumPy, in one thread: it runs beside a forward pass, whose threads it must not disturb.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        hook: str,
        width: int,
        cache: CacheConfig,
        state: PartState,
        save: Callable,
        share: int = 0,
    ) -> None:
        self.folder, self.split, self.hook, self.width = folder, split, hook, width
        self.cache, self.state, self.save = cache, state, save
        self.first, self.limit = share_rows(share, row_limit(split, cache), cache)
        self.suffix = share_suffix(share, cache)
        self.key: list[int | str] = [cache.seed, "write", split, *([share] if cache.parts > 1 else [])]
        columns = shard_tensors(block_rows(0, self.limit, width, cache), width, cache.dtype)
        self.columns = {k: torch.empty(shape, dtype=getattr(torch, dtype)) for k, (dtype, shape) in columns.items()}
        self.filled = 0
        self.texts: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.next_context: int | None = None

    @property
    def next_row(self) -> int:
        """The row of the stream that is wanted next."""
        return self.first + self.state.rows + self.filled

    @property
    def end_row(self) -> float:
        """The row of the stream before which the share ends; infinity if it takes what there is."""
        open_ended = self.split == "train" and not self.limit
        return float("inf") if open_ended else self.first + self.limit

    def add(self, block: RowBlock) -> None:
        """Take what is wanted of a block; rows that are there already and those beyond the limit are dropped."""
        begin, rows = self.next_row - block.start, len(block.context_N)
        if begin >= rows:
            return
        assert begin >= 0, f"the source left out rows {self.next_row} to {block.start}"
        if self.next_context is None:
            self.next_context = int(block.context_N[begin - 1]) + 1 if begin else block.first_context
        if block.tokens_CT is not None and block.document_CT is not None:
            self.texts.append((block.first_context, block.tokens_CT, block.document_CT))
        given = {"x": block.x[self.hook], "context": block.context_N, "position": block.position_N}
        arrived = {name: _rows(given[name].to(column.dtype)) for name, column in self.columns.items()}
        while begin < rows and self.next_row < self.end_row:
            size = block_rows(self.state.blocks, self.limit, self.width, self.cache)
            taken = min(size - self.filled, rows - begin)
            for name, column in self.columns.items():
                _rows(column)[self.filled : self.filled + taken] = arrived[name][begin : begin + taken]
            self.filled, begin = self.filled + taken, begin + taken
            if self.filled == size:
                self._store_block()

    def end(self) -> None:
        """Store what is left. Raises UserError if the source ended too early; cache.tokens=0 takes what there is."""
        if self.cache.tokens and self.next_row < self.end_row:
            key = "cache.tokens" if self.split == "train" else "cache.validation_tokens"
            raise UserError(
                f"{key}={row_limit(self.split, self.cache)}: the source has only {self.next_row} {self.split} rows; "
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
        order_N = permutation(self.filled, *self.key, state.blocks)
        for index_N in order_N.split(shard_rows(self.filled, self.width, self.cache)):
            path = self.folder / f"{self.split}{self.suffix}-{len(state.shards):05d}.safetensors"
            columns = (_rows(column).take(index_N.numpy(), axis=0) for column in self.columns.values())
            state.shards.append(write_tensors(path, shard_tensors(len(index_N), self.width, self.cache.dtype), columns))
        self._store_tokens(int(self.columns["context"][: self.filled].numpy().max()) + 1)
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
                f"{self.first + self.state.rows + row} (context {context}, position {position}); "
                "use cache.dtype=bfloat16 or float32, which hold larger values"
            )
        self.state.sum_D = sum_D.tolist()

    def _store_tokens(self, end: int) -> None:
        """Write the tokens of the contexts before `end` that no file, of this share or one before it, holds yet."""
        begin = self.next_context
        if begin is None or not self.texts or begin >= end:
            return
        pieces = [[ids[max(0, begin - at) : max(0, end - at)].int() for ids in text] for at, *text in self.texts]
        columns = [torch.cat(column) for column in zip(*pieces, strict=True)]
        count = len(columns[0])
        assert count == end - begin, f"the source gave {count} texts for contexts {begin} to {end}"
        path = self.folder / f"tokens-{self.split}{self.suffix}-{len(self.state.tokens):05d}.safetensors"
        self.state.tokens.append(write_tensors(path, tokens_tensors(*columns[0].shape), map(bytes_of, columns)))
        self.next_context = end
        # The text that came last may hold contexts whose rows belong to the next block.
        self.texts = self.texts[-1:]


def _rows(column: torch.Tensor) -> np.ndarray:
    """Return the bytes of a column on the CPU as (rows, bytes of a row), without a copy if it is contiguous."""
    return column.contiguous().view(len(column), -1).view(torch.uint8).numpy()
