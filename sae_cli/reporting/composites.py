"""The report's section on compare.json: which directions are sums of others, and how features split."""

from collections import Counter, defaultdict
from html import escape
from pathlib import Path
from typing import Any

from sae_cli.files import read_json
from sae_cli.reporting.collect import Point
from sae_cli.reporting.tables import plain_table

NOTE = (
    "Each direction is fitted as a non-negative sum of at most three directions of another dictionary, or of its own. "
    "Explained: mean share of the squared norm; composite: share of directions of which two or three explain at least "
    "0.8 and the best one at most 0.6. Known sums must be recovered, random directions must not be explained."
)
ROWS = {
    "measured": "measured",
    "sum_of_2": "control: known sums of 2",
    "sum_of_3": "control: known sums of 3",
    "random_targets": "control: random directions",
    "random_atoms": "control: fitted with random directions",
}
EXAMPLES = 8
ROOTS = 12
CHILDREN = 12
"""How many examples of a test, trees of a comparison and children of a latent are shown."""


def composites(points: list[Point]) -> str:
    """Return a block for every run that has a compare.json; one that cannot be read is named, with the reason."""
    blocks = []
    for point in points:
        file = Path(point.folder) / "compare.json"
        if not file.exists():
            continue
        try:
            blocks.append(_comparison(read_json(file)))
        except Exception as error:
            # Whatever is wrong with one file, the report of the others has to come out.
            problem = f"{file} cannot be read ({type(error).__name__}: {error}); run sae compare again"
            blocks.append(f"<p class=note>{escape(problem)}</p>")
    return "".join(blocks)


def _comparison(content: dict[str, Any]) -> str:
    """Return the block of one compare.json; raises whatever a malformed one makes it raise."""
    if content["version"] != 1:
        raise ValueError(f"version {content['version']} is not 1")
    names = "".join(
        f"<div><dt>{escape(one['name'])}</dt><dd>{escape(_described(one))}</dd></div>"
        for one in content["dictionaries"]
    )
    examples = [
        [f"{escape(test['targets'])}{int(one['id'])}", *map(_three, one["explained"]), _terms(one, test["atoms"])]
        for test in content["arithmetic"]
        for one in test["examples"][:EXAMPLES]
    ]
    heads = ["composite", "by 1", "by 2", "by 3", "constituents: coefficient × direction (cosine)"]
    return (
        f"<div class=comparison><dl class=facts>{names}</dl>"
        + plain_table(["directions", "", "explained by 1", "by 2", "by 3", "composite", "recovered"], _rows(content), 2)
        + _similarity(content["similarity"])
        + (plain_table(heads, examples) if examples else "")
        + _trees(content["splitting"])
        + "</div>"
    )


def _described(one: dict[str, Any]) -> str:
    penalty = f"{one['orthogonality']} {one['gamma']:g}" if one["gamma"] else "no penalty"
    alive = f"{one['alive']:,} of {one['latents']:,} alive"
    return f"{one['nonlinearity']} · {penalty} · {alive} · {Path(one['run']).name}"


def _rows(content: dict[str, Any]) -> list[list[str]]:
    rows = []
    for test in content["arithmetic"]:
        within = test["targets"] == test["atoms"]
        words = f"{test['targets']} on {'its own others' if within else test['atoms']}"
        for key, name in ROWS.items():
            if row := test["rows"].get(key):
                cells = [*map(_three, row["mean"]), f"{row['composite']:.2%}", _three(row.get("recovered"))]
                first = key == "measured"
                rows.append([escape(words), escape(name), *(f"<b>{c}</b>" if first else c for c in cells)])
    return rows


def _similarity(pairs: list[dict[str, Any]]) -> str:
    heads = ["from", "to", "MMCS", "random", "unique (cos < 0.2)", "one-to-one match"]
    rows = []
    for pair in pairs:
        for side, first, second in (("a", pair["a"], pair["b"]), ("b", pair["b"], pair["a"])):
            numbers = [_three(pair[f"{key}_{side}"]) for key in ("mmcs", "random")]
            matched = f"{_three(pair['matched'])} ({escape(pair['match'])})"
            rows.append([escape(first), escape(second), *numbers, f"{pair[f'unique_{side}']:.1%}", matched])
    return plain_table(heads, rows, 2)


def _terms(one: dict[str, Any], atoms: str) -> str:
    """Return the constituents of a composite, such as `0.51 × B16 (0.59) + 0.48 × B4925 (0.56)`."""
    return " + ".join(
        f"{term['coefficient']:.2f} × {escape(atoms)}{int(term['id'])} <i>({term['cosine']:.2f})</i>"
        for term in one["terms"]
    )


def _trees(levels: list[dict[str, Any]]) -> str:
    """Return a line per level and nested lists of the latents with most descendants."""
    if not levels:
        return ""
    lines, children = "", defaultdict(list)
    for level in levels:
        narrow, wide = escape(level["narrow"]), escape(level["wide"])
        lines += (
            f"<p class=note>{narrow} → {wide}: {level['children']:,} of {level['wide_alive']:,} latents are children "
            f"(cos ≥ 0.5, and their parent fires on half of their rows); {level['split']:,} of "
            f"{level['narrow_alive']:,} parents have two or more, {level['childless']:,} none; {level['sums']:,} "
            "children are their parent + another direction. Beside a child: cosine, P(child | parent) and "
            "P(parent | child).</p>"
        )
        for edge in level["edges"]:
            children[level["narrow"], edge["parent"]].append((level["wide"], edge))

    def descendants(node: tuple[str, int]) -> int:
        return sum(1 + descendants((wide, edge["child"])) for wide, edge in children.get(node, ()))

    def branch(node: tuple[str, int]) -> str:
        items = ""
        for wide, edge in sorted(children.get(node, ()), key=lambda one: -one[1]["cosine"])[:CHILDREN]:
            other = f", = parent + {escape(node[0])}{int(edge['other'])}" if edge["sum"] else ""
            items += (
                f"<li>{escape(wide)}{int(edge['child'])} <i>cos {edge['cosine']:.2f}, "
                f"{edge['child_given_parent']:.0%} | {edge['parent_given_child']:.0%}{other}</i>"
                f"{branch((wide, edge['child']))}</li>"
            )
        more = len(children.get(node, ())) - CHILDREN
        items += f"<li><i>and {more} more</i></li>" if more > 0 else ""
        return f"<ul>{items}</ul>" if items else ""

    sizes = Counter({node: descendants(node) for node in children if node[0] == levels[0]["narrow"]})
    roots = [node for node, size in sizes.most_common(ROOTS) if size > 1]
    trees = "".join(f"<li>{escape(node[0])}{int(node[1])}{branch(node)}</li>" for node in roots)
    return lines + f"<ul class=tree>{trees}</ul>" * bool(trees)


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
