"""Content of a feature page made from formulas: no model, no cache, the same every time."""

import math
from typing import Any

WORDS = """
the of and to in a was is for as on with by he that at from his it an were which are this also be had or has first
one their its new after but who not they have two her she been other when time during there into all school city
world year war game team season album film station river church county north south march season 1998 2004 km
"""
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\n",
    " 🦜",
    "‮שלום",
    "\u200bзаря",
    "\\u003c$title",
    "\ud800",
    "&lt;b&gt;",
]
TOKENS = [f" {word}" for word in dict.fromkeys(WORDS.split())] + [",", ".", "ing", "ed", " ", '"', *HOSTILE]
STRONG, SILENT = 4, 7
"""The latent that fires on more than 10 % of rows and the one that never fires."""
HOSTILE_AT = len(TOKENS) - len(HOSTILE)


def noise(*key: int) -> float:
    """A number in [0, 1) that depends on nothing but `key`."""
    return math.modf(abs(math.sin(sum((n + 1) * 12.9898 * (i + 1) ** 1.7 for i, n in enumerate(key))) * 43758.5453))[0]


def theme(k: int) -> int:
    """The token on which latent k peaks; the first latents take the hostile ones."""
    return HOSTILE_AT + k - 10 if 10 <= k < 10 + len(HOSTILE) else k % HOSTILE_AT


def content(
    latents: int = 120, examples: int = 16, text: bool = True, other: str | None = "../b.html"
) -> dict[str, Any]:
    """A page of `latents` latents out of 4,096, with ids 3 k + 1, each with `examples` examples in two groups."""
    ids = [3 * k + 1 for k in range(latents)]
    given = {STRONG: 0.24, SILENT: 0.0}
    density = [given.get(k, round(10 ** (-4.5 + 3 * noise(k, 1)), 6)) for k in range(latents)]
    largest = [0.0 if k == SILENT else round(2 + 9 * noise(k, 2), 3) for k in range(latents)]
    explained = [round(noise(k, 7), 3) if other else None for k in range(latents)]
    columns = {
        "id": ids,
        "density": density,
        "max": largest,
        "mean": [round(0.3 * value, 3) for value in largest],
        "bias": [round(-noise(k, 3), 4) for k in range(latents)],
        "norm": [1.0] * latents,
        "nearest": [None if k == SILENT else round(0.2 + 0.7 * noise(k, 4), 4) for k in range(latents)],
        "explained": explained,
        "single": [
            round(0.5 * share, 3) if share is not None and k % 5 else share for k, share in enumerate(explained)
        ],
        "top": [theme(k) if text and k != SILENT else -1 for k in range(latents)],
    }
    edges = [round(10 ** (-3 + 0.1 * n), 6) for n in range(42)]
    return {
        "title": "prolu_relu · nearest 0.25 · lambda 2 · seed 1",
        "run": "runs/demo/prolu_relu-nearest-0.25-2-1",
        "facts": [["model", "tiny"], ["hook", "blocks.1.hook_out"], ["text", "wiki <b>"], ["rows read", "1,048,576"],
                  ["latents", f"{latents:,} of 4,096"], ["D", "256"]],
        "rows": 1_048_576,
        "latents": 4096,
        "text": text,
        "before": 20,
        "after": 12,
        "edges": edges,
        "tokens": TOKENS if text else [],
        "other": {"name": "B", "run": "runs/demo/b", "page": other} if other else None,
        "columns": columns,
        "details": [_detail(k, columns, edges, examples, text) for k in range(latents)],
    }  # fmt: skip


def _detail(k: int, columns: dict[str, list], edges: list[float], examples: int, text: bool) -> dict[str, Any]:
    largest, fired = columns["max"][k], columns["density"][k] * 1_048_576
    widths = [math.log(4 * edge / largest) / 0.9 if edge < largest else 9.0 for edge in edges[1:] if largest]
    shape = [math.exp(-(width**2)) for width in widths]
    counts = [round(fired * part / sum(shape)) for part in shape] or [0] * (len(edges) - 1)
    result: dict[str, Any] = {
        "counts": counts,
        "neighbours": [[3 * ((k + 7 * n) % 200) + 1, round(0.8 - 0.1 * n - 0.1 * noise(k), 4)] for n in range(1, 6)],
        "groups": [
            {"name": name, "examples": [_example(k, n, share, largest, text) for n in range(examples // 2) if largest]}
            for name, share in (("top", 1.0), ("quantiles 0.5 to 0.8", 0.4))
        ],
    }
    if text:
        weights = [round(3.1 * 0.9**n, 3) for n in range(10)]
        result["positive"] = [[(theme(k) + 5 * n) % len(TOKENS), w] for n, w in enumerate(weights)]
        result["negative"] = [[(theme(k) + 5 * n + 3) % len(TOKENS), round(-0.8 * w, 3)] for n, w in enumerate(weights)]
    if columns["explained"][k] is not None:
        last = columns["explained"][k]
        result["constituents"] = [[16, 0.51, 0.59], [4925, 0.48, 0.56], [77, 0.11, 0.2]]
        result["explained"] = [columns["single"][k], round(0.9 * last, 3), last]
    return result


def _example(k: int, n: int, share: float, largest: float, text: bool) -> dict[str, Any]:
    value = round(largest * share * (1 - 0.02 * n), 3)
    one = {"context": 911 * n + 13 * k, "position": 100 + n, "value": value, "at": 0, "t": [], "a": []}
    if text:
        tokens = [int(len(TOKENS) * noise(k, n, i, 9) ** 2) for i in range(33)]
        tokens[20] = theme(k)
        near = [round(value * max(0.0, noise(k, n, i) - 0.75) * 3, 3) if 14 < i < 26 else 0 for i in range(33)]
        near[20] = value
        one |= {"at": 20, "t": tokens, "a": near}
    return one
