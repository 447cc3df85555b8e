"""Read a cache for training and evaluation: large sequential reads, mixed in bounded memory, prefetched."""

import math
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from sae_cli.errors import UserError
from sae_cli.store.format import MANIFEST, StoredFile, bytes_of, check_size, damaged, find_x, read_manifest
from sae_cli.store.order import permutation


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
        self.mean_D, self.variance = torch.tensor(manifest.mean, dtype=torch.float32), manifest.variance
        self.true_GD: torch.Tensor | None = None
        self.parents_G: torch.Tensor | None = None
        self.dtype: torch.dtype = getattr(torch, manifest.dtype)
        self._row_bytes = self.d_model * self.dtype.itemsize
        self._groups = self._count_groups(mix_bytes)
        self._resident: torch.Tensor | None = None

    def batches(self, start: int, size: int) -> Iterator[torch.Tensor]:
        """Yield training batches `start`, `start + 1`, ... (B, D) without end; each is its own memory.

        The stream of rows is a pure function of (manifest, data_seed, mix_bytes); batch t is its rows from t * size
        on. No group before that of batch `start` is read.
        """
        with closing(self._mixed(start * size)) as groups:
            buffer_ND, order_N = next(groups)
            while True:
                x_BD = torch.empty(size, self.d_model, dtype=self.dtype, pin_memory=self.pin)
                filled = 0
                while filled < size:
                    if not len(order_N):
                        buffer_ND, order_N = next(groups)
                    index = order_N[: size - filled]
                    torch.index_select(buffer_ND, 0, index, out=x_BD[filled : filled + len(index)])
                    filled, order_N = filled + len(index), order_N[len(index) :]
                yield x_BD

    def validation(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the validation rows in stored order in batches of at most `size` rows (B, D)."""
        for shard in self.manifest.validation.shards:
            for begin in range(0, shard.rows, size):
                x_BD = torch.empty(min(size, shard.rows - begin), self.d_model, dtype=self.dtype)
                self._read(shard, begin, x_BD)
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
        """Return the order in which a group's rows are yielded, from its first wanted row on."""
        return permutation(group.rows, self.data_seed, "rows", group.epoch, group.number)[group.begin :]

    def _mixed(self, row: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Yield (buffer_ND, order_N) by group, the next one being read meanwhile. A failure there is raised here."""
        plan, stop = self._plan(row), threading.Event()
        if self._groups == 1:
            if self._resident is None:
                self._resident = self._load(next(self._plan(0)), self._buffer(), stop)
            for group in plan:
                yield self._resident, self._order(group)
        buffers = (self._buffer(), self._buffer())

        def fetch(group: _Group, buffer_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._load(group, buffer_ND, stop), self._order(group)

        with ThreadPoolExecutor(1, "sae-loader") as pool:
            try:
                ahead = pool.submit(fetch, next(plan), buffers[0])
                for turn in count(1):
                    mixed = ahead.result()
                    # The caller is done with the other buffer: it has asked for the one that comes after it.
                    ahead = pool.submit(fetch, next(plan), buffers[turn % 2])
                    yield mixed
            finally:
                stop.set()

    def _buffer(self) -> torch.Tensor:
        """Allocate room for the largest group there can be."""
        shards = sorted((shard.rows for shard in self.manifest.train.shards), reverse=True)
        return torch.empty(sum(shards[: -(-len(shards) // self._groups)]), self.d_model, dtype=self.dtype)

    def _load(self, group: _Group, buffer_ND: torch.Tensor, stop: threading.Event) -> torch.Tensor:
        """Read a group's shards one after another into the buffer."""
        pieces = buffer_ND[: group.rows].split([shard.rows for shard in group.shards])
        for shard, out_ND in zip(group.shards, pieces, strict=True):
            if not stop.is_set():
                self._read(shard, 0, out_ND)
        return buffer_ND

    def _read(self, shard: StoredFile, begin: int, out_ND: torch.Tensor) -> None:
        """Fill `out_ND` with a shard's rows from `begin` on. Raises UserError if the file is not sound."""
        offset = find_x(self.folder, shard, self.manifest)
        with (self.folder / shard.name).open("rb") as stream:
            stream.seek(offset + begin * self._row_bytes)
            if stream.readinto(bytes_of(out_ND)) != out_ND.nbytes:
                raise damaged(self.folder / shard.name, "ends early")
