import json
import math

import pandas as pd
import pytest

from sae_cli.errors import UserError
from sae_cli.reporting.collect import collect, frame, varying
from tests.reporting import fake


def test_reads_every_run_once_with_its_metrics(tmp_path):
    runs = fake.write_sweep(tmp_path / "demo")
    points = collect([runs, next(runs.iterdir())])
    assert len(points) == 18
    assert {point.state for point in points} == {"done"}
    for point in points:
        expected = fake.numbers(
            fake.config(
                point.config["sae.nonlinearity"], point.config["sparsity.weight"], point.config["orthogonality.weight"]
            )
        )
        assert point.metrics["l0"] == expected["l0"]
        assert point.metrics["nearest_cosine"] == expected["nearest"]
        assert len(point.curve) == 480
    assert varying(points) == ["sae.nonlinearity", "sparsity.weight", "orthogonality.kind", "orthogonality.weight"]


def test_training_values_stand_in_only_where_they_mean_the_same(tmp_path):
    folder = fake.write_run(tmp_path / "a", fake.config(), evaluated=False)
    (point,) = collect([folder])
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert point.metrics == {name: last[name] for name in ("l0", "fvu", "dead", "negative_biases")}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.yaml", "sae: {latentz: 3}", "config.yaml"),
        ("config.yaml", "]", "config.yaml"),
        ("status.json", '{"state": "do', "status.json"),
        ("status.json", "[]", "status.json: holds list"),
        ("metrics.jsonl", "{oops\n", "metrics.jsonl"),
        ("eval.json", "", "eval.json"),
        ("eval.json", '{"biases": {"histogram": {"edges": [0, 1], "counts": [1, 2]}}}', "one edge more"),
        ("eval.json", '{"ground_truth": {"heatmap": [1, 2]}}', "not a table"),
    ],
)
def test_a_run_that_cannot_be_read_is_listed_and_the_others_stay(tmp_path, file, content, says):
    fake.write_run(tmp_path / "good", fake.config())
    bad = fake.write_run(tmp_path / "bad", fake.config(weight=2.0))
    (bad / file).write_text(content)
    points = {point.run_id: point for point in collect([tmp_path])}
    assert points["good"].state == "done"
    assert points["bad"].state == "corrupt"
    assert says in points["bad"].error


def test_half_written_run_is_new_and_unfinished_last_line_is_left_out(tmp_path):
    started = fake.write_run(tmp_path / "started", fake.config())
    for file in ("status.json", "eval.json"):
        (started / file).unlink()
    with (started / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4')
    (point,) = collect([tmp_path])
    assert (point.state, point.error, len(point.curve)) == ("new", "", 480)


def test_older_config_gets_todays_defaults(tmp_path):
    run = fake.write_run(tmp_path / "a", fake.config())
    lines = (run / "config.yaml").read_text().splitlines()
    (run / "config.yaml").write_text("\n".join(line for line in lines if "tile:" not in line))
    (point,) = collect([run])
    assert point.state == "done"
    assert point.config["orthogonality.tile"] == 1024


def test_non_finite_values_are_unknown(tmp_path):
    run = fake.write_run(tmp_path / "a", fake.config())
    evaluation = json.loads((run / "eval.json").read_text())
    evaluation["reconstruction"]["mse"] = math.inf
    evaluation["language_model"]["delta_nats"] = None
    (run / "eval.json").write_text(json.dumps(evaluation))
    (point,) = collect([run])
    assert not {"mse", "delta_ce"} & point.metrics.keys()


def test_frame_has_a_row_per_point_and_survives_parquet(tmp_path):
    fake.write_sweep(tmp_path)
    (tmp_path / "0000001000" / "config.yaml").write_text("nothing")
    table = frame(collect([tmp_path]))
    table.to_parquet(tmp_path / "t.parquet")
    back = pd.read_parquet(tmp_path / "t.parquet")
    one, other = (part.astype(object).where(part.notna(), None) for part in (back, table))
    pd.testing.assert_frame_equal(one, other)
    assert len(back) == 18
    assert back["config.train.resample_at"].dropna().unique().tolist() == ["[]"]
    assert set(back["config.sparsity.weight"].dropna()) == {1.0, 2.0, 4.0}


def test_no_folder_and_no_run_are_user_errors(tmp_path):
    for folders in ([], [tmp_path], [tmp_path / "missing"]):
        with pytest.raises(UserError):
            collect(folders)
