import json
from pathlib import Path

from sae_cli.reporting.collect import Point
from sae_cli.reporting.composites import composites

HOSTILE = "<script>alert(1)</script>"


def edge(parent: int, child: int, cosine: float = 0.8, **more: object) -> dict:
    values = {"cosine": cosine, "child_given_parent": 0.25, "parent_given_child": 0.9}
    return {"parent": parent, "child": child, **values, "sum": False, "other": None, **more}


def level(narrow: str, wide: str, edges: list[dict]) -> dict:
    counts = {"narrow_alive": 9, "wide_alive": 20, "children": len(edges), "split": 1, "childless": 7, "sums": 1}
    return {"narrow": narrow, "wide": wide, "edges": edges, **counts}


def content(name: str = "B") -> dict:
    dictionary = {"nonlinearity": "relu", "orthogonality": "chunked", "gamma": 0.25, "latents": 30, "alive": 20}
    row = {"mean": [0.5, 0.61, 0.7], "composite": 0.0123, "count": 20}
    example = {
        "id": 7,
        "explained": [0.5, 0.9, 0.9],
        "terms": [{"id": 3, "coefficient": 0.71, "cosine": 0.7}, {"id": 5, "coefficient": 0.6, "cosine": 0.58}],
    }
    sides = {f"{key}_{side}": 0.4 for key in ("mmcs", "random", "unique") for side in "ab"}
    return {
        "version": 1,
        "dictionaries": [
            dictionary | {"name": "A", "gamma": 0, "run": "runs/x/aaa"},
            dictionary | {"name": name, "run": "runs/x/bbb"},
        ],
        "similarity": [{"a": "A", "b": name, "matched": 0.45, "match": "hungarian", **sides}],
        "arithmetic": [
            {
                "targets": "A",
                "atoms": name,
                "rows": {"measured": row, "sum_of_2": row | {"recovered": 0.987}},
                "examples": [example],
            }
        ],
        "splitting": [
            level("A", name, [edge(1, 10), edge(1, 11, 0.9, sum=True, other=4), edge(2, 12)]),
            level(name, "C", [edge(10, 100)]),
        ],
    }


def shown(folder: Path, value: object) -> str:
    (folder / "compare.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return composites([Point("id", str(folder), "done"), Point("other", str(folder / "none"), "done")])


def test_rows_examples_and_names(tmp_path):
    page = shown(tmp_path, content())
    assert "relu · no penalty · 20 of 30 alive · aaa" in page
    assert "relu · chunked 0.25" in page
    assert "<b>0.610</b></td>" in page
    assert "<b>1.23%</b>" in page
    assert "0.987" in page
    assert "0.71 × B3 <i>(0.70)</i> + 0.60 × B5 <i>(0.58)</i>" in page


def test_tree_is_nested_and_begins_with_the_latents_that_split(tmp_path):
    page = shown(tmp_path, content())
    tree = page[page.index("<ul class=tree>") :]
    assert tree.startswith("<ul class=tree><li>A1<ul><li>B11 <i>cos 0.90")
    assert "= parent + A4" in tree
    assert "B10" in tree
    assert tree.index("C100") > tree.index("B10")
    assert "B12" not in tree


def test_long_lists_are_cut(tmp_path):
    value = content()
    value["splitting"] = [level("A", "B", [edge(1, child) for child in range(40)])]
    page = shown(tmp_path, value)
    assert page.count("<li>B") == 12
    assert "and 28 more" in page


def test_without_levels_there_is_no_tree(tmp_path):
    page = shown(tmp_path, content() | {"splitting": []})
    assert "tree" not in page
    assert composites([]) == ""


def test_damaged_files_are_named_and_names_stay_text(tmp_path):
    for value in ("{", "[]", content() | {"version": 2}, content() | {"arithmetic": [{}]}):
        page = shown(tmp_path, value)
        assert f"{tmp_path / 'compare.json'} cannot be read" in page
    assert "<script" not in shown(tmp_path, content(HOSTILE))
    assert "&lt;script" in shown(tmp_path, content(HOSTILE))
