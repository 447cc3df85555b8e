"""Write caches: one pass over a source, all hooks in lock step, resumable at any moment, finished bytes always equal."""

import errno
import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sae_cli import __version__
from sae_cli.config.schema import CacheConfig
from sae_cli.errors import UserError
from sae_cli.files import read_json, write_json
from sae_cli.sources import RowSource, Split
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
from sae_cli.store.order import row_limit
from sae_cli.store.part import PartState, PartWriter

log = logging.getLogger(__name__)
_TEXT_BYTES_PER_ROW = 16
"""Disk space set aside for token ids: two int32 per token, in pieces and joined."""


class CacheWriter:
    """One hook's cache and its progress. Resumes what progress.json records; the caller holds the folder's lock."""

    def __init__(self, source: RowSource, cache: CacheConfig, hook: str, folder: Path) -> None:
        self.source, self.cache, self.hook, self.folder = source, cache, hook, folder
        self.width = source.widths[hook]
        self.fingerprint = cache_fingerprint(source.fingerprint(hook), cache)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        self.finished = (folder / MANIFEST).exists()
        if self.finished:
            check_owner(folder / MANIFEST, read_manifest(folder).fingerprint, self.fingerprint)
            self._clear()
        self.states = {split: PartState() for split in SPLITS} if self.finished else self._read_progress()

    def _read_progress(self) -> dict[str, PartState]:
        path = self.folder / PROGRESS
        if not path.exists():
            return {split: PartState() for split in SPLITS}
        try:
            data = read_json(path)
            check_version(path, data)
            check_owner(path, data["fingerprint"], self.fingerprint)
            states = {split: PartState.from_dict(data[split]) for split in SPLITS}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(path, f"damaged ({error})") from error
        for state in states.values():
            for file in state.files():
                check_size(self.folder, file)
        log.info("%s: resuming after %d rows", self.folder, self.stored(states))
        return states

    def stored(self, states: dict[str, PartState] | None = None) -> int:
        """Return the rows on disk, both parts together."""
        return sum(state.rows for state in (states or self.states).values())

    def save(self) -> None:
        """Make the progress durable."""
        states = {split: asdict(state) for split, state in self.states.items()}
        write_json(
            self.folder / PROGRESS, {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, **states}
        )

    def part(self, split: Split) -> PartWriter:
        """Return the writer of a part, at the first row that is not stored."""
        return PartWriter(self.folder, split, self.hook, self.width, self.cache, self.states[split], self.save)

    def finish(self) -> None:
        """Write the manifest, then remove what only an unfinished cache needs."""
        train = self.states["train"]
        if not train.rows:
            raise UserError(f"{self.folder}: the source gives no training rows; give it more text or vectors")
        mean_D = np.array(train.sum_D) / train.rows
        mean_squared_norm = train.sum_squares / train.rows
        parts = {split: Part(state.rows, state.shards, state.tokens) for split, state in self.states.items()}
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
        for path in (*self.folder.glob("tokens-*.piece"), self.folder / PROGRESS):
            path.unlink(missing_ok=True)


def write_caches(
    source: RowSource,
    cache: CacheConfig,
    folders: dict[str, Path],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the cache of each hook to its folder, all in one pass; go on where an earlier call was interrupted.

    progress: called with (rows gathered, rows wanted; 0 if unknown), counted over both parts of the slowest hook.
    Raises UserError: too little disk, a source with too few rows, another cache in the folder, damaged files.
    """
    with ExitStack() as stack:
        for folder in sorted(folders.values()):
            stack.enter_context(_locked(folder))
        writers = [CacheWriter(source, cache, hook, folder) for hook, folder in folders.items()]
        writers = [writer for writer in writers if not writer.finished]
        if not writers:
            return
        _check_disk(writers, cache)
        try:
            for split in SPLITS:
                _write_part(source, split, writers, progress)
            for writer in writers:
                writer.finish()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"cache.dir={writers[0].folder.parent}: no space left on the disk; free some and run the same command "
                "again, it goes on where it stopped"
            ) from error


def _write_part(
    source: RowSource, split: Split, writers: list[CacheWriter], progress: Callable[[int, int], None] | None
) -> None:
    """Bring one part of all caches to its end, from the smallest progress on; who has a row already ignores it."""
    parts = [writer.part(split) for writer in writers if not writer.states[split].complete]
    wanted = sum(row_limit(each, parts[0].cache) for each in SPLITS) if parts and parts[0].cache.tokens else 0
    others = min(writer.stored() - writer.states[split].rows for writer in writers)
    if not all(part.full for part in parts):
        for block in source.rows(split, min(part.next_row for part in parts)):
            for part in parts:
                if not part.full and block.start + len(block.context_N) > part.next_row:
                    part.add(block)
            if progress:
                progress(others + min(part.next_row for part in parts), wanted)
            if all(part.full for part in parts):
                break
    for part in parts:
        part.end()


def _check_disk(writers: list[CacheWriter], cache: CacheConfig) -> None:
    """Raise UserError if what is still to be written does not fit. An open-ended cache cannot be checked."""
    needed = 0
    for writer in writers:
        rows = {split: row_limit(split, cache) for split in SPLITS}
        planned = plan_bytes({writer.hook: writer.width}, cache)[writer.hook] + sum(rows.values()) * _TEXT_BYTES_PER_ROW
        needed += max(0, planned - sum(file.bytes for state in writer.states.values() for file in state.files()))
    free = shutil.disk_usage(writers[0].folder).free
    if cache.tokens and needed > free:
        raise UserError(
            f"cache.dir={writers[0].folder.parent}: {needed:,} bytes needed, {free:,} free; lower cache.tokens, choose "
            "a smaller cache.dtype or another cache.dir"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; wait if one writes it now."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another process is writing this cache; waiting for it", folder)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
