"""The figures of the concept pages are those that their command draws."""

import runpy

from tests.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "concepts"


def test_figures_are_drawn_from_the_functions_of_training() -> None:
    module = runpy.run_path(str(FOLDER / "figures.py"))
    assert {file.stem for file in FOLDER.glob("*.svg")} == {"prolu", "phi"}
    for name in ("prolu", "phi"):
        assert module[name]() == (FOLDER / f"{name}.svg").read_text()
