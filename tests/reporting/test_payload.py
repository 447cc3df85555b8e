import base64
import json

import numpy as np

from sae_cli.reporting.collect import collect
from sae_cli.reporting.groups import Groups
from sae_cli.reporting.payload import columns, pack
from sae_cli.reporting.replicates import interval
from tests.reporting import fake


def test_arrays_are_packed_once_each_and_come_back():
    a, b = np.array([1.5, np.nan, -3e20]), np.arange(70_000)
    data = json.loads(pack({"x": a, "again": [{"x": a.copy()}], "index": b, "small": b[:5], "text": "</script>"}))
    kinds = {"f4": "<f4", "u2": "<u2", "u4": "<u4"}
    arrays = []
    for text in data["arrays"]:
        kind, packed = text.split(":")
        arrays.append(np.frombuffer(base64.b64decode(packed), kinds[kind]))
    assert len(arrays) == 3
    assert data["x"] == data["again"][0]["x"] == {"$": 0}
    np.testing.assert_array_equal(arrays[0], a.astype(np.float32))
    np.testing.assert_array_equal(arrays[data["index"]["$"]], b)
    assert arrays[data["small"]["$"]].dtype == np.uint16
    assert data["text"] == "</script>"
    assert "<" not in pack({"text": "</script>"})


def test_columns_have_an_entry_for_every_point(tmp_path):
    runs = fake.write_sweep(tmp_path / "runs", seeds=2, lambdas=(1.0, 2.0))
    (runs / "0000001000" / "config.yaml").write_text("[")
    points = collect([runs])
    groups = Groups(points)
    found = columns(points, groups, {"l0_fvu": points[1:2]}, tmp_path)
    for name in ("run", "link", "label", "family", "setting", "gamma", "variant"):
        assert len(found[name]) == 24
    assert all(len(column["values"]) == 24 for column in found["table"])
    assert all(len(values) == 24 for values in found["axes"].values())
    assert (found["family"][0], found["variant"][0], found["gamma"][0]) == (None, None, None)
    assert sorted(index for group in found["groups"]["members"] for index in group) == list(range(1, 24))
    frontier = next(column for column in found["table"] if column["head"] == "frontier")
    assert [i for i, text in enumerate(frontier["values"]) if text] == [1]
    for group, hover in zip(found["groups"]["members"], found["groups"]["hover"], strict=True):
        members = [points[index] for index in group]
        assert f"FVU {interval(members, 'fvu')}" in hover
        assert ("seed" in hover.split("<br>")[0]) == (len(group) == 1)


def test_places_in_heatmaps(tmp_path):
    for index, (gamma, partition) in enumerate(((0.0, "random"), (0.25, "random"), (0.5, "fixed"))):
        point = fake.config(weight=float(index + 1), gamma=gamma)
        point.orthogonality.tile = 64 if partition == "fixed" else 128
        fake.write_run(tmp_path / str(index), point)
    points = collect([tmp_path])
    found = columns(points, Groups(points), {}, tmp_path)
    assert found["axes"] == {"lambda": [1, 2, 3]}
    assert found["gamma"] == [0, 0.25, 0.5]
    assert found["variant"] == ["no penalty", "chunked, tile 128", "chunked, tile 64"]


def test_links_lead_from_the_page_to_the_feature_pages(tmp_path):
    runs = fake.write_sweep(tmp_path / "my runs", lambdas=(1.0,))
    (runs / "0000001000" / "dashboard.html").write_text("page")
    (runs / "0000002eef" / "dashboard.html").mkdir()
    points = collect([runs])
    links = {}
    for folder in (runs, tmp_path, tmp_path / "out" / "deep"):
        links[folder.name], *rest = columns(points, Groups(points), {}, folder)["link"]
        assert rest == [None] * 5
    assert list(links.values()) == [
        "0000001000/dashboard.html",
        "my%20runs/0000001000/dashboard.html",
        "../../my%20runs/0000001000/dashboard.html",
    ]


def test_values_that_json_does_not_know_are_text(tmp_path):
    for index, rate in enumerate((1.0, float("inf"))):
        point = fake.config()
        point.train.clip = rate
        fake.write_run(tmp_path / str(index), point)
    points = collect([tmp_path])
    found = columns(points, Groups(points), {}, tmp_path)
    assert json.loads(pack(found))["table"][1]["values"] == [1, "inf"]
