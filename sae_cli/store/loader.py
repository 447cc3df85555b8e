"""Read a cache for training and evaluation: large sequential reads, mixed in bounded memory, prefetched."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_cli.errors import UserError
from sae_cli.store.format import MANIFEST, Span, StoredFile, check_size, damaged, find_x, read_manifest
from sae_cli.store.order import permutation


@dataclass
class _Group:
    """Shards that are mixed together, in `order_N` from its row `begin` on."""

    epoch: int
    index: int
    shards: list[StoredFile]
    begin: int


@dataclass
class _Mixed:
    """A group in memory: row i of the stream is buffer_ND[order_N[i]]."""

    buffer_ND: torch.Tensor
    order_N: torch.Tensor
    begin: int


class CacheReader:
    """An ActivationSource over a finished cache. Rows come in the dtype of the cache and in raw units.

    mix_bytes: memory for mixing. A training part that fits is read once and kept; of a larger one, groups of shards
        of half that size are mixed while the next group is read. It decides the order of the batches.
    pin: yield batches in page-locked memory, for asynchronous copies to CUDA.
    Raises UserError naming the file if anything is missing or has another size than the manifest says.
    """

    def __init__(self, folder: Path, mix_bytes: int, data_seed: int, pin: bool = False) -> None:
        self.folder, self.data_seed, self.pin = Path(folder), data_seed, pin
        self.manifest = manifest = read_manifest(self.folder)
        for file in (*manifest.train.files(), *manifest.validation.files()):
            check_size(self.folder, file)
        if manifest.mean_squared_norm <= 0 or not manifest.train.rows:
            raise damaged(self.folder / MANIFEST, "no training rows other than zero")
        self.rows = manifest.train.rows
        self.d_model = manifest.width
        self.fingerprint = manifest.fingerprint
        self.scale = math.sqrt(manifest.width / manifest.mean_squared_norm)
        self.mean_D = torch.tensor(manifest.mean, dtype=torch.float32)
        self.variance = manifest.variance
        self.true_GD: torch.Tensor | None = None
        self.dtype: torch.dtype = getattr(torch, manifest.dtype)
        self._row_bytes = self.d_model * self.dtype.itemsize
        self._groups = self._count_groups(mix_bytes)
        self._resident: torch.Tensor | None = None

    def batches(self, start: int, size: int) -> Iterator[torch.Tensor]:
        """Yield training batches `start`, `start + 1`, ... (B, D) without end; each is its own memory.

        The stream of rows is a pure function of (manifest, data_seed, mix_bytes); batch t is its rows from t * size
        on. Nothing before batch `start` is read.
        """
        with closing(self._mixed(start * size)) as stream:
            mixed = next(stream)
            at = mixed.begin
            while True:
                x_BD = torch.empty(size, self.d_model, dtype=self.dtype, pin_memory=self.pin)
                filled = 0
                while filled < size:
                    if at == len(mixed.order_N):
                        mixed, at = next(stream), 0
                    taken = min(size - filled, len(mixed.order_N) - at)
                    index = mixed.order_N[at : at + taken]
                    torch.index_select(mixed.buffer_ND, 0, index, out=x_BD[filled : filled + taken])
                    filled, at = filled + taken, at + taken
                yield x_BD

    def validation(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the validation rows in stored order in batches of at most `size` rows (B, D)."""
        for shard in self.manifest.validation.shards:
            span = find_x(self.folder, shard, self.manifest)
            for begin in range(0, shard.rows, size):
                x_BD = torch.empty(min(size, shard.rows - begin), self.d_model, dtype=self.dtype)
                self._read(self.folder / shard.name, span, begin, x_BD)
                yield x_BD

    def _count_groups(self, mix_bytes: int) -> int:
        """Return into how many groups an epoch is cut."""
        if self.rows * self._row_bytes <= mix_bytes:
            return 1
        shards = self.manifest.train.shards
        largest = max(shard.rows for shard in shards) * self._row_bytes
        most = mix_bytes // 2 // largest
        if not most:
            raise UserError(
                f"cache.mix_bytes={mix_bytes}: two shards of {self.folder} take {2 * largest}; set it to at least that"
            )
        return -(-len(shards) // most)

    def _plan(self, row: int) -> Iterator[_Group]:
        """Yield the groups of the endless stream from the one that holds `row` on; nothing is read."""
        epoch, offset = divmod(row, self.rows)
        shards = self.manifest.train.shards
        while True:
            order = permutation(len(shards), self.data_seed, "shards", epoch).tolist() if self._groups > 1 else [
                *range(len(shards))
            ]
            for index in range(self._groups):
                # Even cuts of the shards' order: sizes differ by at most one shard.
                cut = [len(order) * each // self._groups for each in (index, index + 1)]
                group = [shards[each] for each in order[cut[0] : cut[1]]]
                rows = sum(shard.rows for shard in group)
                if offset < rows:
                    yield _Group(epoch, index, group, offset)
                offset = max(0, offset - rows)
            epoch += 1

    def _mixed(self, row: int) -> Iterator[_Mixed]:
        """Yield groups in memory, the next one being read meanwhile. A failure there is raised here."""
        plan = self._plan(row)
        if self._groups == 1:
            if self._resident is None:
                self._resident = self._load(next(self._plan(0)), self._buffer(), threading.Event())
            for group in plan:
                yield self._order(group, self._resident)
        stop = threading.Event()
        buffers = [self._buffer(), self._buffer()]

        def prefetch(group: _Group, turn: int) -> _Mixed:
            return self._order(group, self._load(group, buffers[turn % 2], stop))

        with ThreadPoolExecutor(1, "sae-loader") as pool:
            try:
                turn = 0
                pending = pool.submit(prefetch, next(plan), turn)
                while True:
                    mixed = pending.result()
                    turn += 1
                    pending = pool.submit(prefetch, next(plan), turn)
                    yield mixed
            finally:
                stop.set()

    def _buffer(self) -> torch.Tensor:
        """Allocate room for the largest group."""
        most = -(-len(self.manifest.train.shards) // self._groups)
        rows = sorted((shard.rows for shard in self.manifest.train.shards), reverse=True)[:most]
        return torch.empty(sum(rows), self.d_model, dtype=self.dtype)

    def _order(self, group: _Group, buffer_ND: torch.Tensor) -> _Mixed:
        rows = sum(shard.rows for shard in group.shards)
        return _Mixed(buffer_ND, permutation(rows, self.data_seed, "rows", group.epoch, group.index), group.begin)

    def _load(self, group: _Group, buffer_ND: torch.Tensor, stop: threading.Event) -> torch.Tensor:
        """Read a group's shards one after another into the buffer."""
        at = 0
        for shard in group.shards:
            if stop.is_set():
                break
            span = find_x(self.folder, shard, self.manifest)
            self._read(self.folder / shard.name, span, 0, buffer_ND[at : at + shard.rows])
            at += shard.rows
        return buffer_ND

    def _read(self, path: Path, span: Span, begin: int, out_ND: torch.Tensor) -> None:
        """Fill `out_ND` with a shard's rows from `begin` on. Raises UserError if the file ends before that."""
        target = memoryview(out_ND.view(torch.uint8).numpy()).cast("B")
        with path.open("rb", buffering=0) as stream:
            stream.seek(span.offset + begin * self._row_bytes)
            done = 0
            while done < len(target):
                count = stream.readinto(target[done:])
                if not count:
                    raise damaged(path, "ends early")
                done += count
