import json

import pytest

from sae_cli.reporting.collect import collect
from sae_cli.reporting.gallery import figures_of, summary_of, table_of
from tests.reporting import fake


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = fake.write_sweep(tmp_path_factory.mktemp("gallery") / "demo", truth=True)
    (fake.write_run(folder / "broken", fake.config(weight=64.0)) / "config.yaml").write_text("]")
    return collect([folder])


def test_figures_have_every_kind_of_the_report_and_plain_numbers(points):
    found = figures_of(points)
    kinds = {name.split("/")[0] for name in found}
    assert kinds == {"frontier", "map", "curve", "histogram", "truth"}
    assert {"frontier/l0_fvu", "frontier/l0_mcc", "curve/loss", "histogram/Nearest_cosine", "map/fvu_relu"} <= set(
        found
    )
    assert all(name == "".join(name.split()) for name in found)
    for one in found.values():
        data = one.to_plotly_json()["data"]
        assert data
        assert "bdata" not in json.dumps(data)


def test_table_has_a_row_per_point(points):
    rows = table_of(points)
    assert len(rows) == 19
    assert len({tuple(row) for row in rows}) == 1
    row = next(row for row in rows if row["run"] == points[0].run_id)
    assert (row["sae.nonlinearity"], row["sparsity.weight"]) == ("relu", 1.0)
    assert row["fvu"] == points[0].metrics["fvu"]
    assert next(row for row in rows if row["state"] == "corrupt")["sae.nonlinearity"] is None


def test_summary_names_the_best_point_of_each_frontier(points):
    summary = summary_of(points)
    assert (summary["points"], summary["done"]) == (19, 18)
    done = [point for point in points if point.state == "done"]
    best = min(done, key=lambda point: point.metrics["fvu"])
    assert summary["best/l0_fvu"] == {"l0": best.metrics["l0"], "fvu": best.metrics["fvu"], "run": best.run_id}
    assert summary["best/l0_mcc"]["mcc"] == max(point.metrics["mcc"] for point in done)
    assert best.run_id in summary["frontier_runs/l0_fvu"]
    json.dumps(summary)
