"""Write caches in one pass over a source, all hooks in lock step; an interrupted one ends as the same bytes."""

import errno
import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial, reduce
from operator import add
from pathlib import Path

import numpy as np

from sae_cli import __version__
from sae_cli.config.schema_data import CacheConfig
from sae_cli.errors import UserError, of_system
from sae_cli.files import read_json, write_json
from sae_cli.sources import RowBlock, RowSource, Split
from sae_cli.store.behind import Behind
from sae_cli.store.find import cache_fingerprint, check_owner, plan_bytes, settings
from sae_cli.store.format import (
    FORMAT_VERSION,
    MANIFEST,
    PROGRESS,
    SPLITS,
    Manifest,
    Part,
    check_size,
    check_version,
    damaged,
    read_manifest,
)
from sae_cli.store.order import row_limit, share_rows, share_suffix
from sae_cli.store.part import PartState, PartWriter

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
Share = dict[Split, PartState]
"""What is stored of a share of both parts."""
COMMITS = {"model": "commit", "text": "text_commit"}
"""Keys of progress.json for the hub's commits that a cache was begun with, by what they are of."""
_TEXT_BYTES_PER_ROW = 9
"""Disk space set aside for the text: two int32 per token, and the tokens that give no row."""


class CacheWriter:
    """One hook's cache, of which it writes a share. Resumes what the share's progress file records.

    The caller holds the share's lock.
    """

    def __init__(self, source: RowSource, cache: CacheConfig, hook: str, folder: Path, share: int = 0) -> None:
        self.source, self.cache, self.hook, self.folder, self.share = source, cache, hook, folder, share
        self.width = source.widths[hook]
        self.fingerprint = cache_fingerprint(source.fingerprint(hook), cache)
        self.finished = (folder / MANIFEST).exists()
        if self.finished:
            check_owner(folder / MANIFEST, read_manifest(folder).fingerprint, self.fingerprint)
            self._clear()
            return
        described = source.describe(hook)
        self.commits = {part: described.get(part, {}).get("commit", "") for part in COMMITS}
        suffix = share_suffix(share, cache)
        for leftover in folder.glob(f".*{suffix}[-.]*.tmp"):
            leftover.unlink()
        shares = [self._read(one) for one in range(cache.parts)]  # of whoever writes them
        self.states = shares[share] or {s: PartState() for s in SPLITS}
        if rows := sum(state.rows for state in self.states.values()):
            log.info("%s: going on after %d rows", folder, rows)

    def _read(self, share: int) -> Share | None:
        states = read_progress(self.folder, share, self.cache, self.fingerprint, self.commits)
        if any(len(state.sum_D) not in (0, self.width) for state in (states or {}).values()):
            path = self.folder / PROGRESS.format(share_suffix(share, self.cache))
            raise damaged(path, f"damaged (sums are not of width {self.width})")
        return states

    def save(self) -> None:
        """Make the progress durable."""
        commits = {key: self.commits[part] for part, key in COMMITS.items()}
        data = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, **commits}
        path = self.folder / PROGRESS.format(share_suffix(self.share, self.cache))
        write_json(path, data | {split: asdict(state) for split, state in self.states.items()})

    def finish(self) -> None:
        """If every share is complete, write the manifest, then remove what only an unfinished cache needs.

        The caller holds the cache's lock.
        """
        if (self.folder / MANIFEST).exists():
            return
        shares = [self._read(share) for share in range(self.cache.parts)]
        states = [share for share in shares if share and complete(share)]
        if len(states) < len(shares):
            return
        if cache_fingerprint(self.source.fingerprint(self.hook), self.cache) != self.fingerprint:
            remedy = f"delete {self.folder} and run `sae cache` again"
            raise UserError(f"{self.folder}: the model or the text changed while it was cached; {remedy}")
        parts = {split: Part() for split in SPLITS}
        for split, part in parts.items():
            for state in (share[split] for share in states):
                part.rows += state.rows
                part.shards += state.shards
                part.tokens += state.tokens
        rows = parts["train"].rows
        if not rows:
            raise UserError(f"{self.folder}: the source gives no training rows; give it more text or vectors")
        sum_D = reduce(np.add, (np.array(share["train"].sum_D) for share in states if share["train"].rows))
        mean_D, mean_squared_norm = sum_D / rows, reduce(add, (share["train"].sum_squares for share in states)) / rows
        Manifest(
            fingerprint=self.fingerprint,
            hook=self.hook,
            dtype=self.cache.dtype,
            width=self.width,
            train=parts["train"],
            validation=parts["validation"],
            mean=mean_D.tolist(),
            mean_squared_norm=mean_squared_norm,
            variance=max(0.0, mean_squared_norm - float(np.square(mean_D).sum())),
            source=self.source.describe(self.hook),
            settings=settings(self.cache),
            created_by=f"sae-cli {__version__}",
        ).write(self.folder)
        self._clear()

    def _clear(self) -> None:
        """Remove what only an unfinished cache needs."""
        for pattern in (PROGRESS.format("*"), ".lock-*", ".*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


def read_progress(
    folder: Path, share: int, cache: CacheConfig, fingerprint: str, commits: dict[str, str] | None = None
) -> Share | None:
    """Return what is stored of a share, None if nothing is.

    Raises UserError if it is damaged, of another cache or, as far as known, of another commit of a hub's model or text.
    """
    path = folder / PROGRESS.format(share_suffix(share, cache))
    if not path.exists():
        return None
    try:
        data = read_json(path)
        check_version(path, data)
        check_owner(path, data["fingerprint"], fingerprint)
        for part, now in (commits or {}).items():
            if now and (begun := data.get(COMMITS[part]) or now) != now:
                remedy = f"delete {folder} and run `sae cache` again, with {part}.revision to stay with one commit"
                raise UserError(f"{path}: begun with commit {begun} of the {part}, which is now {now}; {remedy}")
        states = {split: PartState.from_dict(data[split]) for split in SPLITS}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"damaged ({error})") from error
    for state in states.values():
        for file in state.files():
            check_size(folder, file)
    return states


