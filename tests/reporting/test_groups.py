import math

from sae_cli.reporting.collect import collect
from sae_cli.reporting.groups import OFF, Groups, non_dominated, reference_l0
from tests.reporting import fake


def test_non_dominated_by_hand():
    x = [1, 2, 3, 4, 2, 1]
    y = [5, 3, 4, 1, 3, 6]
    assert non_dominated(x, y) == [True, True, False, True, True, False]
    assert non_dominated([1, 2, 3], [0.5, 0.9, 0.8], upwards=True) == [True, True, False]
    assert non_dominated([], []) == []


def test_series_run_along_lambda(tmp_path):
    groups = Groups(collect([fake.write_sweep(tmp_path, lambdas=(4.0, 0.5, 2.0))]))
    assert groups.families == ["relu", "prolu_relu", "prolu_ste"]
    assert groups.settings == [OFF, "chunked 0.25"]
    assert len(groups.series) == 6
    for one in groups.series:
        assert [point.config["sparsity.weight"] for point in one.points] == [0.5, 2.0, 4.0]
    assert groups.label(groups.series[3].points[0]) == "prolu_relu · chunked 0.25 · lambda 0.5"


def test_seeds_are_series_of_their_own_and_named(tmp_path):
    groups = Groups(collect([fake.write_sweep(tmp_path, lambdas=(1.0,), seeds=2)]))
    assert len(groups.series) == 12
    assert groups.label(groups.series[1].points[0]).endswith("lambda 1 · seed 1")
    assert groups.label(groups.series[1].points[0], seed=False).endswith("lambda 1")
    assert len(groups.replicates) == 6


def test_series_run_along_whatever_sets_the_sparsity(tmp_path):
    for index, k in enumerate((64, 16)):
        point = fake.config("topk")
        point.sparsity.kind, point.sae.k = "none", k
        fake.write_run(tmp_path / str(index), point)
    groups = Groups(collect([tmp_path]))
    (one,) = groups.series
    assert [point.config["sae.k"] for point in one.points] == [16, 64]
    assert groups.label(one.points[0]) == "topk · no penalty · k 16"


def test_points_of_several_sweeps_are_told_apart(tmp_path):
    folders = [fake.write_sweep(tmp_path / name, lambdas=(1.0, 2.0)) for name in ("a", "b")]
    groups = Groups(collect(folders))
    assert groups.families[:2] == ["a · relu", "a · prolu_relu"]
    assert len(groups.series) == 12
    assert len(groups.replicates) == 24


def test_reference_is_the_l0_that_most_series_reach(tmp_path):
    fake.write_sweep(tmp_path)
    groups = Groups(collect([tmp_path]))
    reference = reference_l0(groups.series)
    for one in groups.series:
        l0 = [point.metrics["l0"] for point in one.points]
        assert min(l0) <= reference <= max(l0)
    assert math.isnan(reference_l0([]))
