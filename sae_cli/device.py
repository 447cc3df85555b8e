"""Which device the work runs on."""

import torch

from sae_cli.errors import UserError


def choose_device(name: str) -> str:
    """Return a torch device name for `auto`, `cpu`, `cuda` or `cuda:N`; UserError if there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = int(name.partition(":")[2] or 0) if name.startswith("cuda") else 0
    if name.startswith("cuda") and torch.cuda.device_count() <= index:
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use device=auto")
    return name


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out: torch has no class of its own for that on the CPU."""
    said = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in said or "enough memory" in said
    )
