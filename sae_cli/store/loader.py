"""Read a cache for training and evaluation: large sequential reads, mixed in bounded memory, prefetched."""

import hashlib
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import RawIOBase, UnsupportedOperation
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_cli.ahead import ahead
from sae_cli.errors import UserError
from sae_cli.store.format import MANIFEST, StoredFile, bytes_of, check_sizes, damaged, find_x, read_manifest
from sae_cli.store.mixing import PIECE_BYTES, Batches, Slots, inverse, pages, piece_rows
from sae_cli.store.order import permutation
from sae_cli.store.remote import RANGE_BYTES, is_remote

REMOTE_THREADS = 8
"""Shards that are read at a time from behind a URL."""


class _Group(NamedTuple):
    """Shards that are mixed together; the stream wants their mixed rows from `begin` on."""

    epoch: int
    number: int
    shards: list[StoredFile]
    rows: int
    begin: int


class CacheReader:
    """An ActivationSource over a finished cache. Rows come in the dtype of the cache and in raw units.

    mix_bytes: memory for mixing. A training part that fits is read once and kept; of a larger one, groups of shards
        of half that size are mixed while the next group is read. It decides the order of the batches.
    Raises UserError naming the file if anything is missing or has another size than the manifest says, and when a
    shard that is read for the first time, or was changed since, has another SHA-256; none of its group's rows has been
    yielded then.
    """

    def __init__(self, folder: Path, mix_bytes: int, data_seed: int) -> None:
        self.folder, self.data_seed = folder, data_seed
        self.manifest = manifest = read_manifest(self.folder)
        check_sizes(folder, (*manifest.train.files(), *manifest.validation.files()))
        if manifest.variance <= 0 or not manifest.train.rows:
            raise UserError(f"{folder}: no training rows, or all are the same: delete it and give other data")
        self.rows = manifest.train.rows
        self.d_model = manifest.width
        self.fingerprint = manifest.fingerprint
        self.scale = math.sqrt(manifest.width / manifest.mean_squared_norm)
        self.mean_D, self.variance = torch.tensor(manifest.mean, dtype=torch.float32), manifest.variance
        self.true_GD: torch.Tensor | None = None
        self.parents_G: torch.Tensor | None = None
        self.dtype: torch.dtype = getattr(torch, manifest.dtype)
        self._row_bytes = self.d_model * self.dtype.itemsize
        self._groups = self._count_groups(mix_bytes)
        self._threads, self._piece_bytes = min(4, os.cpu_count() or 1), PIECE_BYTES
        if is_remote(folder):
            self._threads, self._piece_bytes = REMOTE_THREADS, RANGE_BYTES
        self._resident: torch.Tensor | None = None
        self._sound: dict[str, Any] = {}  # what files were whose hash was that of the manifest

    def batches(self, start: int, size: int) -> Iterator[torch.Tensor]:
        """Yield training batches `start`, `start + 1`, ... (B, D) without end; each is its own memory.

        The stream of rows is a pure function of (manifest, data_seed, mix_bytes); batch t is its rows from t * size
        on. No group before that of batch `start` is read.
        """
        plan = self._plan(start * size)
        return self._gathered(plan, size) if self._groups == 1 else self._scattered(plan, size)

    def validation(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the validation rows in stored order in batches of at most `size` rows (B, D)."""
        return ahead(self._stored(size)) if is_remote(self.folder) else self._stored(size)

    def _stored(self, size: int) -> Iterator[torch.Tensor]:
        for shard in self.manifest.validation.shards:
            with self._open(shard) as stream:
                digest, file = self._begin(stream, shard)
                for begin in range(0, shard.rows, size):
                    x_BD = self._empty(min(size, shard.rows - begin))
                    self._take(stream, shard, x_BD, digest)
                    if begin + size >= shard.rows:
                        self._end(stream, shard, digest, file)
                    yield x_BD

    def _count_groups(self, mix_bytes: int) -> int:
        """Return into how many groups an epoch is cut."""
        shards = self.manifest.train.shards
        if self.rows * self._row_bytes <= mix_bytes:
            return 1
        largest = max(shard.rows for shard in shards) * self._row_bytes
        if mix_bytes < 2 * largest:
            raise UserError(f"cache.mix_bytes={mix_bytes}: two shards take {2 * largest}; set it to at least that")
        return -(-len(shards) // (mix_bytes // 2 // largest))

    def _plan(self, row: int) -> Iterator[_Group]:
        """Yield the groups of the endless stream from the one that holds `row` on; nothing is read."""
        first, begin = divmod(row, self.rows)
        shards = stored = self.manifest.train.shards
        for epoch in count(first):
            if self._groups > 1:
                order = permutation(len(stored), self.data_seed, "shards", epoch)
                shards = [stored[index] for index in order.tolist()]
            # Even cuts of the shards' order: the groups differ by at most one shard.
            cuts = [len(shards) * index // self._groups for index in range(self._groups + 1)]
            for index, (low, high) in enumerate(pairwise(cuts)):
                group = shards[low:high]
                rows = sum(shard.rows for shard in group)
                if begin < rows:
                    yield _Group(epoch, index, group, rows, begin)
                begin = max(0, begin - rows)

    def _order(self, group: _Group) -> torch.Tensor:
        """Return the order in which a group's rows are yielded."""
        return permutation(group.rows, self.data_seed, "rows", group.epoch, group.number)

    def _gathered(self, plan: Iterator[_Group], size: int) -> Iterator[torch.Tensor]:
        """Yield batches of rows that are all kept in memory."""
        if self._resident is None:
            self._resident = self._load_all()
        order_N = torch.empty(0, dtype=torch.int64)
        while True:
            x_BD, filled = self._empty(size), 0
            while filled < size:
                if not len(order_N):
                    group = next(plan)
                    order_N = self._order(group)[group.begin :]
                index_N = order_N[: size - filled]
                torch.index_select(self._resident, 0, index_N, out=x_BD[filled : filled + len(index_N)])
                filled, order_N = filled + len(index_N), order_N[len(index_N) :]
            yield x_BD

    def _scattered(self, plan: Iterator[_Group], size: int) -> Iterator[torch.Tensor]:
        """Yield the batches of one group while threads read the rows of the next. A failure there is raised here."""
        stop, slots, filled = threading.Event(), Slots(size, self.d_model, self.dtype), 0
        begun: list[torch.Tensor] = []  # the batch that the rows of the next group fill up

        def begin_reading() -> tuple[list[torch.Tensor], list[Future]]:
            nonlocal begun, filled
            group = next(plan)
            end = filled + group.rows - group.begin
            batches = begun + slots.take(-(-end // size) - len(begun))
            target = Batches(batches)
            places = inverse(self._order(group)).add_(filled - group.begin)
            parts = places.split([shard.rows for shard in group.shards])
            jobs = [pool.submit(self._read, *job, target, stop) for job in zip(group.shards, parts, strict=True)]
            begun, filled = batches[end // size :], end % size
            return batches[: end // size], jobs

        with ThreadPoolExecutor(self._threads, "sae-loader") as pool:
            try:
                coming = begin_reading()
                while True:
                    batches, jobs = coming
                    for job in jobs:
                        job.result()
                    coming = begin_reading()
                    while batches:
                        yield batches.pop(0)
            finally:
                stop.set()  # what is still to be read is left out

    def _empty(self, rows: int) -> torch.Tensor:
        return torch.empty(rows, self.d_model, dtype=self.dtype)

    def _load_all(self) -> torch.Tensor:
        """Return all training rows in stored order."""
        x_ND = torch.from_numpy(pages(self.rows * self._row_bytes)).view(self.dtype).view(self.rows, self.d_model)
        shards = self.manifest.train.shards
        with ThreadPoolExecutor(self._threads, "sae-loader") as pool:
            list(pool.map(self._fill, shards, x_ND.split([shard.rows for shard in shards])))
        return x_ND

    def _fill(self, shard: StoredFile, out_ND: torch.Tensor) -> None:
        """Read a whole shard."""
        with self._open(shard) as stream:
            digest, file = self._begin(stream, shard)
            for piece_ND in out_ND.split(max(1, self._piece_bytes // self._row_bytes)):
                self._take(stream, shard, piece_ND, digest)
            self._end(stream, shard, digest, file)

    def _read(self, shard: StoredFile, places_N: torch.Tensor, target: Batches, stop: threading.Event) -> None:
        """Read a shard in pieces and scatter their rows."""
        if stop.is_set():
            return
        piece_ND = self._empty(piece_rows(self._row_bytes, shard.rows, self._piece_bytes))
        with self._open(shard) as stream:
            digest, file = self._begin(stream, shard)
            for place_N in places_N.split(len(piece_ND)):
                if stop.is_set():
                    return
                self._take(stream, shard, piece_ND[: len(place_N)], digest)
                target.scatter(piece_ND[: len(place_N)], place_N)
            self._end(stream, shard, digest, file)

    def _open(self, shard: StoredFile) -> RawIOBase:
        """Return a shard's stream. Raises UserError if it is gone."""
        try:
            return (self.folder / shard.name).open("rb", buffering=0)
        except FileNotFoundError:
            raise damaged(self.folder / shard.name, "missing") from None

    def _begin(self, stream: RawIOBase, shard: StoredFile) -> tuple[Any, Any]:
        """Go to a shard's first row; return the hash of what is before it, and what the file is.

        There is no hash if the file is the one that was read before.
        """
        offset, file = find_x(self.folder, shard, self.manifest), _identity(stream)
        if self._sound.get(shard.name) == file:
            stream.seek(offset)
            return None, file
        digest = hashlib.sha256()
        self._take(stream, shard, torch.empty(offset, dtype=torch.uint8), digest)
        return digest, file

    def _end(self, stream: RawIOBase, shard: StoredFile, digest: Any, file: Any) -> None:
        """Compare the hash of a whole shard with the manifest's. Raises UserError, also if it has just been changed."""
        if digest.hexdigest() != shard.sha256 if digest else _identity(stream) != file:
            raise damaged(self.folder / shard.name, f"its content is not that of {MANIFEST} (SHA-256)")
        self._sound[shard.name] = file

    def _take(self, stream: RawIOBase, shard: StoredFile, out: torch.Tensor, digest: Any) -> None:
        """Fill a tensor with what comes next. Raises UserError if there is too little."""
        wanted = whole = bytes_of(out)
        while len(wanted):
            count = stream.readinto(wanted)
            if not count:
                raise damaged(self.folder / shard.name, "ends early")
            wanted = wanted[count:]
        if digest:
            digest.update(whole)


def _identity(stream: RawIOBase) -> Any:
    """Return what tells an open file from one that is put in its place or written over it; unique behind a URL."""
    try:
        stat = os.fstat(stream.fileno())
    except UnsupportedOperation:
        return object()  # it is hashed each time
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
