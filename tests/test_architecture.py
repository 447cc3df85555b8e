"""The rules of docs/architecture.md that a test can hold: who imports what, and how long files are."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sae_cli"
FILES = sorted(PACKAGE.glob("**/*.py"))

ONLY_IN = {
    "hydra": ("config/compose.py", "runs/launch.py"),
    "wandb": ("runs/tracking.py", "runs/publish.py"),
    "fsspec": ("store/remote.py",),
    "transformer_lens": ("sources/language_model.py",),
}
NOT_BELOW = {
    "config": ("sources", "store", "dictionary", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "sparse": ("config", "sources", "store", "dictionary", "losses", "training", "runs", "evaluation", "comparison"),
    "losses": ("sources", "store", "dictionary", "training", "runs", "evaluation", "comparison", "reporting"),
    "dictionary": ("sources", "store", "training", "runs", "evaluation", "comparison", "reporting"),
    "store": ("dictionary", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "sources": ("dictionary", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "interop": ("config", "sources", "store", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "training": ("comparison", "dashboard", "reporting"),
    "evaluation": ("training", "comparison", "dashboard", "reporting"),
    "comparison": ("store", "losses", "training", "dashboard", "reporting"),
    "dashboard": ("training", "evaluation"),
    "reporting": (
        "sources",
        "store",
        "dictionary",
        "losses",
        "sparse",
        "training",
        "evaluation",
        "comparison",
        "dashboard",
    ),
}


def imports(file: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_door(library):
    users = {
        str(file.relative_to(PACKAGE)) for file in FILES if any(name.split(".")[0] == library for name in imports(file))
    }
    assert users <= set(ONLY_IN[library])
    assert users


@pytest.mark.parametrize("folder", NOT_BELOW)
def test_imports_go_one_way(folder):
    for file in (PACKAGE / folder).glob("**/*.py"):
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "sae_cli" and len(parts) > 1:
                assert parts[1] not in NOT_BELOW[folder], f"{file.relative_to(PACKAGE)} imports {name}"


def test_reporting_imports_no_torch():
    for file in (PACKAGE / "reporting").glob("**/*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imports(file)), file


def test_no_file_is_longer_than_350_lines():
    assert {file.name: count for file in FILES if (count := len(file.read_text().splitlines())) > 350} == {}
