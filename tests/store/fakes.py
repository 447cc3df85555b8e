"""A row source whose rows say which they are: row i of a part holds i in its first columns."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_cli.config.schema_data import CacheConfig
from sae_cli.sources import RowBlock, Split

ROOT = Path(__file__).parents[2]
OFFSET = {"train": 0, "validation": 1_000_000}


def identities(x_ND: torch.Tensor) -> list[int]:
    """Return the row numbers that are encoded in the first three columns (base 128, exact in bf16)."""
    digits = x_ND[:, :3].double() @ torch.tensor([1.0, 128.0, 16384.0], dtype=torch.float64)
    return digits.long().tolist()


class FakeRows:
    """`contexts` contexts of `length` tokens, the first of which gives no row; `per_pass` contexts per block."""

    def __init__(
        self,
        widths: dict[str, int],
        contexts: int = 100,
        length: int = 6,
        per_pass: int = 4,
        pause: float = 0.0,
        text: bool = True,
        largest: float = 1.0,
    ) -> None:
        self.widths, self.contexts, self.length, self.per_pass = widths, contexts, length, per_pass
        self.pause, self.text, self.largest = pause, text, largest
        self.started: list[tuple[str, int]] = []

    def fingerprint(self, hook: str) -> str:
        return f"rows-of-{hook}-{self.contexts}"

    def describe(self, hook: str) -> dict[str, Any]:
        return {"source": "fake", "hook": hook, "length": self.length}

    def values(self, split: Split, hook: str, row_N: torch.Tensor) -> torch.Tensor:
        width = self.widths[hook]
        number_N = row_N + OFFSET[split]
        digits_N3 = torch.stack([number_N % 128, number_N // 128 % 128, number_N // 16384], dim=1).float()
        rest_ND = torch.sin(number_N[:, None] * torch.arange(1, width - 2)) * self.largest
        return torch.cat([digits_N3, rest_ND], dim=1)

    def rows(self, split: Split, start: int) -> Iterator[RowBlock]:
        self.started.append((split, start))
        per_context = self.length - 1
        first = start // (per_context * self.per_pass) * self.per_pass
        for context in range(first, self.contexts, self.per_pass):
            time.sleep(self.pause)
            count = min(self.per_pass, self.contexts - context)
            row_N = torch.arange(context * per_context, (context + count) * per_context)
            token_CT = torch.arange(context * self.length, (context + count) * self.length).view(count, self.length)
            yield RowBlock(
                start=context * per_context,
                x={hook: self.values(split, hook, row_N) for hook in self.widths},
                context_N=(row_N // per_context).int(),
                position_N=(row_N % per_context + 1).int(),
                tokens_CT=(token_CT + OFFSET[split]).int() if self.text else None,
                document_CT=(token_CT // 10).int() if self.text else None,
                first_context=context,
            )


def small_cache(**changes: Any) -> CacheConfig:
    """Return settings under which 450 rows of width 8 take several blocks of several shards."""
    settings = {"tokens": 450, "validation_tokens": 60, "shuffle_bytes": 2000, "shard_bytes": 600, "dtype": "bfloat16"}
    return CacheConfig(**{**settings, **changes})


def in_process(module: str, *arguments: str) -> str:
    """Run a module of the tests in a process of its own; return what it prints.

    The C library gives freed blocks back at once, so that peak memory is what is held and not how it is fragmented.
    """
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
