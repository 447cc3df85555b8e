import json
import math

import pandas as pd
import pytest
from markupsafe import escape

from sae_cli.errors import UserError
from sae_cli.files import read_json
from sae_cli.reporting.collect import collect, frame, varying
from sae_cli.reporting.report import write_report
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
        assert len(point.lines) == 480
    assert varying(points) == ["sae.nonlinearity", "sparsity.weight", "orthogonality.kind", "orthogonality.weight"]


def test_training_values_stand_in_only_where_they_mean_the_same(tmp_path):
    folder = fake.write_run(tmp_path / "a", fake.config(), evaluated=False)
    (point,) = collect([folder])
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert point.metrics == {
        **{name: last[name] for name in ("l0", "fvu", "dead", "negative_biases")},
        "step_seconds": pytest.approx(0.1),
    }


def test_neighbours_seen_and_step_time_are_read_from_training(tmp_path):
    (point,) = collect([fake.write_run(tmp_path / "a", fake.config(gamma=0.25))])
    assert point.metrics["neighbour_recall"] == pytest.approx(0.98, abs=1e-3)
    assert point.metrics["step_seconds"] == pytest.approx(0.15)
    assert point.curve["step_seconds"][1:].tolist() == pytest.approx([0.15] * 479)
    assert point.device == "cpu"


DAMAGES = [
    ("config.yaml", "sae: {latentz: 3}", "config.yaml"),
    ("config.yaml", "]", "config.yaml"),
    ("config.yaml", "", "config.yaml: is not a mapping"),
    ("config.yaml", b"\x89PNG\xff\x00\xfe", "config.yaml"),
    ("config.yaml", "folder", "config.yaml"),
    ("config.yaml", None, "config.yaml"),
    ("status.json", '{"state": "do', "status.json"),
    ("status.json", "[]", "holds list"),
    ("status.json", "folder", "status.json"),
    ("stamp.json", '{"device":', "stamp.json"),
    ("metrics.jsonl", "{oops\n", "metrics.jsonl"),
    ("metrics.jsonl", b"\xff\xfe\x00", "metrics.jsonl"),
    ("metrics.jsonl", "folder", "metrics.jsonl"),
    ("eval.json", "", "eval.json"),
    ("eval.json", '{"reconstruction": {"l0": 12.', "eval.json"),
    ("eval.json", b"\x00\x01\x02", "eval.json"),
    ("eval.json", "folder", "eval.json"),
    ("eval.json", "[" * 100_000, "eval.json"),
    ("eval.json", '{"reconstruction": {"l0": "twelve"}}', "reconstruction.l0 holds str, not a number"),
    ("eval.json", '{"reconstruction": {"l0": [1]}}', "reconstruction.l0 holds list, not a number"),
    ("eval.json", '{"reconstruction": {"l0": true}}', "reconstruction.l0 holds bool, not a number"),
    ("eval.json", '{"reconstruction": {"l0": 1' + 400 * "0" + "}}", "eval.json"),
    ("eval.json", '{"reconstruction": "twelve"}', "reconstruction holds str, not dict"),
    ("eval.json", '{"biases": {"histogram": {"edges": [0, 1], "counts": [1, 2]}}}', "one edge more"),
    ("eval.json", '{"biases": {"histogram": {"edges": [0, 1], "counts": ["1"]}}}', "not a list of numbers"),
    ("eval.json", '{"biases": {"histogram": {"edges": [0, 1], "counts": [null]}}}', "not a list of numbers"),
    ("eval.json", '{"biases": {"histogram": [1, 2]}}', "biases.histogram"),
    ("eval.json", '{"biases": {"histogram": {"counts": [1]}}}', "biases.histogram"),
    ("eval.json", '{"ground_truth": {"heatmap": [1, 2]}}', "not a table of numbers"),
    ("eval.json", '{"ground_truth": {"heatmap": [[1], [1, 2]]}}', "ground_truth.heatmap"),
    ("eval.json", '{"ground_truth": {"heatmap": [["a"]]}}', "not a table of numbers"),
]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A report of one good run and of one per damage, named by its number."""
    runs = tmp_path_factory.mktemp("runs")
    fake.write_run(runs / "good", fake.config())
    for index, (file, content, _) in enumerate(DAMAGES):
        bad = fake.write_run(runs / str(index), fake.config(weight=2.0))
        (bad / file).unlink()
        if content == "folder":
            (bad / file).mkdir()
        elif content is not None:
            (bad / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return write_report([runs]), (runs / "report.html").read_text()


@pytest.mark.parametrize("index", range(len(DAMAGES)), ids=[f"{file}-{says}" for file, _, says in DAMAGES])
def test_a_run_that_cannot_be_read_is_listed_and_the_others_stay(damaged, index):
    result, page = damaged
    (failed,) = (one for one in result["failed"] if one["run_id"] == str(index))
    assert failed["state"] == "corrupt"
    assert DAMAGES[index][2] in failed["error"]
    assert escape(failed["error"]) in page
    assert result["done"] == 1
    assert result["frontiers"]["l0_fvu"] == ["good"]


@pytest.mark.parametrize(
    "line", ['{"step": 1, "tokens": "many", "l0": "x", "seconds": {}}', '{"step": 1e999}', "3", "{}"]
)
def test_odd_lines_of_training_are_no_numbers_but_no_harm(tmp_path, line):
    run = fake.write_run(tmp_path / "a", fake.config(), evaluated=False)
    (run / "metrics.jsonl").write_text(f"{line}\n{line}\n")
    (run / "eval.json").write_text("{}")
    assert write_report([tmp_path])["done"] == 1


def test_half_written_run_is_new_and_unfinished_last_line_is_left_out(tmp_path):
    started = fake.write_run(tmp_path / "started", fake.config())
    for file in ("status.json", "eval.json"):
        (started / file).unlink()
    with (started / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4')
    (point,) = collect([tmp_path])
    assert (point.state, point.error, len(point.lines)) == ("new", "", 480)


def test_older_config_gets_todays_defaults(tmp_path):
    run = fake.write_run(tmp_path / "a", fake.config())
    lines = (run / "config.yaml").read_text().splitlines()
    (run / "config.yaml").write_text("\n".join(line for line in lines if "tile:" not in line))
    (point,) = collect([run])
    assert point.state == "done"
    assert point.config["orthogonality.tile"] == 1024


def test_non_finite_values_are_unknown(tmp_path):
    run = fake.write_run(tmp_path / "a", fake.config())
    evaluation = read_json(run / "eval.json")
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


def test_points_of_several_folders_name_their_sweep_and_count_once(tmp_path):
    first, second = (fake.write_sweep(tmp_path / name / "runs", lambdas=(1.0,)) for name in ("a", "b"))
    third = fake.write_run(tmp_path / "c" / "x", fake.config())
    points = collect([first, second, third, next(first.iterdir()), tmp_path / "b"])
    names = [point.sweep for point in points]
    assert names == [str(first.resolve())] * 6 + [str(second.resolve())] * 6 + ["c"]
    assert {point.sweep for point in collect([first, *first.iterdir()])} == {""}
    assert frame(points)["sweep"].nunique() == 3


def test_sections_seen_before_are_the_same_as_checked_ones(tmp_path):
    runs = fake.write_sweep(tmp_path, lambdas=(1.0, 2.0), seeds=2)
    together = {point.folder: point.config for point in collect([runs])}
    for folder in runs.iterdir():
        (alone,) = collect([folder])
        assert list(together[str(folder)].items()) == list(alone.config.items())
