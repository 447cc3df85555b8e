"""The command that measures: bench."""

from typing import Annotated, Any

import typer

from sae_cli.commands_run import ConfigDir, Json, Overrides
from sae_cli.console import emit, facts, size, table


def bench(
    overrides: Overrides,
    sizes: Annotated[
        list[str] | None, typer.Option(help="Width x latents, or x members, such as 512x4096,256x2048x8; repeatable.")
    ] = None,
    members: Annotated[str, typer.Option(help="Members of a stack, such as 1,8, where sizes name none.")] = "",
    l0: Annotated[int, typer.Option("--l0", min=1, help="About how many latents fire.")] = 50,
    seconds: Annotated[float, typer.Option(min=0.01, help="Least time for each size.")] = 4.0,
    as_json: Json = False,
    config_dir: ConfigDir = None,
) -> None:
    """Measure training steps on this machine, beside what it could do.

    Overrides choose what is measured, as in `sae train`: sae=topk train.batch=4096 train.precision=fp32. With
    sae.latents=... and no --sizes, that size at the width of the configured model. Rows are random.
    """
    from sae_cli.bench.run import bench as run

    result = run(overrides, sizes or (), members, l0, seconds, config_dir)
    if as_json:
        emit(result)
        return
    machine, cache = result["machine"], result["cache"]
    products = [f"{name} {machine[f'{name}_flops'] / 1e12:.3g} Tflop/s" for name in ("fp32", "bf16")]
    facts(
        [
            ("machine", "{device}, {threads} of {cores} cores, torch {torch}".format(**machine)),
            ("products", ", ".join(products)),
            ("copying", f"{size(machine['copy_bytes'])}/s read and written"),
            ("cache", f"read {size(cache['read_bytes'])}/s mixed, written {size(cache['write_bytes'])}/s"),
        ]
    )
    typer.echo()
    table(COLUMNS, [_cells(row) for row in result["rows"]])
    typer.echo()
    facts([("shares", "of a step's time at the machine's own rates; dense bound: of five dense products' rate")])
    facts([("hint", hint) for hint in result["hints"]])


COLUMNS = ["D", "F", "members", "path", "L0", "ms", "tokens/s", "member-tokens/s"]
COLUMNS += ["products", "bandwidth", "data", "dense bound", "memory", "limit"]


def _cells(row: dict[str, Any]) -> list[Any]:
    share = row["share"]
    percent = [f"{share[name]:.0%}" for name in ("products", "bandwidth", "data")]
    speeds = [f"{row[name]:,.0f}" for name in ("tokens_per_second", "member_tokens_per_second")]
    cells = [row["width"], row["latents"], row["members"], row["path"], f"{row['l0']:.0f}", f"{row['ms']:.1f}", *speeds]
    return [*cells, *percent, f"{share['dense_bound']:.2f}x", size(row["peak_bytes"]), row["limit"]]
