"""Vectors per second of the cache reader against other ways to read the same vectors in random order.

In turn in one process, D 640, batches of 2,048, files in the page cache: the reader on a cache larger than
`cache.mix_bytes` (groups of shards are mixed) and on one that fits in it; a bare shuffled memmap of one flat file by
torch's index_select and by numpy's indexing, the better of which counts; SAELens's mixing buffer, fed in pieces of half
its size, which is best for it (its mixing_buffer.py is taken from an installed or unpacked sae-lens, nothing else of
it is imported; without it the same algorithm stands below); and a plain sequential read as the ceiling.
Usage: OMP_NUM_THREADS=2 [PYTHONPATH=folder of sae_lens] python benchmarks/cache_read.py [--rounds N] [--out FILE]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from publish import publish
from torch import Tensor

from sae_cli.config.compose import compose
from sae_cli.sources.registry import ensure_cache
from sae_cli.sparse.compiled import library
from sae_cli.store.loader import CacheReader
from sae_cli.training.allocator import keep_freed_memory

WIDTH, BATCH = 640, 2048
EPOCHS = 3
"""Passes of the reader in a round. It goes on with one stream, as training does: a group is read ahead when a round
begins and another when it ends."""
Read = Callable[[], object]


def saelens() -> tuple[str, Callable[..., Iterator[Tensor]]]:
    found = find_spec("sae_lens")
    if found is None:
        return "SAELens's algorithm", mixing_buffer
    folder = Path((found.submodule_search_locations or [""])[0])
    spec = spec_from_file_location("mixing_buffer", folder / "training" / "mixing_buffer.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return "SAELens", module.mixing_buffer


def mixing_buffer(buffer_size: int, batch_size: int, activations_loader: Iterator[Tensor]) -> Iterator[Tensor]:
    """Join new rows to the kept ones; once there are `buffer_size`, shuffle all and give out half of that."""
    kept_ND = torch.empty(0)
    for new_ND in activations_loader:
        kept_ND = torch.cat([kept_ND, new_ND]) if len(kept_ND) else new_ND
        if len(kept_ND) >= buffer_size:
            kept_ND = kept_ND[torch.randperm(len(kept_ND))]
            end = (len(kept_ND) - buffer_size // 2) // batch_size * batch_size
            yield from kept_ND[:end].split(batch_size)
            kept_ND = kept_ND[end:]


def readers(folder: Path, dtype: torch.dtype, rows: int, mix_bytes: int) -> dict[str, tuple[int, Read]]:
    """Return by name how many vectors a call reads, and the call."""
    (cache,) = ensure_cache(
        compose(
            [
                *("source=vectors", f"source.path={folder}/vectors", "text.validation=0.001", "cache.tokens=0"),
                *("cache.validation_tokens=100", f"cache.dir={folder}", f"cache.dtype={str(dtype)[6:]}"),
            ]
        )
    )
    mixed, resident = CacheReader(cache, mix_bytes, 0), CacheReader(cache, 1 << 40, 0)
    flat, batches = folder / "flat.bin", mixed.rows // BATCH
    with flat.open("wb") as stream:
        for x_BD in islice(resident.batches(0, BATCH), batches):
            stream.write(x_BD.view(torch.uint8).numpy())
    number = np.float32 if dtype == torch.float32 else np.int16
    streams = {reader: reader.batches(0, BATCH) for reader in (mixed, resident)}
    mapped = np.memmap(flat, number, "r+", shape=(batches * BATCH, WIDTH))
    mapped_ND = torch.from_numpy(mapped).view(dtype)
    buffer = mix_bytes // mixed._row_bytes // 2 // BATCH * BATCH * 2

    def by_torch() -> None:
        for index_N in torch.randperm(len(mapped)).split(BATCH):
            torch.index_select(mapped_ND, 0, index_N)

    def by_numpy() -> None:
        order = np.random.permutation(len(mapped))
        for begin in range(0, len(order), BATCH):
            mapped[order[begin : begin + BATCH]]

    def take(reader: CacheReader) -> None:
        for _ in islice(streams[reader], EPOCHS * batches):
            pass

    def in_sequence(path: Path) -> None:
        piece = bytearray(1 << 20)
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass

    def sequential() -> None:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(in_sequence, sorted(cache.glob("train-*"))))

    def pieces() -> Iterator[Tensor]:
        for piece in range(2 * len(mapped) // buffer):
            count = buffer // 2 * WIDTH
            read = np.fromfile(flat, number, count, offset=piece * count * np.dtype(number).itemsize)
            yield torch.from_numpy(read).view(dtype).view(-1, WIDTH)

    peer, mixing = saelens()
    whole = batches * BATCH
    served = sum(len(x_BD) for x_BD in mixing(buffer, BATCH, pieces()))
    return {
        "sae, groups mixed": (EPOCHS * whole, lambda: take(mixed)),
        "sae, kept in memory": (EPOCHS * whole, lambda: take(resident)),
        "memmap, torch": (whole, by_torch),
        "memmap, numpy": (whole, by_numpy),
        peer: (served, lambda: [None for _ in mixing(buffer, BATCH, pieces())]),
        "sequential read": (mixed.rows, sequential),
    }


def measure(folder: Path, dtype: torch.dtype, arguments: argparse.Namespace) -> dict[str, Any]:
    mix_bytes = arguments.rows * WIDTH * dtype.itemsize // 3
    contestants = readers(folder, dtype, arguments.rows, mix_bytes)
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    busy: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(arguments.rounds + 1):
        for name, (vectors, read) in contestants.items():
            began, worked = time.perf_counter(), time.process_time()
            read()
            if turn:  # the first round fills the page cache and makes what is kept
                wall[name].append(vectors / (time.perf_counter() - began))
                busy[name].append(vectors / (time.process_time() - worked))
    speed = {name: statistics.median(values) for name, values in wall.items()}
    bare = max(("memmap, torch", "memmap, numpy"), key=speed.__getitem__)
    peer = next(name for name in speed if name.startswith("SAELens"))
    return {
        "dtype": str(dtype)[6:],
        "mix_bytes": mix_bytes,
        "vectors_per_second": {name: round(value) for name, value in speed.items()},
        "vectors_per_cpu_second": {name: round(statistics.median(values)) for name, values in busy.items()},
        "ratios": {
            ours: {
                other: round(statistics.median(a / b for a, b in zip(wall[ours], wall[other], strict=True)), 2)
                for other in (bare, peer, "sequential read")
            }
            for ours in speed
            if ours.startswith("sae")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "vectors").mkdir()
            np.save(folder / "vectors" / "x.npy", torch.randn(arguments.rows, WIDTH).numpy())
            rows.append(measure(folder, dtype, arguments))
    result = {
        "what": f"vectors per second read in random order, D {WIDTH}, B {BATCH}; ratios round by round",
        "threads": torch.get_num_threads(),
        "compiled": library() is not None,
        "load": round(os.getloadavg()[0], 1),
        "rows": rows,
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
