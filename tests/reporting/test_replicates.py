import math

import pytest

from sae_cli.reporting.collect import collect
from sae_cli.reporting.replicates import interval, replicates
from tests.reporting import fake


def test_points_that_differ_in_seeds_only_are_one_group(tmp_path):
    points = collect([fake.write_sweep(tmp_path, lambdas=(1.0, 2.0), seeds=3)])
    groups = replicates(points)
    assert len(groups) == 12
    for group in groups:
        assert sorted(point.config["seed"] for point in group) == [0, 1, 2]
        assert len({(p.config["sae.nonlinearity"], p.config["sparsity.weight"]) for p in group}) == 1


def test_the_interval_is_students(tmp_path):
    group = replicates(collect([fake.write_sweep(tmp_path, lambdas=(1.0,), seeds=3)]))[0]
    for point, value in zip(group, (1.0, 2.0, 4.5), strict=True):
        point.metrics["l0"] = value
    found = interval(group, "l0")
    deviation = math.sqrt(((1 - 2.5) ** 2 + (2 - 2.5) ** 2 + (4.5 - 2.5) ** 2) / 2)
    # 4.302653 is the 0.975 quantile of Student's t with 2 degrees of freedom, from a printed table.
    assert (found.mean, found.count) == (2.5, 3)
    assert found.half == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert str(found) == "2.5 ± 4.5"


def test_one_point_has_no_interval_and_an_unknown_metric_no_mean(tmp_path):
    (group, *_) = replicates(collect([fake.write_sweep(tmp_path, lambdas=(1.0,))]))
    assert interval(group, "fvu").half is None
    assert interval(group, "mcc") is None


def test_unfinished_points_do_not_count(tmp_path):
    group = replicates(collect([fake.write_sweep(tmp_path, lambdas=(1.0,), seeds=2)]))[0]
    group[1].state = "failed"
    assert interval(group, "l0").count == 1


def test_a_corrupt_point_stands_alone(tmp_path):
    fake.write_sweep(tmp_path, lambdas=(1.0,), seeds=2)
    for folder in sorted(tmp_path.iterdir())[:2]:
        (folder / "config.yaml").write_text("{")
    assert sum(len(group) == 1 for group in replicates(collect([tmp_path]))) >= 2


def test_settings_of_a_penalty_that_is_off_do_not_count(tmp_path):
    points = collect([fake.write_sweep(tmp_path, lambdas=(1.0,), seeds=2)])
    for point in points:
        point.config["orthogonality.refresh"] = 10 + point.config["seed"]
    assert sorted(map(len, replicates(points))) == [1] * 6 + [2] * 3
