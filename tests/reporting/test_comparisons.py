import json
import math

import pytest

from sae_cli.files import read_json
from sae_cli.reporting.collect import collect
from sae_cli.reporting.comparisons import at_reference, penalty_cost, penalty_effect
from sae_cli.reporting.groups import Groups, reference_l0
from tests.reporting import fake


def test_interpolation_at_the_reference_by_hand(tmp_path):
    fake.write_run(tmp_path / "a", fake.config(weight=1.0))
    fake.write_run(tmp_path / "b", fake.config(weight=4.0))
    fake.write_run(tmp_path / "c", fake.config("prolu_ste", weight=64.0))
    groups = Groups(collect([tmp_path]))
    low, high = (fake.numbers(fake.config(weight=weight)) for weight in (4.0, 1.0))
    middle = math.sqrt(low["l0"] * high["l0"])
    assert reference_l0(groups.series) == pytest.approx(middle)
    relu, other = at_reference(groups, middle)
    assert relu.values["fvu"].mean == pytest.approx((low["fvu"] + high["fvu"]) / 2)
    assert relu.values["fvu"].half is None
    assert relu.count == 2
    assert "fvu" not in other.values


def test_the_reference_has_an_interval_over_seeds(tmp_path):
    for seed in (0, 1):
        for weight in (1.0, 4.0):
            fake.write_run(tmp_path / f"{seed}{weight}", fake.config(weight=weight, seed=seed))
    groups = Groups(collect([tmp_path]))
    for one, shift in zip(groups.series, (0.0, 0.02), strict=True):
        for point, l0, fvu in zip(one.points, (10.0, 1000.0), (0.1, 0.3), strict=True):
            point.metrics |= {"l0": l0, "fvu": fvu + shift}
    (row,) = at_reference(groups, 100.0)
    assert row.values["fvu"].mean == pytest.approx(0.21)
    # 12.7062 is the 0.975 quantile of Student's t with 1 degree of freedom; the two values lie 0.02 apart.
    assert row.values["fvu"].half == pytest.approx(12.7062 * 0.02 / 2, rel=1e-5)


def test_penalty_effect_compares_equal_points_only(tmp_path):
    for name, weight, gamma in (("a", 1.0, 0.0), ("b", 2.0, 0.0), ("c", 2.0, 0.25), ("d", 4.0, 0.25)):
        fake.write_run(tmp_path / name, fake.config("prolu_ste", weight, gamma))
    (row,) = penalty_effect(Groups(collect([tmp_path])))
    before, after = (fake.numbers(fake.config("prolu_ste", 2.0, gamma)) for gamma in (0.0, 0.25))
    assert (row.family, row.setting, row.count) == ("prolu_ste", "chunked 0.25", 1)
    for name, key in (("nearest_cosine", "nearest"), ("fvu", "fvu")):
        change = row.values[name]
        assert (change.before, change.after) == (before[key], after[key])
        assert change.relative.mean == pytest.approx(after[key] / before[key] - 1)
        assert change.relative.half is None


def test_the_effect_over_seeds_counts_lambdas_that_all_seeds_have(tmp_path):
    values = {  # seed, lambda: FVU without and with
        (0, 1.0): (0.10, 0.11),
        (1, 1.0): (0.20, 0.24),
        (0, 2.0): (0.90, 0.10),
    }
    for (seed, weight), both in values.items():
        for gamma in (0.0, 0.25):
            run = fake.write_run(
                tmp_path / f"{seed}{weight}{gamma}", fake.config(weight=weight, gamma=gamma, seed=seed)
            )
            evaluation = read_json(run / "eval.json")
            evaluation["reconstruction"]["fvu"] = both[gamma > 0]
            (run / "eval.json").write_text(json.dumps(evaluation))
    (row,) = penalty_effect(Groups(collect([tmp_path])))
    change = row.values["fvu"]
    assert (change.before, change.after) == (pytest.approx(0.15), pytest.approx(0.175))
    assert change.relative.mean == pytest.approx(0.15)  # +10 % and +20 %
    assert change.relative.half == pytest.approx(12.7062 * 0.1 / 2, rel=1e-5)


def test_a_change_from_nothing_has_no_share(tmp_path):
    for gamma in (0.0, 0.25):
        fake.write_run(tmp_path / str(gamma), fake.config(gamma=gamma))
    points = collect([tmp_path])
    for point in points:
        point.metrics["delta_ce"] = -0.01
    assert penalty_effect(Groups(points))[0].values["delta_ce"].relative is None


def test_cost_is_that_of_a_step_against_a_stack_without_the_penalty(tmp_path):
    fake.write_sweep(tmp_path, lambdas=(1.0, 2.0))
    rows = penalty_cost(Groups(collect([tmp_path])))
    assert [row.family for row in rows] == ["relu", "prolu_relu", "prolu_ste"]
    for row in rows:
        overhead = row.values["overhead"]
        assert (overhead.before, overhead.after) == (pytest.approx(0.1), pytest.approx(0.15))
        assert overhead.relative.mean == pytest.approx(0.5)
        assert row.values["measured"] == "cpu, 6 points at once"
        assert row.values["neighbour_recall"].mean == pytest.approx(0.98, abs=1e-3)
        assert row.values["neighbour_gap"].mean == pytest.approx(0.001, abs=1e-4)


@pytest.mark.parametrize("what", ["one stack", "other size", "other device", "no clock"])
def test_no_overhead_where_stacks_do_not_match(tmp_path, what):
    for gamma in (0.0, 0.25):
        for weight in (1.0, 2.0)[: 1 if what == "other size" and gamma else 2]:
            run = fake.write_run(tmp_path / f"{gamma}{weight}", fake.config(weight=weight, gamma=gamma))
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for line in lines:
                if what == "one stack":
                    line["seconds"] = line["step"] * 0.1
                if what == "no clock":
                    del line["seconds"]
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            if what == "other device" and gamma:
                (run / "stamp.json").write_text('{"device": "cuda"}')
    (row,) = penalty_cost(Groups(collect([tmp_path])))
    assert "overhead" not in row.values
    assert "neighbour_recall" in row.values
