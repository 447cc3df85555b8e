"""Print how far peak memory rises over what the imports take: python -m tests.store.memory write|read FOLDER."""

import re
import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch

from sae_cli.store.find import cache_fingerprint
from sae_cli.store.loader import CacheReader
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, small_cache

MB = 1 << 20
WIDTH, CONTEXTS, LENGTH = 512, 512, 129
SETTINGS = {"tokens": 65_536, "validation_tokens": 0, "shuffle_bytes": 16 * MB, "shard_bytes": 2 * MB}
"""64 MiB of bfloat16."""


def peak_kib() -> int:
    """Return the peak of resident memory; getrusage would count that of the process which started this one."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def run(action: str, folder: Path) -> None:
    torch.set_num_threads(1)
    source, cache = FakeRows({"a": WIDTH}, CONTEXTS, LENGTH, per_pass=4), small_cache(**SETTINGS)
    # What the libraries load at the first use of an operation is not what is measured.
    with tempfile.TemporaryDirectory() as small:
        write_caches(FakeRows({"a": 8}), small_cache(), {"a": Path(small)})
        next(CacheReader(Path(small), 2000, 0).batches(0, 64))
        next(source.rows("train", 0))
    before = peak_kib()
    if action == "write":
        write_caches(source, cache, {"a": folder / f"a-{cache_fingerprint(source.fingerprint('a'), cache)}"})
    else:
        reader = CacheReader(next(folder.iterdir()), 16 * MB, 0)
        for x_BD in islice(reader.batches(0, 512), 2 * reader.rows // 512):
            assert x_BD.shape == (512, WIDTH)
    print((peak_kib() - before) / 1024)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
