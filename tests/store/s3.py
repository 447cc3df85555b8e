"""An S3 server on loopback, and a cache writer that uploads to it: python -m tests.store.s3 URL STAGING PAUSE."""

import sys
from pathlib import Path

from sae_cli.store.find import cache_fingerprint, cache_folder
from sae_cli.store.upload import uploading
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, small_cache


def write(url: str, staging: Path, pause: float = 0.0, source: FakeRows | None = None) -> Path:
    """Write a small cache behind a URL; return its folder."""
    source, cache = source or FakeRows({"a": 8}, pause=pause), small_cache()
    folder = cache_folder(url, "fake", "a", cache_fingerprint(source.fingerprint("a"), cache))
    with uploading([folder], staging):
        write_caches(source, cache, {"a": staging / folder.name})
    return folder


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
