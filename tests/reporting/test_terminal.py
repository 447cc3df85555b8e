"""Sweeps as text: the table, its means, what is unfinished, and that every line fits."""

import json
import os
import shutil
import time

import pytest

from sae_cli.errors import UserError
from sae_cli.files import read_json
from sae_cli.reporting.collect import collect
from sae_cli.reporting.replicates import interval
from sae_cli.reporting.terminal import Overview, show_sweep, table
from tests.reporting import fake


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return fake.write_sweep(tmp_path_factory.mktemp("show") / "demo", lambdas=(1.0, 4.0))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return fake.write_sweep(tmp_path_factory.mktemp("show") / "seeds", lambdas=(1.0,), seeds=3)


@pytest.fixture
def broken(tmp_path):
    """Three finished runs, one running, one failed, two half-written and one corrupt."""
    for index in range(3):
        fake.write_run(tmp_path / f"fine{index}", fake.config(weight=2.0**index))
    running = fake.write_run(tmp_path / "running", fake.config(weight=8.0), state="running")
    (running / "status.json").write_text('{"state": "running", "step": 40, "steps": 480}')
    now = time.time() - 170
    for file in ("metrics.jsonl", "status.json"):
        os.utime(running / file, (now, now))
    fake.write_run(tmp_path / "failed", fake.config(weight=16.0), state="failed", error="loss\x1b[2J is NaN " * 9)
    half = fake.write_run(tmp_path / "half", fake.config(weight=32.0))
    for file in ("status.json", "metrics.jsonl", "eval.json"):
        (half / file).unlink()
    (fake.write_run(tmp_path / "nothing", fake.config(weight=64.0)) / "config.yaml").write_text("]")
    (fake.write_run(tmp_path / "words", fake.config(weight=64.0)) / "status.json").write_text('{"steps": "many"}')
    return tmp_path


def lines_of(folder, width=80, ascii_only=False, **options):
    return show_sweep(collect([folder]), [folder], **options)[1](width, ascii_only)


def test_a_sweep_is_this_table(sweep):
    assert table(collect([sweep]), 90).splitlines() == [
        "   sae         lambda  penalty  gamma    L0     FVU     dCE  nearest    dead  curve",
        "   relu        1       none     0      62.0  0.0450  0.0445    0.460  0.0200  █▆▄▂▁▁▁▁",
        "   relu        4       none     0      12.6   0.106   0.112    0.416  0.0400  █▅▃▂▁▁▁▁",
        "   relu        1       chunked  0.25   55.8  0.0461  0.0455    0.273  0.0200  █▆▄▂▁▁▁▁",
        "   relu        4       chunked  0.25   11.3   0.109   0.114    0.253  0.0400  █▅▃▂▁▁▁▁",
        "   prolu_relu  1       none     0      53.3  0.0417  0.0416    0.487  0.0200  █▆▄▂▂▁▁▁",
        "   prolu_relu  4       none     0      10.8  0.0986   0.105    0.439  0.0400  █▅▃▂▁▁▁▁",
        "   prolu_relu  1       chunked  0.25   48.0  0.0428  0.0425    0.285  0.0200  █▆▄▂▂▁▁▁",
        "   prolu_relu  4       chunked  0.25   9.74   0.101   0.107    0.263  0.0400  █▅▃▂▁▁▁▁",
        "*  prolu_ste   1       none     0      48.4  0.0397  0.0398    0.505  0.0200  █▆▄▂▂▁▁▁",
        "*  prolu_ste   4       none     0      9.82  0.0939   0.100    0.455  0.0400  █▅▃▂▁▁▁▁",
        "*  prolu_ste   1       chunked  0.25   43.5  0.0407  0.0407    0.293  0.0200  █▆▄▂▂▁▁▁",
        "*  prolu_ste   4       chunked  0.25   8.84  0.0962   0.103    0.271  0.0400  █▅▃▂▁▁▁▁",
        "* on the frontier of L0 and delta CE; curve: FVU over training; left out for want of",
        "width: run",
    ]


def test_replicates_share_a_row_with_their_interval_unless_ungrouped(seeds):
    points = collect([seeds])
    grouped = table(points, 200).splitlines()
    fvu = interval(points[:3], "fvu")
    l0 = interval(points[:3], "l0")
    cells = ["relu", "none", "0", "3", f"{l0.mean:.1f}±{l0.half:.1f}", f"{fvu.mean:.4f}±{fvu.half:.4f}"]
    assert grouped[1].split()[:6] == cells
    assert len(grouped) == 1 + 6 + 1
    assert "95 % interval" in grouped[-1]
    single = "\n".join(Overview(points, ungrouped=True).table(200))
    assert single.splitlines()[0].split()[:5] == ["run", "sae", "penalty", "gamma", "seed"]
    assert sum("±" in line for line in single.splitlines()) == 0
    assert len(single.splitlines()) == 1 + 18 + 1


def test_an_unfinished_replicate_is_counted_but_not_averaged(seeds, tmp_path):
    shutil.copytree(seeds, tmp_path / "seeds")
    status = next(iter(sorted((tmp_path / "seeds").iterdir()))) / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))
    points = collect([tmp_path])
    row = Overview(points).rows[0]
    assert (row.done, row.metrics["fvu"]) == (2, interval(points[1:3], "fvu"))
    assert " 2/3 " in table(points)


