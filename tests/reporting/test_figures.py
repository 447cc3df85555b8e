import json
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from sae_cli.files import read_json
from sae_cli.reporting import figures
from sae_cli.reporting.collect import collect
from sae_cli.reporting.groups import Groups
from sae_cli.reporting.look import COLOURS, DARK, theme
from sae_cli.reporting.replicates import interval
from tests.reporting import fake


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return Groups(collect([fake.write_sweep(tmp_path_factory.mktemp("runs"), truth=True)]))


@pytest.mark.parametrize("name", figures.FRONTIERS)
def test_frontier_shows_every_point_and_fills_the_non_dominated(groups, name):
    figure, front = figures.frontier(groups, name)
    series = go.Figure(figure).data[1:]
    assert len(series) == 6
    assert sum(len(trace.x) for trace in series) == 18
    assert len({trace.line.color for trace in series}) == 3
    assert sum(trace.showlegend for trace in series) == 6
    marked = [mark for t in series for mark in zip(t.customdata, t.marker.symbol, t.marker.opacity, strict=True)]
    filled = [groups.replicates[index][0].run_id for index, symbol, _ in marked if "open" not in symbol]
    assert sorted(filled) == sorted(point.run_id for point in front)
    assert all((opacity < 1) == ("open" in symbol) for _, symbol, opacity in marked)
    x_name, y_name = figures.FRONTIERS[name]
    sign = -1 if y_name == "mcc" else 1
    for point in front:
        others = [other for one in groups.series for other in one.points if other is not point]
        assert not any(
            other.metrics[x_name] < point.metrics[x_name]
            and sign * other.metrics[y_name] < sign * point.metrics[y_name]
            for other in others
        )


def test_seeds_are_one_marker_with_intervals_and_the_frontier_is_of_means(tmp_path):
    groups = Groups(collect([fake.write_sweep(tmp_path, seeds=3)]))
    figure, front = figures.frontier(groups, "l0_fvu")
    dots = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    series = [trace for trace in figure["data"] if trace["mode"] == "lines+markers"]
    assert sum(len(trace["x"]) for trace in dots) == 54
    assert sum(len(trace["x"]) for trace in series) == 18
    assert len(front) % 3 == 0
    means = {}
    for trace in series:
        for row, group in enumerate(trace["customdata"]):
            x, y = (interval(groups.replicates[group], name) for name in ("l0", "fvu"))
            means[group] = (x.mean, y.mean)
            assert (trace["x"][row], trace["y"][row]) == (x.mean, y.mean)
            halves = trace["error_x"]["array"][row], trace["error_y"]["array"][row]
            assert halves == (x.half, y.half)
            on = groups.replicates[group][0] in front
            assert ("open" not in trace["marker"]["symbol"][row]) == on
    assert any(not any(a <= x and b <= y for a, b in means.values() if (a, b) != (x, y)) for x, y in means.values())
    run = groups.index[id(groups.replicates[0][0])]
    assert run in dots[0]["customdata"]


def test_wide_intervals_do_not_widen_the_axes(tmp_path):
    groups = Groups(collect([fake.write_sweep(tmp_path, seeds=2)]))
    figure, _ = figures.frontier(groups, "l1_mse")
    low, high = figure["layout"]["xaxis"]["range"]
    values = [point.metrics["l1"] for point in groups.points]
    assert low < min(values) < max(values) < high < 1.1 * max(values)


def test_lines_have_a_gap_where_something_else_than_lambda_changes(tmp_path):
    for index, (latents, weight) in enumerate((f, w) for f in (512, 1024) for w in (1.0, 2.0)):
        point = fake.config(weight=weight)
        point.sae.latents = latents
        fake.write_run(tmp_path / str(index), point)
    figure, _ = figures.frontier(Groups(collect([tmp_path])), "l0_fvu")
    (line,) = figure["data"][1:]
    assert np.isnan(line["x"]).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("key", figures.CURVES)
def test_curves_are_thinned_and_keep_their_ends(groups, key):
    figure = figures.curves(groups, key)
    penalised = key.startswith("neighbour_")
    assert len(figure["data"]) == (9 if penalised else 18)
    for trace in figure["data"]:
        assert len(trace["x"]) <= 200
        assert trace["x"][-1] == 480 * 2048
    column = groups.series[int(penalised)].points[0].curve[key]
    first = column[np.isfinite(column)]
    assert figure["data"][0]["y"][0] == pytest.approx(first[0], rel=1e-6)
    assert figure["data"][0]["y"][-1] == pytest.approx(first[-1], rel=1e-6)


