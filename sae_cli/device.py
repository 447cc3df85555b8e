"""Which device the work runs on, and how batches get there."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_cli.ahead import ahead
from sae_cli.config.check import device_problem
from sae_cli.errors import UserError
from sae_cli.torchrun import local_rank, world_size


def choose_device(name: str) -> str:
    """Return a torch device name for `auto`, `cpu`, `cuda` or `cuda:N`; UserError if there is no such device.

    Under torchrun each process of a machine has a CUDA device of its own, unless the CPU is asked for.
    """
    if problem := device_problem(name):
        raise UserError(problem)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world_size() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(f"device={name}: the processes of torchrun have a device each; set device=cuda")
        name = f"cuda:{local_rank()}"
    index = int(name.partition(":")[2] or 0) if name.startswith("cuda") else 0
    if name.startswith("cuda") and torch.cuda.device_count() <= index:
        fix = "use device=auto" if world_size() == 1 else "start one process for each"
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; {fix}")
    return name


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: torch has no class of its own for that on the CPU."""
    said = ("allocate memory", "enough memory", "out of memory", "bad_alloc", "start new thread")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def on_device(batches: Iterator[Tensor], device: str) -> Iterator[Tensor]:
    """Yield batches on the device; nothing is done to them where they are there.

    For CUDA a thread takes them from `batches` up to two ahead, puts them into page-locked memory and has them copied
    on a stream of its own, so that neither the step nor its stream waits for a copy.
    """
    if not device.startswith("cuda"):
        yield from batches
        return
    aside = torch.cuda.Stream(device)

    def copy(x_BD: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(aside):
            locked_BD = x_BD if x_BD.is_cuda else x_BD.pin_memory()
            return locked_BD.to(device, non_blocking=True), aside.record_event()

    for x_BD, copied in ahead(map(copy, batches), 2):
        current = torch.cuda.current_stream(x_BD.device)
        current.wait_event(copied)
        x_BD.record_stream(current)
        yield x_BD
