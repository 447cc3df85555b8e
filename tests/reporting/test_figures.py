import json

import numpy as np
import pytest

from sae_cli.reporting import figures
from sae_cli.reporting.collect import collect
from sae_cli.reporting.groups import Groups
from sae_cli.reporting.look import COLOURS, DARK, theme
from tests.reporting import fake


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return Groups(collect([fake.write_sweep(tmp_path_factory.mktemp("runs"), truth=True)]))


@pytest.mark.parametrize("name", figures.FRONTIERS)
def test_frontier_shows_every_point_and_fills_the_non_dominated(groups, name):
    figure, front = figures.frontier(groups, name)
    series = figure.data[1:]
    assert len(series) == 6
    assert sum(len(trace.x) for trace in series) == 18
    assert len({trace.line.color for trace in series}) == 3
    assert sum(trace.showlegend for trace in series) == 6
    filled = [
        run for t in series for run, symbol in zip(t.customdata, t.marker.symbol, strict=True) if "open" not in symbol
    ]
    assert sorted(filled) == sorted(point.run_id for point in front)
    x_name, y_name = figures.FRONTIERS[name]
    sign = -1 if y_name == "mcc" else 1
    for point in front:
        others = [other for one in groups.series for other in one.points if other is not point]
        assert not any(
            other.metrics[x_name] < point.metrics[x_name]
            and sign * other.metrics[y_name] < sign * point.metrics[y_name]
            for other in others
        )


def test_hover_tells_the_configuration(groups):
    figure, _ = figures.frontier(groups, "l0_fvu")
    first = groups.series[1].points[0]
    text = figure.data[2].text[0]
    assert text.startswith("<b>relu · chunked 0.25 · lambda 1</b>")
    assert f"run {first.run_id}" in text
    assert f"FVU {first.metrics['fvu']:.4g}" in text


def test_heatmaps_hold_the_means_of_their_cells(tmp_path):
    runs = fake.write_sweep(tmp_path, seeds=2)
    maps = figures.heatmaps(Groups(collect([runs])), "fvu")
    assert list(maps) == ["relu", "prolu_relu", "prolu_ste"]
    heatmap = maps["prolu_ste"].data[0]
    assert (list(heatmap.x), list(heatmap.y)) == (["1", "2", "4"], ["no penalty", "chunked 0.25"])
    values = [fake.numbers(fake.config("prolu_ste", 4.0, 0.25, seed))["fvu"] for seed in (0, 1)]
    assert heatmap.z[1][2] == pytest.approx(np.mean(values))
    assert heatmap.zmax == maps["relu"].data[0].zmax
    assert heatmap.texttemplate
    assert not heatmap.showscale
    assert figures.heatmaps(Groups(collect([next(runs.iterdir())])), "fvu") == {}


def test_crowded_heatmaps_show_a_colour_bar_instead_of_numbers(tmp_path):
    for index in range(7):
        fake.write_run(tmp_path / str(index), fake.config(weight=1.0 + index))
    heatmap = figures.heatmaps(Groups(collect([tmp_path])), "fvu")["relu"].data[0]
    assert not heatmap.texttemplate
    assert heatmap.showscale


@pytest.mark.parametrize("key", figures.CURVES)
def test_curves_are_thinned_and_keep_their_ends(groups, key):
    figure = figures.curves(groups, key)
    assert len(figure.data) == 18
    for trace in figure.data:
        assert len(trace.x) <= 200
        assert trace.x[-1] == 480 * 2048
    first = groups.series[0].points[0].curve[key].dropna()
    assert figure.data[0].y[0] == pytest.approx(first.iloc[0], rel=1e-6)
    assert figure.data[0].y[-1] == pytest.approx(first.iloc[-1], rel=1e-6)


def test_histograms_have_unit_area_and_one_random_curve(groups):
    figure = figures.histogram(groups, "geometry.histogram", "alive", "cosine", "random")
    assert [trace.name for trace in figure.data].count("random directions") == 1
    assert len(figure.data) == 19
    for trace in figure.data:
        assert np.sum(trace.y) * (trace.x[1] - trace.x[0]) == pytest.approx(1, rel=1e-4)
    density = figures.histogram(groups, "latents.density_histogram", "counts", "log10 density")
    assert len(density.data) == 18


def test_true_features_of_the_best_run_of_each_pair(groups):
    grids = figures.truth(groups)
    assert len(grids) == 6
    title, figure = next(iter(grids.items()))
    assert title == "prolu_ste · no penalty · lambda 1 · MCC 0.860"
    assert np.array(figure.data[0].z).shape == (32, 24)  # an evaluation without the bias's row


def test_the_decoder_bias_is_the_last_row_of_its_heatmap(tmp_path):
    table = {"mcc": 0.9, "heatmap": [[1.0, -0.5, 0.25], [0.0, 1.0, 0.5]], "heatmap_bias": [0.1, -0.2]}
    fake.write_run(tmp_path / "run", fake.config())
    evaluation = json.loads((tmp_path / "run" / "eval.json").read_text()) | {"ground_truth": table}
    (tmp_path / "run" / "eval.json").write_text(json.dumps(evaluation))
    (figure,) = figures.truth(Groups(collect([tmp_path]))).values()
    assert figure.data[0].y == ("latent 0", "latent 1", "latent 2", "b_dec")
    np.testing.assert_allclose(figure.data[0].z, [[1, 0], [0.5, 1], [0.25, 0.5], [0.1, 0.2]], rtol=1e-6)


def test_unfinished_and_unevaluated_points_are_on_no_frontier(tmp_path):
    fake.write_run(tmp_path / "failed", fake.config(), state="failed")
    groups = Groups(collect([tmp_path]))
    assert figures.frontier(groups, "l0_fvu") is None
    assert figures.histogram(groups, "biases.histogram", "counts", "bias") is None
    assert figures.truth(groups) == {}
    assert len(figures.curves(groups, "fvu").data) == 1


def test_axes_are_logarithmic_only_where_that_is_possible(tmp_path):
    for index, weight in enumerate((0.25, 16.0)):
        fake.write_run(tmp_path / str(index), fake.config(weight=weight))
    figure, _ = figures.frontier(Groups(collect([tmp_path])), "l0_fvu")
    assert figure.layout.xaxis.type == "log"
    assert "50" in figure.layout.xaxis.ticktext
    zero, _ = figures.frontier(Groups(collect([tmp_path / "0"])), "l0_fvu")
    assert zero.layout.xaxis.type is None


def test_every_colour_has_a_partner_in_the_dark():
    assert set(COLOURS) < set(DARK)
    assert theme(True).layout.font.color != theme(False).layout.font.color
