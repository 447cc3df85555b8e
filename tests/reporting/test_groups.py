import math

import pytest

from sae_cli.reporting.collect import collect
from sae_cli.reporting.groups import OFF, Groups, at_reference, non_dominated, penalty_effect, reference_l0
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


def test_reference_is_the_l0_that_most_series_reach(tmp_path):
    fake.write_sweep(tmp_path)
    groups = Groups(collect([tmp_path]))
    reference = reference_l0(groups.series)
    for one in groups.series:
        l0 = [point.metrics["l0"] for point in one.points]
        assert min(l0) <= reference <= max(l0)
    assert math.isnan(reference_l0([]))


def test_interpolation_at_the_reference_by_hand(tmp_path):
    fake.write_run(tmp_path / "a", fake.config(weight=1.0))
    fake.write_run(tmp_path / "b", fake.config(weight=4.0))
    fake.write_run(tmp_path / "c", fake.config("prolu_ste", weight=64.0))
    groups = Groups(collect([tmp_path]))
    low, high = (fake.numbers(fake.config(weight=weight)) for weight in (4.0, 1.0))
    middle = math.sqrt(low["l0"] * high["l0"])
    assert reference_l0(groups.series) == pytest.approx(middle)
    relu, other = at_reference(groups, middle)
    assert relu["fvu"] == pytest.approx((low["fvu"] + high["fvu"]) / 2)
    assert relu["points"] == 2
    assert "fvu" not in other


def test_penalty_effect_compares_equal_points_only(tmp_path):
    for name, weight, gamma in (("a", 1.0, 0.0), ("b", 2.0, 0.0), ("c", 2.0, 0.25), ("d", 4.0, 0.25)):
        fake.write_run(tmp_path / name, fake.config("prolu_ste", weight, gamma))
    (row,) = penalty_effect(Groups(collect([tmp_path])))
    before, after = (fake.numbers(fake.config("prolu_ste", 2.0, gamma)) for gamma in (0.0, 0.25))
    assert (row["family"], row["setting"], row["pairs"]) == ("prolu_ste", "chunked 0.25", 1)
    assert row["nearest_cosine"] == (before["nearest"], after["nearest"])
    assert row["fvu"] == (before["fvu"], after["fvu"])
