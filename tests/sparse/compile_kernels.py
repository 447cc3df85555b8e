"""Compile every Triton kernel for a GPU that need not be there; test_triton_kernels.py runs it uninterpreted."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_cli.sparse import triton_kernels

INTEGERS = {"counts", "ks", "cuts", "ties", "starts", "columns", "columns_out", "rows_out", "order"}
COUNTS = {"rows", "latents", "targets", "D", "entries", "segments", "size", "length"}
SCALARS = {"beta1", "beta2", "epsilon"}
LOW = {"m", "W", "G", "e_out"}
BLOCKS = {"BLOCK": 1024, "TILE": 8, "SPAN": 256, "COUNT": 32}
VARIANTS = {
    "largest_kernel": [{"ONE": True, "BLOCK": 32768}, {"ONE": False, "BLOCK": 32768}],
    "write_kernel": [{"SELECT": True}, {"SELECT": False, "cuts": None, "ties": None}],
    "segments_kernel": [{"ORDERED": True}, {"ORDERED": False, "order": None}],
    "adam_kernel": [{"UNIT": True}, {"UNIT": False}, {"UNIT": False, "size": 1}],
    "count_kernel": [{}, {"rows": 1, "latents": 1, "BLOCK": 1}],  # Triton makes constants of integers that are 1
    "decode_kernel": [{}, {"rows": 1, "targets": 1, "D": 1, "BLOCK": 1}],
}


def type_of(kernel: str, name: str, low: str) -> str:
    if name in COUNTS and not (name == "rows" and kernel in ("parts_kernel", "accumulate_kernel")):
        return "i32"
    return "fp32" if name in SCALARS else f"*{low if name in LOW else 'i32' if name in {*INTEGERS, 'rows'} else 'fp32'}"


def main() -> None:
    for name, kernel in vars(triton_kernels).items():
        for variant in VARIANTS.get(name, [{}]) if name.endswith("_kernel") else []:
            for low in ("bf16", "fp32"):
                constants = {arg: BLOCKS[arg] for arg in kernel.arg_names if arg in BLOCKS} | variant
                signature = {
                    arg: "constexpr" if arg in constants else type_of(name, arg, low) for arg in kernel.arg_names
                }
                places = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
                made = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32))
                print(name, low, len(made.asm["cubin"]))


if __name__ == "__main__":
    main()
