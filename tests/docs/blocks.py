"""The fenced blocks of the documents: what a reader is told to type, to save and to expect.

A block's language says what the tests do with it: `sh` is a command, `python` a program, `diff` a change of the
checkout, `text` output or a picture. `title="FILE"` after the language: the block is that file. A line
`<!-- not run: REASON -->` before it: its commands are checked but not run.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
RUN = [page for page in PAGES if page.stem == "tutorial" or page.parent.name == "how-to"]
"""Pages whose blocks really run, one after the other in one folder."""
LANGUAGES = ("sh", "python", "diff", "yaml", "json", "text")

FENCE = re.compile(r"^(?:<!-- not run: (?P<note>.+) -->\n)?```(?P<info>.*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)


@dataclass
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    title: str
    note: str
    """Why it is not run; empty: it is."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, title[1] if title else "", match["note"] or "", match["text"]))
    return found


def prose_of(page: Path) -> str:
    """Return the text of a page without its blocks, with as many lines."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())


def identify(page: object) -> str:
    """Return the name of a page or block as pytest shows it."""
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)
