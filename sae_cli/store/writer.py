"""Write caches in one pass over a source, all hooks in lock step; an interrupted one ends as the same bytes."""

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
from sae_cli.config.schema_data import CacheConfig
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
from sae_cli.store.part import PartState, PartWriter

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_TEXT_BYTES_PER_ROW = 9
"""Disk space set aside for the text: two int32 per token, and the tokens that give no row."""


class CacheWriter:
    """One hook's cache and its progress. Resumes what progress.json records; the caller holds the folder's lock."""

    def __init__(self, source: RowSource, cache: CacheConfig, hook: str, folder: Path) -> None:
        self.source, self.cache, self.hook, self.folder = source, cache, hook, folder
        self.width = source.widths[hook]
        self.fingerprint = cache_fingerprint(source.fingerprint(hook), cache)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        self.finished = (folder / MANIFEST).exists()
        self.states = {split: PartState() for split in SPLITS}
        if self.finished:
            check_owner(folder / MANIFEST, read_manifest(folder).fingerprint, self.fingerprint)
            (folder / PROGRESS).unlink(missing_ok=True)
        elif (folder / PROGRESS).exists():
            self.states = self._read_progress()

    def _read_progress(self) -> dict[Split, PartState]:
        path = self.folder / PROGRESS
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
        log.info("%s: going on after %d rows", self.folder, sum(state.rows for state in states.values()))
        return states

    def save(self) -> None:
        """Make the progress durable."""
        data = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint}
        write_json(self.folder / PROGRESS, data | {split: asdict(state) for split, state in self.states.items()})

    def finish(self) -> None:
        """Write the manifest, then remove what only an unfinished cache needs."""
        train = self.states["train"]
        if not train.rows:
            raise UserError(f"{self.folder}: the source gives no training rows; give it more text or vectors")
        mean_D, mean_squared_norm = np.array(train.sum_D) / train.rows, train.sum_squares / train.rows
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
        (self.folder / PROGRESS).unlink()


def write_caches(
    source: RowSource, cache: CacheConfig, folders: dict[str, Path], progress: Progress | None = None
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
                _write_part(source, split, writers, progress or (lambda done, wanted: None))
            for writer in writers:
                writer.finish()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"cache.dir={writers[0].folder.parent}: no space left on the disk; free some and run the same command "
                "again, it goes on where it stopped"
            ) from error


def _write_part(source: RowSource, split: Split, writers: list[CacheWriter], progress: Progress) -> None:
    """Bring one part of all caches to its end, from the smallest progress on; who has a row already ignores it."""
    cache = writers[0].cache
    parts = [
        PartWriter(writer.folder, split, writer.hook, writer.width, cache, writer.states[split], writer.save)
        for writer in writers
        if not writer.states[split].complete
    ]
    wanted = cache.tokens + cache.validation_tokens if cache.tokens else 0
    before = writers[0].states["validation"].rows if split == "train" else 0
    if not all(part.full for part in parts):
        for block in source.rows(split, min(part.next_row for part in parts if not part.full)):
            for part in parts:
                if block.start + len(block.context_N) > part.next_row:
                    part.add(block)
            progress(before + min(part.next_row for part in parts), wanted)
            if all(part.full for part in parts):
                break
    for part in parts:
        part.end()


def _check_disk(writers: list[CacheWriter], cache: CacheConfig) -> None:
    """Raise UserError if what is still to be written does not fit. An open-ended cache cannot be checked."""
    text = (cache.tokens + cache.validation_tokens) * _TEXT_BYTES_PER_ROW
    stored = sum(file.bytes for writer in writers for state in writer.states.values() for file in state.files())
    needed = sum(plan_bytes(writer.width, cache) + text for writer in writers) - stored
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
