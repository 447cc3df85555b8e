"""What limits a training step, and which setting would help."""

from collections.abc import Sequence
from typing import Any

PARTS = ("products", "bandwidth", "data")
SMALL = 0.5
"""Share of a step's time below which products and bandwidth together do not explain it."""

HELP = {
    "products": "products limit: fewer latents (sae.latents), more cores or a GPU; a larger batch does not help",
    "bandwidth": "memory bandwidth limits: a larger train.batch spreads the update of weights and Adam's moments "
    "over more tokens",
    "data": "reading limits: more members share each batch (sae sweep); a cache within cache.mix_bytes is read once",
    "small operations": "neither products nor bandwidth limit, but what each latent that fires and each step costs: "
    "a lower L0, a larger train.batch, or more members on one GPU (sae sweep)",
}


def limit(shares: dict[str, float]) -> str:
    """Return which of a step's parts takes most of its time, or that none explains it."""
    return max(PARTS, key=shares.__getitem__) if sum(shares[part] for part in PARTS) >= SMALL else "small operations"


def hints(machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each thing that would make these steps faster."""
    on_cpu = "CPU" in machine["device"]
    found = [HELP[name] for name in HELP if name in {row["limit"] for row in rows}]
    fp32, bf16 = machine["fp32_flops"], machine["bf16_flops"]
    if bf16 > 1.3 * fp32 and any(row["precision"] == "fp32" for row in rows):
        found.append(f"train.precision=bf16: its products are {bf16 / fp32:.1f} times as fast here")
    if fp32 > bf16 and any(row["precision"] == "bf16" for row in rows):
        found.append(f"train.precision=fp32: its products are {fp32 / bf16:.1f} times as fast here")
    if on_cpu and any(row["path"] == "dense" for row in rows):
        found.append(
            "dense products ran: see train.sparse; sae=relu, prolu_ste, jumprelu, topk, batchtopk can do without"
        )
    if any(row["path"] == "torch" for row in rows):
        found.append(
            "no compiled kernels: with a C++ compiler (c++ or $CXX) products over latents that fire are faster"
        )
    if on_cpu and machine["threads"] < machine["cores"]:
        found.append(f"{machine['threads']} of {machine['cores']} cores are used: OMP_NUM_THREADS={machine['cores']}")
    return found
