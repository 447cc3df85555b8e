"""Cost curves: a result becomes tables between a document's markers; a point that is measured has what they need."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT, RESULT = ROOT / "docs" / "scaling.md", ROOT / "benchmarks" / "results" / "scaling.json"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    return scaling


def test_a_point_has_what_the_model_reads(scaling, monkeypatch):
    monkeypatch.setattr(scaling, "BASE", scaling.BASE | {"width": 16, "latents": 64, "batch": 32, "l0": 4})
    from cost_model import fitted

    rows = [scaling.point("latents", 64, 0), scaling.point("k", 3, 0), scaling.point("members", 2, 0)]
    assert [row["l0"] for row in rows[1:2]] == [3]
    assert rows[2]["members"] == 2
    assert all(value >= 0 for value in fitted(rows)["seconds_per"].values())


def test_the_document_shows_the_committed_result(scaling, tmp_path):
    copy = tmp_path / "scaling.md"
    text = DOCUMENT.read_text()
    copy.write_text(text.replace("| flops |", "| old |"))
    assert copy.read_text() != text
    scaling.write(json.loads(RESULT.read_text()), copy)
    assert copy.read_text() == text


def test_the_committed_model_is_the_fit_of_its_rows(scaling):
    from cost_model import fitted

    result = json.loads(RESULT.read_text())
    assert fitted(result["rows"])["seconds_per"] == pytest.approx(result["model"]["seconds_per"])
