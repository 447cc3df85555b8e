"""Put rows where they belong while they are read: row by row into the batches of a group."""

import ctypes
import mmap
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from sae_cli.errors import UserError
from sae_cli.sparse.compiled import library

PIECE_BYTES = 1 << 20
"""Bytes that are read at a time: they stay in a core's cache until their rows are copied to their batches."""


def piece_rows(row_bytes: int, rows: int, most: int = PIECE_BYTES) -> int:
    """Return how many of a shard's rows to read at a time; without compiled kernels all: torch's calls cost more."""
    return min(rows, max(1, most // row_bytes)) if library() else rows


def inverse(order_N: Tensor) -> Tensor:
    """Return at which place of a permutation each number stands, int64."""
    return torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N)))


def pages(count: int) -> np.ndarray:
    """Return `count` bytes of zeros that begin a page, a large one where the system has any.

    Rows that are written or read in random order then find their address at once: writing took half the time.
    """
    try:
        memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise UserError(f"cache.mix_bytes: no memory for {count:,} bytes ({error}); lower it") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


class Slots:
    """Memory for batches (rows, D), each of which is used again once nothing refers to it any more."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (rows, width), dtype
        self.bytes = rows * width * dtype.itemsize
        self.free: deque[np.ndarray] = deque()
        self.made = 0

    def take(self, count: int) -> list[Tensor]:
        """Return `count` batches of undefined content."""
        if missing := max(0, count - len(self.free)):
            stride = -(-self.bytes // 64) * 64
            memory, self.made = pages(missing * stride), self.made + missing
            self.free.extend(memory[begin : begin + self.bytes] for begin in range(0, len(memory), stride))
        return [self._batch(self.free.popleft()) for _ in range(count)]

    def _batch(self, slot: np.ndarray) -> Tensor:
        view = slot[:]  # its life is that of the tensor's storage
        weakref.finalize(view, self.free.append, slot).atexit = False
        return torch.from_numpy(view).view(self.dtype).view(self.shape)


class Batches:
    """Batches (B, D) of equal size that are filled in any order, by several threads at once."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = list(batches)
        self.pointers = torch.tensor([batch.data_ptr() for batch in batches])

    def scatter(self, rows_ND: Tensor, places_N: Tensor) -> None:
        """Copy row i to place `places_N[i]` (int64), counted through all batches; a negative place: nowhere."""
        size, compiled = len(self.batches[0]), library()
        if compiled:
            tensors = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (rows_ND, places_N, self.pointers))
            numbers = (len(rows_ND), rows_ND.shape[1] * rows_ND.dtype.itemsize, size)
            compiled.sae_scatter(*tensors, *map(ctypes.c_int64, numbers))
            return
        which_N, order_N = places_N.div(size, rounding_mode="floor").sort()
        found, counts = which_N.unique_consecutive(return_counts=True)
        for number, index_N in zip(found.tolist(), order_N.split(counts.tolist()), strict=True):
            if number >= 0:
                self.batches[number][places_N[index_N] - number * size] = rows_ND[index_N]
