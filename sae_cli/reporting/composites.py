"""The report's section on compare.json: which directions are sums of others, and how features split."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sae_cli.reporting.collect import Point
from sae_cli.reporting.pages import render
from sae_cli.runs.directory import RunDirectory

KINDS = {
    "measured": "measured",
    "sum_of_2": "control: known sums of 2",
    "sum_of_3": "control: known sums of 3",
    "random_targets": "control: random directions",
    "random_atoms": "control: fitted with random directions",
}
EXAMPLES, ROOTS, CHILDREN = 8, 12, 12
"""How many examples of a test, trees of a comparison and children of a latent are shown."""


def composites(points: list[Point]) -> Markup:
    """Return a block for every run that has a compare.json; one that cannot be read is named, with the reason."""
    blocks = []
    for file in (Path(point.folder) / "compare.json" for point in points):
        if not file.exists():
            continue
        try:
            content = RunDirectory(file.parent).record(file.name)
            limits = {"kinds": KINDS, "examples": EXAMPLES, "children": CHILDREN}
            blocks.append(render("composites.html", roots=_trees(content["splitting"]), **limits, **content))
        except Exception as error:
            # Whatever is wrong with one file, the report of the others has to come out.
            problem = f"{file} cannot be read ({type(error).__name__}: {error}); run sae compare again"
            blocks.append(Markup("<p class=note>{}</p>").format(problem))
    return Markup("").join(blocks)


def _trees(levels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the latents with most descendants, each with those below it: {name, narrow, edge, below, size}."""
    # One parent for each, or it would be no tree, and could have more nodes than any memory holds.
    parents = {(level["wide"], edge["child"]): (level["narrow"], edge) for level in levels for edge in level["edges"]}
    edges = defaultdict(list)
    for (wide, _), (narrow, edge) in parents.items():
        edges[narrow, edge["parent"]].append((wide, edge))

    def grown(dictionary: str, latent: int, narrow: str = "", edge: Any = None) -> dict[str, Any]:
        children = sorted(edges.get((dictionary, latent), ()), key=lambda one: -one[1]["cosine"])
        below = [grown(wide, one["child"], dictionary, one) for wide, one in children]
        node = {"name": f"{dictionary}{latent}", "narrow": narrow, "edge": edge, "below": below}
        return node | {"size": sum(1 + one["size"] for one in below)}

    roots = [grown(*node) for node in edges if node[0] == levels[0]["narrow"]]
    return sorted((one for one in roots if one["size"] > 1), key=lambda one: -one["size"])[:ROOTS]