def test_runs_that_differ_in_seeds_share_a_trace_with_a_gap(tmp_path):
    points = collect([fake.write_sweep(tmp_path, lambdas=(1.0,), seeds=2)])
    trace = figures.curves(Groups(points), "fvu")["data"][0]
    (gap,) = np.flatnonzero(np.isnan(trace["y"]))
    assert set(trace["customdata"][:gap]) != set(trace["customdata"][gap + 1 :])
    assert [points[i].config["seed"] for i in (trace["customdata"][0], trace["customdata"][-1])] == [0, 1]


def test_histograms_have_unit_area_and_one_random_curve(groups):
    figure = figures.histogram(groups, "geometry.histogram", "alive", "cosine", "random")
    assert [trace["name"] for trace in figure["data"]].count("random directions") == 1
    runs = 0
    for trace in figure["data"]:
        ends = [-1, *np.flatnonzero(np.isnan(trace["y"])), len(trace["y"])]
        for start, end in pairwise(ends):
            x, y = trace["x"][start + 1 : end], trace["y"][start + 1 : end]
            assert np.sum(y) * (x[1] - x[0]) == pytest.approx(1, rel=1e-4)
            runs += 1
    assert runs == 19
    density = figures.histogram(groups, "latents.density_histogram", "counts", "log10 density")
    assert len({run for trace in density["data"] for run in trace["customdata"]}) == 18


def test_true_features_of_the_best_run_of_each_pair(groups):
    grids = figures.truth(groups)
    assert len(grids) == 6
    title, figure = next(iter(grids.items()))
    assert title == "prolu_ste · no penalty"
    assert figure["layout"]["meta"][3] == "lambda 1 · MCC 0.860"
    assert np.array(figure["data"][0]["z"]).shape == (32, 24)  # an evaluation without the bias's row


def test_the_decoder_bias_is_the_last_row_of_its_heatmap(tmp_path):
    table = {"mcc": 0.9, "heatmap": [[1.0, -0.5, 0.25], [0.0, 1.0, 0.5]], "heatmap_bias": [0.1, -0.2]}
    fake.write_run(tmp_path / "run", fake.config())
    evaluation = read_json(tmp_path / "run" / "eval.json") | {"ground_truth": table}
    (tmp_path / "run" / "eval.json").write_text(json.dumps(evaluation))
    (figure,) = figures.truth(Groups(collect([tmp_path]))).values()
    assert figure["data"][0]["y"] == ["latent 0", "latent 1", "latent 2", "b_dec"]
    np.testing.assert_allclose(figure["data"][0]["z"], [[1, 0], [0.5, 1], [0.25, 0.5], [0.1, 0.2]], rtol=1e-6)


def test_unfinished_and_unevaluated_points_are_on_no_frontier(tmp_path):
    fake.write_run(tmp_path / "failed", fake.config(), state="failed")
    groups = Groups(collect([tmp_path]))
    assert figures.frontier(groups, "l0_fvu") is None
    assert figures.histogram(groups, "biases.histogram", "counts", "bias") is None
    assert figures.truth(groups) == {}
    assert len(figures.curves(groups, "fvu")["data"]) == 1


def test_axes_are_logarithmic_only_where_that_is_possible(tmp_path):
    for index, weight in enumerate((0.25, 16.0)):
        fake.write_run(tmp_path / str(index), fake.config(weight=weight))
    figure, _ = figures.frontier(Groups(collect([tmp_path])), "l0_fvu")
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert "50" in figure["layout"]["xaxis"]["ticktext"]
    zero, _ = figures.frontier(Groups(collect([tmp_path / "0"])), "l0_fvu")
    assert "type" not in zero["layout"]["xaxis"]


def test_every_colour_has_a_partner_in_the_dark():
    assert set(COLOURS) < set(DARK)
    assert theme(True)["layout"]["font"]["color"] != theme(False)["layout"]["font"]["color"]
    assert len(COLOURS) == 21
