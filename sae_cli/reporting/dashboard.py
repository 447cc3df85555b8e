"""The feature page: one self-contained HTML file that shows what every latent of a run fires on."""

from pathlib import Path
from typing import Any

from sae_cli.files import replace_atomically
from sae_cli.reporting.pages import render, script_json

PAGE = "dashboard.html"
"""Name of the page in a run's folder."""
CHUNK = 50
"""Latents per block of data; the page parses the block of the latent it shows."""
KEYS = ["title", "run", "facts", "rows", "latents", "text", "before", "after", "edges", "tokens", "other", "columns"]
COLUMNS = ["id", "density", "max", "mean", "bias", "norm", "nearest", "explained", "single", "top"]


def write_dashboard(content: dict[str, Any], out: Path) -> Path:
    """Write the page of `content` to `out` and return `out`.

    content: KEYS and details, numbers finite or null. `columns` holds one entry per latent and `details`, in the same
    order, its activation histogram, logits, neighbours, constituents and examples; tokens are indices into `tokens`.
    Raises ValueError if a key is missing, lengths differ, an index is out of range or a number is not finite.
    """
    _check(content)
    details = content["details"]
    index = {
        "peaks": [[one["t"][one["at"]] for one in _examples(detail) if one["t"]] for detail in details],
        "promoted": [[token for token, _ in detail.get("positive", [])] for detail in details],
    }
    page = {key: content[key] for key in KEYS} | {"chunk": CHUNK, "index": index}
    blocks = [page, *(details[start : start + CHUNK] for start in range(0, len(details), CHUNK))]
    html = render("dashboard.html", blocks=map(script_json, blocks))
    replace_atomically(out, html.encode())
    return out


def _examples(detail: dict[str, Any]) -> list[dict[str, Any]]:
    return [example for group in detail["groups"] for example in group["examples"]]


def _check(content: dict[str, Any]) -> None:
    details, edges = content.get("details", ()), content.get("edges") or [0]
    count, tokens = len(details), range(len(content.get("tokens", ())))
    wrong = [key for key in KEYS if key not in content] + ["details"] * (count == 0) + ["edges"] * (edges[0] <= 0)
    wrong += [f"columns.{key}" for key in COLUMNS if len(content.get("columns", {}).get(key, ())) != count]
    for row, detail in enumerate(details):
        needed = ["counts", "neighbours", "groups"] + ["constituents", "explained"] * bool(content.get("other"))
        wrong += [f"details[{row}].{key}" for key in needed if key not in detail]
        wrong += [f"details[{row}].counts"] * (len(detail.get("counts", ())) != len(edges) - 1)
        for one in _examples(detail) if "groups" in detail else ():
            known = all(token in tokens for token in one["t"]) and {"context", "position", "value"} <= one.keys()
            if not known or len(one["t"]) != len(one["a"]) or (one["t"] and one["at"] not in range(len(one["t"]))):
                wrong.append(f"details[{row}].groups")
    if wrong:
        raise ValueError(f"feature page: missing or of the wrong length or range: {', '.join(wrong[:8])}")
