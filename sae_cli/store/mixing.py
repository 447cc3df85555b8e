"""Put rows where they belong while they are read: row by row into the batches of a group."""

import ctypes

import torch
from torch import Tensor

from sae_cli.sparse.compiled import library

PIECE_BYTES = 1 << 19
"""Bytes that are read at a time: they stay in a core's cache until their rows are copied to their batches."""


def piece_rows(row_bytes: int, rows: int) -> int:
    """Return how many of a shard's rows are read at a time; without compiled kernels all: torch's calls cost more."""
    return max(1, PIECE_BYTES // row_bytes) if library() else rows


def inverse(order_N: Tensor) -> Tensor:
    """Return at which place of a permutation each number stands, int64."""
    return torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N)))


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
