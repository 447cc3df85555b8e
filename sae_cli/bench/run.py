"""`sae bench`: the machine, a table of sizes, and what limits them."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from sae_cli.bench.advice import hints, limit
from sae_cli.bench.machine import cache_rates, machine
from sae_cli.bench.step import Size, bench_config, measure, shares
from sae_cli.config.schema import Config
from sae_cli.console import size as bytes_for_people
from sae_cli.device import choose_device
from sae_cli.errors import UserError
from sae_cli.sources.registry import source_width
from sae_cli.training.allocator import keep_freed_memory
from sae_cli.training.execute import training_memory

log = logging.getLogger(__name__)

ON_CPU, ON_CUDA = "256x2048,256x2048x8,512x4096,640x10240", "512x8192,512x8192x16,768x24576,2304x65536"
SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*))?")


def bench(
    overrides: Sequence[str],
    sizes: Sequence[str] = (),
    members: str = "",
    l0: int = 50,
    seconds: float = 4.0,
    config_dir: str | None = None,
) -> dict[str, Any]:
    """Measure the machine and training steps; return `machine`, `cache`, `rows` and `hints`.

    sizes: `DxF` or `DxFxMEMBERS`, several with commas; empty: the source's width and sae.latents if an override sets
    these, else a table. members: numbers with commas, for sizes that name none. seconds: least time for each size.
    Raises UserError for sizes that are none, or that do not fit into memory.
    """
    config = bench_config(overrides, None, l0, config_dir)
    device = choose_device(config.device)
    if not sizes and any(word.startswith("sae.latents=") for word in overrides):
        if not (width := source_width(config)):
            raise UserError("sae bench: the width of this source is not known before it is cached; give --sizes DxF")
        sizes = [f"{width}x{config.sae.latents}"]
    wanted = _sizes(sizes or [ON_CPU if device == "cpu" else ON_CUDA], members)
    configs = [bench_config(overrides, size.latents, l0, config_dir) for size in wanted]
    for size, one in zip(wanted, configs, strict=True):
        _check_memory(size, one, device)
    if device == "cpu":
        keep_freed_memory()
    log.info("measuring the machine")
    measure(configs[0], wanted[0], device, l0, 0)  # loads what a first step loads
    found = machine(device, seconds / 4)
    cache = cache_rates(wanted[-1].width, max(2048, (1 << 24) // wanted[-1].width), seconds / 4)
    rows = []
    for size, one in zip(wanted, configs, strict=True):
        log.info("measuring D %d, F %d, %d member(s)", size.width, size.latents, size.members)
        row = measure(one, size, device, l0, seconds)
        row["share"] = shares(row, found, cache)
        rows.append(row | {"limit": limit(row["share"])})
    return {"machine": found, "cache": cache, "rows": rows, "hints": hints(found, rows)}


def _sizes(words: Sequence[str], members: str) -> list[Size]:
    counts = members.split(",") if members else ["1"]
    found = []
    for word in ",".join(words).split(","):
        for size in [f"{word}x{count}" for count in counts] if word.count("x") == 1 else [word]:
            if not (match := SIZE.fullmatch(size)):
                raise UserError(f"--sizes {word} --members {members or 1}: write DxF or DxFxMEMBERS, such as 512x4096")
            found.append(Size(*map(int, match.groups(1))))
    return found


def _check_memory(size: Size, config: Config, device: str) -> None:
    """Raise UserError if a size takes more memory than there is."""
    import torch

    if device.startswith("cuda"):
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = training_memory(config, size.width) + 16 * (size.members - 1) * 2 * size.width * size.latents
    if needed > there:
        raise UserError(
            f"--sizes {size.width}x{size.latents}, {size.members} member(s): takes about {bytes_for_people(needed)}, "
            f"{device} has {bytes_for_people(there)}; lower the size, --members or train.batch"
        )
