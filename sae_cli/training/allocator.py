"""Memory that a CPU training step frees is kept for the next step."""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT, STEP = 2**31 - 1, 2**26


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse freed blocks instead of returning them to the system; False without glibc.

    By default every large tensor of a step is mapped anew and its pages are cleared by the kernel: a step took 13 %
    less time without that (median of five pairs, benchmarks/allocator.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, KEPT), mallopt(M_TOP_PAD, STEP)])