def test_metrics_are_chosen_and_sorted(sweep):
    points = collect([sweep])
    lines = Overview(points, metrics="kl,fvu", sort="-fvu").table(120)
    assert lines[0].split() == ["run", "sae", "lambda", "penalty", "gamma", "KL", "FVU", "curve"]
    found = [float(line.split()[-2]) for line in lines[1:-1]]
    assert found == sorted(found, reverse=True)
    lines = Overview(points, metrics="l0", sort="l0").table(120)
    assert [line.split()[-2] for line in lines[1:4]] == ["8.84", "9.74", "9.82"]
    with pytest.raises(UserError, match=r"'fuv' is no metric\. Did you mean fvu"):
        Overview(points, metrics="l0,fuv")
    with pytest.raises(UserError, match="'' is no metric"):
        Overview(points, sort="-")


def test_what_is_unfinished_is_listed_and_stops_nothing(broken):
    lines = lines_of(broken, 140)
    assert lines[0] == "8 points: 3 done, 2 new, 1 failed, 1 corrupt, 1 running"
    text = "\n".join(lines)
    assert "running      running  step 159 of 480 (33%), 3 min ago  relu · no penalty · lambda 8" in text
    assert "corrupt      nothing  config.yaml: config.yaml: not valid YAML" in text
    assert "failed       failed  loss [2J is NaN" in text
    assert "new          words" in text
    assert next(line for line in lines if line.lstrip().startswith("running")).split()[-1] == "33%"
    assert any(line.split()[:3] == ["half", "32", "-"] for line in lines)
    assert "~0.2" in text
    assert "\x1b" not in text
    assert lines[-1] == f"next  sae show --watch 10 {broken}"
    assert sum(line.startswith("*") for line in lines) == 4  # three points and the note


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [24, 40, 60, 80, 132])
def test_no_line_is_longer_than_the_terminal(broken, seeds, width, ascii_only):
    for folder in (broken, seeds):
        lines = lines_of(folder, width, ascii_only)
        assert max(len(line) for line in lines if not line.startswith("next")) <= width
        assert not ascii_only or all(line.isascii() for line in lines)


def test_minor_settings_give_way_before_numbers(tmp_path):
    for index in range(2):
        point = fake.config(weight=1.0 + index)
        for name in ("trees", "branching", "depth", "features", "width"):
            setattr(point.source, name, 100 + index)
        point.sae.latents = 64 * (1 + index)
        fake.write_run(tmp_path / str(index), point)
    points = collect([tmp_path])
    heads = {width: table(points, width).splitlines()[0].split() for width in (60, 200)}
    assert heads[60] == ["branching", "depth", "latents", "lambda", "L0", "FVU", "dCE"]
    assert heads[200][:4] == ["run", "features", "width", "trees"]
    note = " ".join(table(points, 60).splitlines()[-2:])
    assert note.endswith("left out for want of width: run, dead, nearest, curve, features, width ...")


def test_one_point_and_none_that_can_be_read(tmp_path):
    fake.write_run(tmp_path / "a", fake.config())
    only = table(collect([tmp_path])).splitlines()
    assert only[:2] == [
        "   run    L0     FVU     dCE  nearest    dead  curve",
        "*  a    62.0  0.0450  0.0445    0.460  0.0200  █▆▄▂▁▁▁▁",
    ]
    assert lines_of(tmp_path)[0] == "1 point: 1 done"
    (tmp_path / "a" / "config.yaml").write_text("]")
    assert [line.split()[0] for line in lines_of(tmp_path) if line] == ["1", "corrupt", "next"]


def test_a_metric_that_is_nan_is_a_dash(tmp_path):
    for index in range(2):
        run = fake.write_run(tmp_path / str(index), fake.config(weight=1.0 + index))
    evaluation = read_json(run / "eval.json")
    evaluation["reconstruction"]["fvu"] = evaluation["language_model"]["delta_nats"] = None
    (run / "eval.json").write_text(json.dumps(evaluation))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    broken = [line.replace(str(json.loads(line)["fvu"]), "NaN") for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(broken) + "\n")
    points = collect([tmp_path])
    assert [line.split()[:6] for line in table(points).splitlines()[1:3]] == [
        ["*", "0", "1", "62.0", "0.0450", "0.0445"],
        ["1", "2", "27.9", "-", "-", "0.437"],
    ]
    json.dumps(show_sweep(points, [tmp_path])[0], allow_nan=False)


def test_five_hundred_points(tmp_path, seeds):
    points = collect([seeds]) * 28
    overview = Overview(points, ungrouped=True)
    assert len(overview.table(80)) >= 505
    assert max(map(len, overview.plot(80))) <= 80


def test_json_has_what_is_shown(seeds):
    data, _ = show_sweep(collect([seeds]), [seeds])
    assert (data["points"], data["states"], data["axes"]) == (18, {"done": 18}, ("l0", "delta_ce"))
    row = data["rows"][0]
    assert row["settings"] == {"sae.nonlinearity": "relu", "orthogonality.kind": "none", "orthogonality.weight": 0.0}
    known = [fake.numbers(fake.config("relu", 1.0, 0.0, seed))["l0"] for seed in range(3)]
    assert row["metrics"]["l0"]["mean"] == pytest.approx(sum(known) / 3)
    assert (len(row["runs"]), row["done"], row["metrics"]["l0"]["count"]) == (3, 3, 3)
    assert data["next"] == f"sae report {seeds}"


def test_the_frontier_is_that_of_fvu_without_a_language_model(tmp_path):
    for index in range(3):
        fake.write_run(tmp_path / str(index), fake.config(weight=1.0 + index), evaluated=False)
    lines = lines_of(tmp_path)
    assert "FVU (share of variance unexplained)" in lines
    assert lines[-1] == f"next  sae eval {tmp_path}"
    assert sum(line.startswith("* ") for line in lines) == 4
