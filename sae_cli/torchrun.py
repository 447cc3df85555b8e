"""What torchrun tells each process of its place among the others; imports nothing heavy."""

import os


def world_size() -> int:
    """Return how many processes work together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """Return this process's number among them."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """Return its number among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", rank()))
