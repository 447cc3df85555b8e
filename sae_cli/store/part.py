"""Write one part (train or validation) of one cache: shuffle a block in memory, store it, record it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_cli.config.schema import CacheConfig
from sae_cli.errors import UserError
from sae_cli.sources import RowBlock, Split
from sae_cli.store.format import Part, StoredFile, Tensors, read_header, shard_tensors, write_tensors
from sae_cli.store.order import block_rows, permutation, row_limit, shard_rows

_COPY_BYTES = 1 << 22
_SUM_ROWS = 1024


@dataclass
class PartState(Part):
    """What is stored of a part, as progress.json records it after every block."""

    blocks: int = 0
    contexts: int = 0
    """Contexts whose tokens are stored."""
    token_pieces: int = 0
    """Files in which these tokens wait for the end of the part."""
    sum_D: list[float] = field(default_factory=list)
    sum_squares: float = 0.0
    complete: bool = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PartState":
        """Check and convert. Raises ValueError, TypeError or KeyError."""
        part = Part.from_dict(data)
        return cls(**{**data, "shards": part.shards, "tokens": part.tokens})


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's bytes without a copy."""
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B") if tensor.numel() else memoryview(b"")


class PartWriter:
    """Gathers rows from `state.rows` on. `save` makes the state durable; it is called after each block's files."""

    def __init__(
        self, folder: Path, split: Split, hook: str, width: int, cache: CacheConfig, state: PartState, save: Callable
    ) -> None:
        self.folder, self.split, self.hook, self.width = folder, split, hook, width
        self.cache, self.state, self.save = cache, state, save
        self.limit = row_limit(split, cache)
        self.dtype = getattr(torch, cache.dtype)
        most = block_rows(0, self.limit, width, cache)
        self.x_ND = torch.empty(most, width, dtype=self.dtype)
        self.context_N = torch.empty(most, dtype=torch.int32)
        self.position_N = torch.empty(most, dtype=torch.int32)
        self.filled = 0
        self.texts: list[RowBlock] = []

    @property
    def next_row(self) -> int:
        """The row of the stream that is wanted next."""
        return self.state.rows + self.filled

    @property
    def full(self) -> bool:
        """Whether no more rows are wanted."""
        return 0 < self.limit <= self.next_row or (self.split == "validation" and not self.limit)

    def add(self, block: RowBlock) -> None:
        """Take the rows that are wanted from a block; those already there and those beyond the limit are dropped."""
        begin = self.next_row - block.start
        assert begin >= 0, f"the source left out rows {self.next_row} to {block.start}"
        if block.tokens_CT is not None:
            self.texts.append(block)
        rows = len(block.context_N)
        while begin < rows and not self.full:
            size = block_rows(self.state.blocks, self.limit, self.width, self.cache)
            taken = min(size - self.filled, rows - begin)
            here, there = slice(self.filled, self.filled + taken), slice(begin, begin + taken)
            self.x_ND[here] = block.x[self.hook][there]
            self.context_N[here] = block.context_N[there]
            self.position_N[here] = block.position_N[there]
            self._check_finite(here)
            self.filled, begin = self.filled + taken, begin + taken
            if self.filled == size:
                self._store_block()

    def end(self) -> None:
        """Store what is left and join the tokens.

        Raises UserError if the source ended before the rows that were asked for; cache.tokens=0 takes what there is.
        """
        if self.cache.tokens and self.next_row < self.limit:
            key = "cache.tokens" if self.split == "train" else "cache.validation_tokens"
            raise UserError(
                f"{key}={self.limit}: the source has only {self.next_row} {self.split} rows; "
                f"set {key} to at most {self.next_row}, or give it more text"
            )
        if self.filled:
            self._store_block()
        if self.state.token_pieces:
            self.state.tokens = self._join_tokens()
        self.state.complete = True
        self.save()

    def _check_finite(self, rows: slice) -> None:
        """Refuse values that the dtype on disk cannot hold (the source refuses those that are not finite already)."""
        bad_N = ~torch.isfinite(self.x_ND[rows]).all(dim=1)
        if bad_N.any():
            row = rows.start + int(bad_N.nonzero()[0])
            raise UserError(
                f"cache.dtype={self.cache.dtype} overflows at hook {self.hook}, {self.split} row "
                f"{self.state.rows + row} (context {self.context_N[row]}, position {self.position_N[row]}); "
                "use cache.dtype=bfloat16 or float32"
            )

    def _store_block(self) -> None:
        """Write the gathered rows as shards, in shuffled order, then record them."""
        state = self.state
        order_N = permutation(self.filled, self.cache.seed, "write", self.split, state.blocks)
        begin, added = 0, []
        for rows in shard_rows(self.filled, self.width, self.cache):
            index = order_N[begin : begin + rows]
            name = f"{self.split}-{len(state.shards) + len(added):05d}.safetensors"
            columns = (_bytes(column[index]) for column in (self.context_N, self.position_N, self.x_ND))
            tensors = shard_tensors(rows, self.width, self.cache.dtype)
            added.append(write_tensors(self.folder / name, tensors, columns))
            begin += rows
        self._store_tokens(int(self.context_N[: self.filled].max()) + 1)
        self._sum()
        state.shards += added
        state.rows += self.filled
        state.blocks += 1
        self.filled = 0
        self.save()

    def _sum(self) -> None:
        """Add the block to the sums in float64: numpy on fixed pieces, so that no thread count changes a bit."""
        sum_D = np.array(self.state.sum_D or [0.0] * self.width)
        for piece in self.x_ND[: self.filled].split(_SUM_ROWS):
            x_ND = piece.double().numpy()
            sum_D += x_ND.sum(axis=0)
            self.state.sum_squares += float(np.square(x_ND).sum())
        self.state.sum_D = sum_D.tolist()

    def _store_tokens(self, end: int) -> None:
        """Store the tokens of the contexts before `end` that are not stored yet, as one piece."""
        if not self.texts or end <= self.state.contexts:
            return
        columns: dict[str, list[torch.Tensor]] = {"tokens": [], "document": []}
        at = self.state.contexts
        for text in self.texts:
            here = slice(max(at - text.first_context, 0), max(end - text.first_context, 0))
            for name, ids_CT in (("tokens", text.tokens_CT), ("document", text.document_CT)):
                if ids_CT is not None:
                    columns[name].append(ids_CT[here].int())
            at = max(at, min(end, text.first_context + len(text.tokens_CT)))
        ids = {name: torch.cat(pieces) for name, pieces in columns.items() if pieces}
        wrong = [name for name, ids_CT in ids.items() if len(ids_CT) != end - self.state.contexts]
        assert not wrong, f"the source left out {wrong} of contexts {self.state.contexts} to {end}"
        tensors: Tensors = {name: ("int32", tuple(ids_CT.shape)) for name, ids_CT in ids.items()}
        write_tensors(self._piece(self.state.token_pieces), tensors, map(_bytes, ids.values()))
        self.state.token_pieces += 1
        self.state.contexts = end
        # A context can begin in this block and go on in the next, so only texts that are wholly stored are let go.
        self.texts = [text for text in self.texts if text.first_context + len(text.tokens_CT) > end]

    def _piece(self, index: int) -> Path:
        return self.folder / f"tokens-{self.split}-{index:05d}.piece"

    def _join_tokens(self) -> StoredFile:
        """Join the pieces to one file, tensor by tensor, without holding them in memory."""
        pieces = [self._piece(index) for index in range(self.state.token_pieces)]
        headers = [read_header(piece) for piece in pieces]
        length = headers[0]["tokens"].shape[1]
        tensors: Tensors = {name: ("int32", (self.state.contexts, length)) for name in headers[0]}

        def chunks() -> Iterator[bytes]:
            for name in tensors:
                for piece, header in zip(pieces, headers, strict=True):
                    with piece.open("rb") as stream:
                        stream.seek(header[name].offset)
                        left = header[name].bytes
                        while left:
                            chunk = stream.read(min(left, _COPY_BYTES))
                            left -= len(chunk)
                            yield chunk

        return write_tensors(self.folder / f"tokens-{self.split}.safetensors", tensors, chunks())
