"""The page of errors: its commands print the lines that it shows, or lines that differ where it has dots."""

import glob
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae_cli.cli import app
from tests.docs.blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "errors.md"
BLOCKS = blocks_of(PAGE)
PAIRS = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))
TITLES = re.findall("^### (.+)$", PAGE.read_text(), re.MULTILINE)


def test_every_section_has_commands_and_a_line() -> None:
    assert [(a.language, b.language) for a, b in PAIRS] == [("sh", "text")] * len(TITLES)


@pytest.mark.slow
@pytest.mark.parametrize(("commands", "shown"), PAIRS, ids=TITLES)
def test_the_commands_print_the_line(commands, shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *before, last = [result for line in commands.text.splitlines() if (result := run(line)) is not None]
    assert [result.exit_code for result in before] == [0] * len(before)
    assert last.exit_code in (1, 2)
    pattern = re.escape(shown.text.strip()).replace(r"\.\.\.", ".*")
    lines = [line for line in last.output.splitlines() if re.fullmatch(pattern, line)]
    assert len(lines) == 1, last.output


def run(line: str):
    """Run a command of ours in this process and return its result, or any other line in a shell."""
    if not line.startswith("sae "):
        subprocess.run(["bash", "-c", line], check=True)
        return None
    words = [place for word in shlex.split(line)[1:] for place in (glob.glob(word) if "*" in word else [word])]
    return CliRunner().invoke(app, words)
