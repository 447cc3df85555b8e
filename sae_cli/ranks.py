"""Ranks: processes that train one stack together, each on its share of the rows or of the latents.

Everything is a no-op for one process. Sums over ranks come out equal on all of them, so what each computes from such
sums is the same state everywhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.rendezvous import rendezvous

from sae_cli.config.schema import Config
from sae_cli.device import choose_device
from sae_cli.errors import UserError
from sae_cli.torchrun import rank, world_size

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long ranks wait for each other: one writes the cache. torchrun ends all when one fails."""


class _Total(Function):
    """The sum over ranks of what each has computed; all go on alike, so each one's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:  # type: ignore[override]
        total = share.float().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


class _Spread(Function):
    """What all ranks have and each uses for its own share: the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        total = g.clone()
        dist.all_reduce(total)
        return total


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train a stack."""

    rank: int = 0
    size: int = 1
    way: str = "rows"
    """rows | latents: what is shared out."""
    store: Any = None
    """torch.distributed's key-value store."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that logs, tracks and writes."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a share of the latents."""
        return self.size > 1 and self.way == "latents"

    @property
    def row_shares(self) -> int:
        """Into how many shares the rows of a batch are cut."""
        return 1 if self.sharded else self.size

    def own(self, latents: int) -> slice:
        """Return which of so many latents this rank holds."""
        if not self.sharded:
            return slice(0, latents)
        return slice(self.rank * latents // self.size, (self.rank + 1) * latents // self.size)

    def rows(self, x_BD: Tensor) -> Tensor:
        """Return this rank's rows of a batch."""
        return x_BD.chunk(self.row_shares)[0 if self.sharded else self.rank]

    def total(self, share: Tensor) -> Tensor:
        """Return the sum of what each rank's latents give, with gradients; in fp32."""
        return _Total.apply(share) if self.sharded else share

    def spread(self, value: Tensor) -> Tensor:
        """Return a parameter that all ranks have, as each one's latents use it."""
        return _Spread.apply(value) if self.sharded else value

    def add(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, share: Tensor, dim: int = -1) -> Tensor:
        """Return the equal shares of all ranks, one after the other."""
        if self.size == 1:
            return share
        parts = [torch.empty_like(share, dtype=torch.float32) for _ in range(self.size)]
        dist.all_gather(parts, share.float().contiguous())
        return torch.cat(parts, dim).to(share.dtype)

    def every(self, share: Tensor) -> Tensor:
        """Return what a vector (..., F) of this rank's latents is for all latents."""
        return self.gather(share) if self.sharded else share

    def mean(self, share_KF: Tensor) -> Tensor:
        """Return the mean over all latents (K,)."""
        return self.total(share_KF.float().mean(1)) * self.row_shares / self.size

    def blocks(self, share: Tensor) -> Iterator[Tensor]:
        """Yield every rank's tensor in turn."""
        for source in range(self.size):
            block = share.detach().clone() if source == self.rank else torch.empty_like(share)
            dist.broadcast(block, source)
            yield block

    def to_first(self, tensor: Tensor, source: int) -> Tensor | None:
        """Return, on the first rank, the tensor of rank `source`; None on others."""
        if self.first and source:
            tensor = torch.empty_like(tensor)
            dist.recv(tensor, source)
        elif self.rank == source and source:
            dist.send(tensor, 0)
        return tensor if self.first else None

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank; all hear the same."""
        return bool(self.add(torch.tensor(int(flag)))) if self.size > 1 else flag

    def from_first(self, call: Callable[[], T]) -> T:
        """Return to all what `call` returns on the first rank; its UserError is raised on all."""
        if self.size == 1:
            return call()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = call()
            except UserError as error:
                answer[1] = error
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return cast(T, answer[0])

    def equalise(self, tensors: list[Tensor]) -> None:
        """Give all ranks the first one's values."""
        for tensor in tensors if self.size > 1 else []:
            dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.any(False)

    def fails(self, message: str) -> str:
        """Say that this rank fails; return why the ranks do: the message of the first that said so, by rank."""
        if self.size == 1:
            return message
        why = f"rank {self.rank}: {message}"
        with suppress(RuntimeError):  # the store may be gone with the rank that kept it
            if self.store.add("failures", 1) == 1:
                self.store.set("failure", why)
            return self.store.get("failure").decode()
        return why


ALONE = Ranks()

_groups = count(1)
"""Numbers the groups that this process has been in: each has keys of its own in the store."""


@cache
def _store() -> dist.Store:
    return next(rendezvous("env://", timeout=PATIENCE))[0]


@contextmanager
def joined(config: Config) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that torchrun started and give this one's place and device; alone without torchrun.

    UserError if the batch or the latents cannot be shared out evenly.
    """
    size, way = world_size(), config.train.parallel
    device = choose_device(config.device)
    if size == 1:
        yield ALONE, device
        return
    key, shared = ("train.batch", config.train.batch) if way == "rows" else ("sae.latents", config.sae.latents)
    if shared % size:
        near = max(shared // size, 1) * size
        raise UserError(f"{key}={shared} cannot be shared out to {size} ranks: set it to a multiple, such as {near}")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    store = dist.PrefixStore(f"stack-{next(_groups)}", _store())
    dist.init_process_group(backend, store=store, rank=rank(), world_size=size, timeout=PATIENCE)
    ranks = Ranks(rank(), size, way, store)
    yield ranks, device
    if not store.add("failures", 0):  # what is still under way with a rank that failed would never end
        dist.destroy_process_group()
