"""Tensors in torch's .pt files; no pickle is run."""

from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor


def load_plain(path: Path, mmap: bool = False) -> Any:
    """Return what a .pt file holds, tensors and plain values alone, on the CPU; `mmap`: mapped, not read.

    Raises ValueError for a packed file: it could fill the memory, and mapped it would be read as other numbers. For
    all else that is not sound zipfile, pickle and torch have errors without a common base class.
    """
    with ZipFile(path) as parts:
        if any(part.compress_type != ZIP_STORED for part in parts.infolist()):
            raise ValueError("compressed")
    return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


def is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers are all stored: a view that repeats them can claim any shape."""
    return tensor.nbytes <= tensor.untyped_storage().nbytes()
