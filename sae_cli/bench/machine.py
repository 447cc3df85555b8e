"""What a machine can do: its rates of products, copies and cache reads, and the memory that work takes."""

import ctypes
import logging
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_cli.config.compose import compose
from sae_cli.sources.registry import open_rows
from sae_cli.store.loader import CacheReader
from sae_cli.store.writer import write_caches

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROC = Path("/proc/self")


def seconds_per_call(action: Callable[[], object], device: str, budget: float, least: int = 3) -> list[float]:
    """Return the seconds of each call, `least` calls at least and then until `budget` seconds have passed.

    The first call is not counted. On CUDA ten calls are timed together, so that launches overlap with the work.
    """
    size = 10 if device.startswith("cuda") else 1
    took: list[float] = []
    while len(took) <= least or sum(took[1:]) * size < budget:
        began = time.perf_counter()
        for _ in range(size):
            action()
        if size > 1:
            torch.cuda.synchronize(device)
        took.append((time.perf_counter() - began) / size)
    return took[1:]


def machine(device: str, seconds: float = 1.0) -> dict[str, Any]:
    """Return what the machine is and its ceilings: products by precision in flop/s, copies in byte/s (read + write)."""
    on_cuda = device.startswith("cuda")
    edge, numbers = (8192, 1 << 28) if on_cuda else (2048, 1 << 26)
    ceilings = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        took = seconds_per_call(partial(torch.mm, a, b, out=out), device, seconds)
        ceilings[f"{name}_flops"] = 2 * edge**3 / min(took)
    source, target = torch.ones(numbers, device=device), torch.zeros(numbers, device=device)
    ceilings["copy_bytes"] = 8 * numbers / min(seconds_per_call(lambda: target.copy_(source), device, seconds))
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else f"{platform.machine()} CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **ceilings,
    }


def cache_rates(width: int, rows: int, seconds: float = 1.0, memory: int = 0) -> dict[str, float]:
    """Return byte/s of writing a bfloat16 cache from a file and reading it mixed, bytes of a row on disk, and peaks.

    memory: bytes for shuffling and for mixing; 0: a quarter of the cache, so that batches come from files, which the
    system still holds.
    """
    logger, held, config = logging.getLogger("sae_cli.store"), 2 * rows * width, compose([])
    memory = memory or held // 4
    level, logger.level = logger.level, logging.WARNING
    try:
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/x.npy", np.random.default_rng(0).standard_normal((rows, width), np.float32))
            config.source.kind, config.source.path, config.text.validation = "vectors", f"{folder}/x.npy", 1e-4
            config.cache.tokens, config.cache.validation_tokens = 0, 1
            config.cache.shard_bytes, config.cache.shuffle_bytes = max(1024, memory // 8), max(4096, memory)
            cache = Path(folder) / "cache"
            cache.mkdir()
            peak, began = Peak("cpu"), time.perf_counter()
            write_caches(open_rows(config, "cpu"), config.cache, {"vectors": cache})
            found = {"write_bytes": held / (time.perf_counter() - began), "write_peak": peak.read() or 0}
            found["bytes_per_row"] = sum(file.stat().st_size for file in cache.rglob("*")) / rows
            peak, size = Peak("cpu"), min(2048, rows)
            batches = CacheReader(cache, memory, 0).batches(0, size)
            took = seconds_per_call(lambda: next(batches), "cpu", seconds, least=rows // size)
            batches.close()  # type: ignore[attr-defined]
            return found | {"read_bytes": 2 * size * width * len(took) / sum(took), "read_peak": peak.read() or 0}
    finally:
        logger.level = level


class Peak:
    """The memory that work takes at its peak, over what was taken before."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = 0
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        with suppress(OSError, AttributeError):  # Linux with glibc only
            ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier work freed
            (PROC / "clear_refs").write_text("5")  # the peak starts anew from what is resident
            self.before = self._kilobytes("VmRSS") * 1024

    def read(self) -> int | None:
        """Return bytes; None where the system does not tell."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return self._kilobytes("VmHWM") * 1024 - self.before if self.before else None

    def _kilobytes(self, name: str) -> int:
        found = re.search(rf"{name}:\s*(\d+) kB", (PROC / "status").read_text())
        assert found, name
        return int(found[1])
