"""Which folder holds a cache, how many bytes it takes, and whether its files are sound."""

import re
from pathlib import Path

from sae_cli.config.schema_data import CacheConfig
from sae_cli.errors import UserError
from sae_cli.files import sha256_of, short_hash
from sae_cli.sources import Split
from sae_cli.store.format import (
    FORMAT_VERSION,
    MANIFEST,
    PROGRESS,
    SPLITS,
    check_size,
    file_bytes,
    find_x,
    read_manifest,
    shard_tensors,
    tokens_tensors,
)
from sae_cli.store.order import block_sizes, row_limit, shard_rows
from sae_cli.store.remote import place


def settings(cache: CacheConfig) -> dict[str, int | str]:
    """Return the settings that decide a cache's bytes."""
    keys = ("tokens", "validation_tokens", "dtype", "seed", "shuffle_bytes", "shard_bytes")
    # `parts` came after the first caches: they keep their fingerprints.
    return {key: getattr(cache, key) for key in keys} | ({"parts": cache.parts} if cache.parts > 1 else {})


def cache_fingerprint(row_fingerprint: str, cache: CacheConfig) -> str:
    """Return the identity of a cache: what its rows are, and how they are stored."""
    return short_hash({"rows": row_fingerprint, "format_version": FORMAT_VERSION, **settings(cache)})


def cache_folder(root: str | Path, name: str, hook: str, fingerprint: str) -> Path:
    """Return the folder `<name>-<hook>-<fingerprint>` under `root`; characters unfit for file names become `_`."""
    return place(root) / re.sub(r"[^A-Za-z0-9._-]", "_", f"{name}-{hook}-{fingerprint}")


def finished(folder: Path) -> bool:
    """Return whether the complete cache that `cache_folder` named is here.

    Raises UserError if its manifest is damaged, of another format version or of another cache.
    """
    # Progress beside a manifest: the writer was interrupted before its last step, and has to take it.
    if not (folder / MANIFEST).exists() or any(folder.glob(PROGRESS.format("*"))):
        return False
    check_owner(folder / MANIFEST, read_manifest(folder).fingerprint, folder.name.rsplit("-", 1)[-1])
    return True


def check_owner(path: Path, found: str, expected: str) -> None:
    """Raise UserError if a file belongs to another cache than the one that is expected in its folder."""
    if found != expected:
        raise UserError(f"{path}: belongs to cache {found}, not {expected}; move {path.parent} away or set cache.dir")


def plan_bytes(
    width: int, cache: CacheConfig, context: int = 0, rows_per_context: int = 0, rows: dict[Split, int] | None = None
) -> int:
    """Return the exact bytes of a hook's shards and tokens files; manifest.json comes on top (about 25 D bytes).

    context: tokens T per context; 0: no tokens files (vectors).
    rows_per_context: rows that a context gives, such as T, or T - 1 without the BOS row.
    rows: rows by part if they differ from cache.tokens and cache.validation_tokens (cache.tokens=0: every row).
    """
    total = 0
    for split in SPLITS:
        limit = row_limit(split, cache)
        count = rows[split] if rows else limit
        done = contexts = 0
        for block in block_sizes(limit, width, cache, count):
            total += sum(file_bytes(shard_tensors(n, width, cache.dtype)) for n in shard_rows(block, width, cache))
            done += block
            begun = -(-done // rows_per_context) if context else 0
            if begun > contexts:
                total += file_bytes(tokens_tensors(begun - contexts, context))
                contexts = begun
    return total


def verify(folder: Path) -> list[str]:
    """Check sizes, headers and SHA-256 of every file of a cache; return one line per problem."""
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [str(error)]
    problems = []
    for part in (manifest.train, manifest.validation):
        for file in part.files():
            try:
                check_size(folder, file)
                if sha256_of(folder / file.name) != file.sha256:
                    problems.append(f"{folder / file.name}: content differs from its SHA-256 in {MANIFEST}")
                elif file in part.shards:
                    find_x(folder, file, manifest)
            except (UserError, OSError) as error:
                problems.append(str(error))
    return problems