def complete(share: Share | None) -> bool:
    """Return whether both parts of a share are stored."""
    return share is not None and all(state.complete for state in share.values())


def write_caches(
    source: RowSource, cache: CacheConfig, folders: dict[str, Path], progress: Progress | None = None, share: int = 0
) -> None:
    """Write a share of the cache of each hook to its folder, all in one pass; go on after an interruption.

    The share that is completed last makes the caches finished. With cache.parts=1 there is one.
    progress: called with (rows handed over, rows wanted; 0 if unknown), counted over both parts.
    Raises UserError: too little disk, a source with too few rows, another cache in the folder, damaged files.
    """
    try:
        with ExitStack() as stack:
            for folder in sorted(folders.values()):
                stack.enter_context(_locked(folder, share_suffix(share, cache)))
            writers = [CacheWriter(source, cache, hook, folder, share) for hook, folder in folders.items()]
            writers = [writer for writer in writers if not writer.finished]
            if not writers:
                return
            _check_disk(writers, cache)
            for split in SPLITS:
                _write_part(source, split, writers, progress or (lambda done, wanted: None))
            for writer in writers:
                with _locked(writer.folder) if cache.parts > 1 else nullcontext():
                    writer.finish()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cache.dir={next(iter(folders.values())).parent}: {of_system(error)}") from error


def _write_part(source: RowSource, split: Split, writers: list[CacheWriter], progress: Progress) -> None:
    """Bring one part of all caches to its end, from the smallest progress on; who has a row already ignores it.

    A thread stores the rows while the source makes the next ones; rows of the size of one shard may wait for it.
    """
    cache, share = writers[0].cache, writers[0].share
    parts = [
        PartWriter(writer.folder, split, writer.hook, writer.width, cache, writer.states[split], writer.save, share)
        for writer in writers
        if not writer.states[split].complete
    ]

    def store(block: RowBlock) -> None:
        for part in parts:
            part.add(block)

    wanted = sum(share_rows(share, row_limit(split, cache), cache)[1] for split in SPLITS) if cache.tokens else 0
    before = writers[0].states["validation"].rows if split == "train" else 0
    if unfilled := [part for part in parts if part.next_row < part.end_row]:
        end = max(part.end_row for part in unfilled)
        with Behind(cache.shard_bytes) as behind:
            for block in source.rows(split, min(part.next_row for part in unfilled)):
                behind.run(partial(store, block), sum(x_ND.nbytes for x_ND in block.x.values()))
                reached = min(block.start + len(block.context_N), end)
                progress(before + int(reached) - unfilled[0].first, wanted)
                if reached == end:
                    break
    for part in parts:
        part.end()


def _check_disk(writers: list[CacheWriter], cache: CacheConfig) -> None:
    """Raise UserError if what is still to be written does not fit. An open-ended cache cannot be checked."""
    text = (cache.tokens + cache.validation_tokens) * _TEXT_BYTES_PER_ROW
    stored = sum(file.bytes for writer in writers for state in writer.states.values() for file in state.files())
    needed = sum(plan_bytes(writer.width, cache) + text for writer in writers) // cache.parts - stored
    free = shutil.disk_usage(writers[0].folder).free
    if cache.tokens and needed > free:
        raise UserError(
            f"cache.dir={writers[0].folder.parent}: {needed:,} bytes needed, {free:,} free; lower cache.tokens, choose "
            "a smaller cache.dtype or another cache.dir"
        )


@contextmanager
def _locked(folder: Path, suffix: str = "") -> Iterator[None]:
    """Hold the folder, or a share of it, against other processes; wait if one writes it now."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".lock{suffix}").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another process is writing this cache; waiting for it", folder)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
