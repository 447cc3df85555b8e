"""What a report leaves at Weights & Biases: read back from offline runs, and sent to a server that answers a little."""

import json
import logging
import re
import subprocess
import sys
import time

import pytest
import wandb
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.reporting.collect import collect
from sae_cli.runs.publish import publish_files
from tests.reporting import fake
from tests.runs.fake_wandb import history_of, read_back, serve

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("no_account")]


def write_runs(folder, names="ab", **tracker):
    for index, name in enumerate(names):
        point = fake.config(weight=1.0 + index)
        for key, value in tracker.items():
            setattr(point.tracker, key, value[index] if isinstance(value, tuple) else value)
        fake.write_run(folder / name, point)
    return folder


def report(*words):
    """What `sae report --wandb` says of W&B, and its lines on stderr."""
    result = CliRunner().invoke(app, ["-q", "report", *map(str, words), "--wandb", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["wandb"], result.stderr.splitlines()


def test_an_offline_report_holds_figures_table_summary_and_files(tmp_path):
    runs = write_runs(tmp_path / "runs", project="p", group="g", mode="offline")
    (runs / "a" / "dashboard.html").write_text("pages of a")
    (runs / "b" / "wandb" / "offline-run-20300101_000000-b-42").mkdir(parents=True)
    told, warnings = report(runs)
    (folder,) = (runs / "wandb").iterdir()
    assert (told, warnings) == ({"id": told["id"], "folder": str(folder)}, [])
    records = read_back(runs)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.run_group, run.job_type) == (told["id"], "p", "g", "report")
    (row,) = history_of(records)
    figures = {key.removesuffix("._type") for key, value in row.items() if value == "plotly-file"}
    assert {"frontier/l0_fvu", "frontier/l0_delta_ce", "curve/fvu", "histogram/Density"} <= figures
    plot = json.loads((folder / "files" / row["frontier/l0_fvu.path"]).read_text())
    assert sorted(point for trace in plot["data"][1:] for point in trace["customdata"]) == [0, 1]
    assert "bdata" not in (folder / "files" / row["curve/fvu.path"]).read_text()
    table = json.loads((folder / "files" / row["points.path"]).read_text())
    cells = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert [(c["run"], c["sparsity.weight"], c["wandb"]) for c in cells] == [("a", 1.0, ""), ("b", 2.0, "b-42")]
    assert cells[0]["fvu"] == pytest.approx(fake.numbers(fake.config())["fvu"])
    updates = [u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
    summary = {".".join(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}
    assert (summary["points"], summary["done"]) == (2, 2)
    assert summary["best/l0_fvu"]["run"] == "a"
    assert sorted(summary["frontier_runs/l0_fvu"]) == ["a", "b"]
    requests = [r.request.log_artifact for r in records if r.WhichOneof("record_type") == "request"]
    artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    (artifact,) = [a for a in artifacts + [r.artifact for r in requests] if a.type == "report"]
    names = {entry.path for entry in artifact.manifest.contents}
    assert names == {"report.html", "report.parquet", "report.json", "a/dashboard.html"}


def test_publishing_again_updates_the_run_and_other_runs_get_another(tmp_path):
    runs = write_runs(tmp_path / "runs", "abc", mode="offline")
    sets = ([runs / "a", runs / "b"], [runs / "b", runs / "a"], [runs / "a", runs / "c"])
    first, again, other = (publish_files(collect(one), "report", {}, tmp_path)["id"] for one in sets)
    assert first == again != other


def test_the_most_common_project_is_used_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sae_cli")
    runs = write_runs(tmp_path / "runs", "abc", mode="offline", project=("p", "q", "q"), entity="e")
    (runs / "d").mkdir()
    (runs / "d" / "config.yaml").write_text("]")
    publish_files(collect([runs]), "dashboard", {"page": runs / "a" / "eval.json"}, tmp_path)
    (run,) = [r.run for r in read_back(tmp_path) if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.entity, run.job_type) == ("q", "e", "dashboard")
    assert [r.getMessage() for r in caplog.records if "differ" in r.getMessage()] == [
        "wandb: the runs differ in tracker.project; q is used"
    ]


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("answer", ["refused", "500", "denied", "full"])
def test_a_server_that_does_not_answer_costs_one_warning(tmp_path, monkeypatch, answer):
    if answer == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    else:
        serve(answer, monkeypatch)
    runs = write_runs(tmp_path / "runs")
    told, (warning,) = report(runs)
    assert (runs / "report.html").exists()
    assert "wandb sync" in warning
    assert "offline-run" in told["folder"]
    assert history_of(read_back(runs))


@pytest.mark.usefixtures("key")
def test_a_server_that_takes_the_run_but_no_artifact_has_the_figures(tmp_path, monkeypatch):
    server = serve("ok", monkeypatch)
    told, (warning,) = report(write_runs(tmp_path / "runs"))
    server.stop()
    assert told["url"] == f"{server.url}/me/sae/runs/{told['id']}"
    assert "the report is not published in full" in warning
    line = next(row for row in map(json.loads, server.history) if "frontier/l0_fvu" in row)
    assert line["frontier/l0_fvu"]["_type"] == "plotly-file"


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_a_server_that_falls_silent_holds_nothing_up(tmp_path, monkeypatch):
    serve("stall", monkeypatch)
    begun = time.monotonic()
    command = [sys.executable, "-m", "sae_cli", "-q", "report", str(write_runs(tmp_path / "runs")), "--wandb"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert time.monotonic() - begun < 45
    assert ended.returncode == 0
    (warning,) = ended.stderr.splitlines()
    assert re.search(r"not all was sent in 10 s; `wandb sync --include-online \S+/run-\S+` sends the rest", warning)


def test_nothing_of_wandb_can_stop_a_report(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no disk")

    runs = write_runs(tmp_path / "runs", mode="offline")
    monkeypatch.setattr(wandb, "Plotly", broken)
    assert report(runs)[1] == ["wandb: no disk; the report is not published in full"]
    monkeypatch.setattr(wandb, "init", broken)
    assert report(runs) == ({}, ["wandb: no disk; the report is not published"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert report(runs) == ({}, [])


def test_the_command_names_the_folder_to_sync(tmp_path):
    runs = write_runs(tmp_path / "runs", mode="offline")
    result = CliRunner().invoke(app, ["report", str(runs), "--wandb"])
    assert re.search(r"^wandb +offline; next: wandb sync \S+/offline-run-\S+-report-\w+$", result.stdout, re.M)
