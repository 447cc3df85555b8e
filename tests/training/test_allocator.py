"""Large blocks come from the heap, which keeps them, and not from new mappings."""

import subprocess
import sys

import pytest

MAPPED = """
import ctypes, sys, torch
from sae_cli.training.allocator import keep_freed_memory

class Info(ctypes.Structure):  # struct mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = mallinfo().hblks
tensors = [torch.empty(2**24) for _ in range(3)]
print(mallinfo().hblks - before)
"""


@pytest.mark.parametrize(("kind", "mappings"), [("default", 3), ("kept", 0)])
def test_large_tensors_are_not_mapped_one_by_one(kind, mappings):
    command = [sys.executable, "-c", MAPPED, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == mappings
