"""What mkdocs makes when it builds the site: the reference from docstrings, and pages from files outside docs/."""

import ast
import json
import os
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

import sae_cli
from sae_cli.cli import app
from sae_cli.config.groups import GROUPS, choices, header
from sae_cli.config.keys import keys

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "sae_cli/assets/tiny/README.md": "bundled-model.md",
}
"""Files that stay where they are, and their pages."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file in docs/ holds."""
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Let links reach the pages of files outside docs/; a file without a page is named instead."""
    outside = {uri: name for name, uri in OUTSIDE.items()}
    return relinked(markdown, ROOT / outside.get(page.file.src_uri, f"docs/{page.file.src_uri}"), page.file.src_uri)


def pages() -> dict[str, str]:
    """Return the generated pages by their path in the site."""
    made = {uri: (ROOT / name).read_text() for name, uri in OUTSIDE.items()}
    made |= {path.with_suffix(".md").name: notebook(path) for path in DOCS.glob("*.ipynb")}
    made |= {"reference/keys.md": key_page(), "reference/groups.md": group_page()}
    return made | {"reference/commands.md": command_page(), "reference/library.md": library_page()}


def relinked(markdown: str, source: Path, uri: str) -> str:
    """Return the text of a file with links as they are seen from its page."""

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(source.parent / target))
        if "://" in target or not path.exists() or not path.is_relative_to(ROOT):
            return match[0]
        inside = path.is_relative_to(DOCS)
        name = path.relative_to(DOCS if inside else ROOT).as_posix()
        if not inside and name not in OUTSIDE:
            return text if name in text else f"{text} (`{name}`)"
        return f"[{text}]({os.path.relpath(name if inside else OUTSIDE[name], Path(uri).parent)}{anchor})"

    return LINK.sub(link, markdown)


def key_page() -> str:
    """Return every key, by section."""
    sections: dict[str, list[list[str]]] = {}
    for key in keys():
        section = key.name.partition(".")[0] if "." in key.name else "of the run"
        facts = f"{key.type}, {key.shown_default}" + (", per member" if key.per_member else "")
        text = key.text.removesuffix(" Per member.")
        sections.setdefault(section, []).append([f"`{key.name}`\n{facts}", text])
    lines = [
        "# Keys",
        "From the docstrings of the schema, as `sae config keys` prints them. A key is set by `KEY=VALUE`. *Per member*: "
        "points that differ in it alone share a stack.",
    ]
    for section, rows in sections.items():
        lines += [f"## {section}", table(["key, type, default", "meaning"], rows)]
    return "\n\n".join(lines)


def group_page() -> str:
    """Return every group with its choices, and the grid files."""
    lines = [
        "# Groups",
        "A choice is taken by `GROUP=CHOICE`; `sae config cp GROUP/CHOICE DIR` copies its file to change it.",
    ]
    for group in (*GROUPS, "sweeps"):
        more = ["Grid files, run by `sae sweep NAME`."] if group == "sweeps" else []
        rows = [[f"`{name}`", header(path)] for name, path in choices(group).items()]
        lines += [f"## {group}", *more, table(["choice", "what it is"], rows)]
    return "\n\n".join(lines)


def command_page() -> str:
    """Return every command with its arguments and options."""
    intro = "Exit codes: 0 done or already done; 1 a run or a point failed; 2 usage or configuration; 130 interrupted."
    return "\n\n".join(["# Commands", intro, *_command(get_command(app), "sae")])


def _command(command: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"## {name}"
    yield f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```"
    yield escape(command.help or "")
    records = [record for param in command.params if (record := param.get_help_record(context))]
    if records:
        yield table(["argument or option", "meaning"], [[f"`{shown}`", text] for shown, text in records])
    for child, sub in getattr(command, "commands", {}).items():
        yield from _command(sub, f"{name} {child}")


def library_page() -> str:
    """Return what `from sae_cli import ...` gives, from signatures and docstrings."""
    lines = ["# Library", "`from sae_cli import NAME`; examples are in the README and the notebook."]
    files = [ROOT / "sae_cli" / name for name in ("library.py", "dictionary/artifact.py")]
    for node in (node for file in files for node in ast.parse(file.read_text()).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in sae_cli.__all__:
            lines += [f"## {node.name}", *_described(node)]
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and (inner.name == "__init__" or inner.name[0] != "_"):
                    lines += _described(inner)
    return "\n\n".join(lines)


def _described(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"```python\n{node.name}({ast.unparse(node.args)}){returns}\n```"
    else:
        fields = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign)]
        if fields:
            yield "```python\n" + "\n".join(fields) + "\n```"
    if text := ast.get_docstring(node):
        yield escape(text, quote=False)


def notebook(path: Path) -> str:
    """Return the cells of a notebook, and the text that it printed."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", [])
            parts += [f"```text\n{''.join(text).rstrip()}\n```"] if text else []
    return "\n\n".join(parts)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return an HTML table; words between backticks are code, and a new line breaks the line."""
    lines = ["<table><thead>" + _row(columns, "th") + "</thead><tbody>"]
    return "\n".join([*lines, *(_row(row, "td") for row in rows), "</tbody></table>"])


def _row(cells: list[str], tag: str) -> str:
    shown = (re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(cell, quote=False)) for cell in cells)
    return "<tr>" + "".join(f"<{tag}>{cell.replace(chr(10), '<br>')}</{tag}>" for cell in shown) + "</tr>"
