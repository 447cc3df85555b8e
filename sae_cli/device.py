"""Which device the work runs on."""

import torch

from sae_cli.errors import UserError
from sae_cli.torchrun import local_rank, world_size


def choose_device(name: str) -> str:
    """Return a torch device name for `auto`, `cpu`, `cuda` or `cuda:N`; UserError if there is no such device.

    Under torchrun each process of a machine has a CUDA device of its own, unless the CPU is asked for.
    """
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
