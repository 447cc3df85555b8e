"""Randomness as a function of what it is for: no generator state has to be saved to resume exactly."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for these parts, such as (seed, "resample", step)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
