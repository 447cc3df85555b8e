"""The figures of the concept pages are those that their command draws."""

import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "concepts"


def test_figures_are_drawn_from_the_functions_of_training(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "figures.py"), str(tmp_path)], check=True, cwd=ROOT, timeout=120)
    drawn = {file.name: file.read_text() for file in tmp_path.glob("*.svg")}
    assert drawn == {file.name: file.read_text() for file in FOLDER.glob("*.svg")}
    assert len(drawn) == 2
