"""Commands: what they print, where, and with which exit code."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sae_cli import __version__
from sae_cli.cli import app
from sae_cli.config.schema import EvalConfig
from sae_cli.errors import UserError
from tests.reporting import fake

SYNTHETIC = ["source=three_features", "tracker=jsonl"]


def sae(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@dataclass
class Plan:
    run_id: str = "abc"
    folder: Path = Path("runs/default/abc")
    stack_key: str = "key"
    state: str = "new"
    resume_step: int = 0
    parameters: int | None = 1234
    memory_bytes: int | None = None


@dataclass
class Outcome:
    state: str
    error: str = ""
    run_id: str = "abc"
    folder: Path = Path("runs/default/abc")


@dataclass
class Row:
    run_id: str
    state: str
    overrides: list[str]
    stack: int | None = 0
    parameters: int = 2_000_000
    memory_bytes: int = 3_000_000
    error: str = ""


@dataclass
class Sweep:
    rows: list[Row]
    failed: list[Row] = field(default_factory=list)
    interrupted: bool = False
    folder: Path = Path("runs/grid")


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> None:
    module = ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)


def stub_training(monkeypatch: pytest.MonkeyPatch, state: str, error: str = "") -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def execute(configs: list[Any], **options: Any) -> list[Outcome]:
        calls.append(options)
        return [Outcome(state, error)]

    stub(monkeypatch, "sae_cli.training.execute", execute=execute, plan_point=lambda config: Plan())
    return calls


def test_help_and_version_come_on_stdout() -> None:
    assert all(
        word in sae("--help").stdout
        for word in ("cache", "train", "sweep", "eval", "compare", "report", "doctor", "config")
    )
    assert sae("--version").stdout == f"sae {__version__}\n"


def test_module_is_the_command_and_loads_nothing_heavy() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "sae_cli", "--help"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "Usage: sae" in run.stdout
    assert not any(f" {name}\n" in run.stderr for name in ("torch", "hydra", "omegaconf", "wandb", "pandas", "rich"))


@pytest.mark.parametrize("state", ["done", "skipped"])
def test_train_prints_the_run_first_and_last_and_what_comes_next(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    calls = stub_training(monkeypatch, state)
    result = sae("train", *SYNTHETIC, "--fresh")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].split() == ["run", "runs/default/abc"]
    assert lines[-1].split() == ["run", "runs/default/abc"]
    assert "sae eval runs/default/abc" in result.stdout
    assert calls == [{"fresh": True, "overrides": [SYNTHETIC], "profile": False}]


@pytest.mark.parametrize(("state", "code"), [("failed", 1), ("interrupted", 130)])
def test_train_exit_codes(monkeypatch: pytest.MonkeyPatch, state: str, code: int) -> None:
    stub_training(monkeypatch, state, "loss is not finite" if state == "failed" else "")
    result = sae("train", *SYNTHETIC)
    assert result.exit_code == code
    assert ("loss is not finite" in result.stdout) == (state == "failed")
    assert json.loads(sae("train", *SYNTHETIC, "--json").stdout)["state"] == state


def test_train_dry_run_shows_the_point_and_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub_training(monkeypatch, "done")
    shown = sae("train", *SYNTHETIC, "--dry-run").stdout
    assert "kind: three_features" in shown
    assert "1,234" in shown
    assert "free disk" in shown
    report = json.loads(sae("train", *SYNTHETIC, "--dry-run", "--json").stdout)
    assert (report["parameters"], report["config"]["tracker"]["kind"], report["needed_bytes"]) == (1234, "jsonl", 0)
    assert calls == []


def test_bad_configuration_is_one_line_on_stderr() -> None:
    result = sae("train", *SYNTHETIC, "+train.lrr=3", "sae=rlu")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "train.lrr" in result.stderr
    assert "sae=rlu" in result.stderr
    assert isinstance(sae("--debug", "train", "trian.lr=3").exception, UserError)


def test_unknown_commands_and_options_are_usage_errors() -> None:
    for words in (["trian"], ["train", "--frsh"]):
        result = sae(*words)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("a\nb"), 1), (UserError("u"), 2)]
)
def test_what_a_command_raises_becomes_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def run_sweep(words: list[str], **options: Any) -> Sweep:
        raise error

    stub(monkeypatch, "sae_cli.runs.sweep", run_sweep=run_sweep)
    result = sae("sweep", "a=1,2")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (code, "", 1)


def test_sweep_hands_over_options_and_prints_points_failures_and_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[list[str], dict[str, Any]]] = []
    good, bad = Row("r1", "done", ["seed=0", "lr=1"]), Row("r2", "failed", ["seed=1", "lr=1"], 0, error="not finite")

    def run_sweep(words: list[str], **options: Any) -> Sweep:
        calls.append((words, options))
        return Sweep([good, bad], [bad]) if "fail=1" in words else Sweep([good])

    stub(monkeypatch, "sae_cli.runs.sweep", run_sweep=run_sweep)
    result = sae("sweep", "grid.yaml", "fail=1", "hydra.launcher.n_jobs=2", "--launcher", "joblib", "--no-eval")
    words, options = calls[0]
    assert result.exit_code == 1
    assert words == ["grid.yaml", "fail=1"]
    assert (options["launcher"], options["launcher_options"]) == ("joblib", ["hydra.launcher.n_jobs=2"])
    assert (options["evaluate"], options["dry_run"], options["fresh"]) == (False, False, False)
    assert "r2 (seed=1 lr=1): not finite" in result.stdout
    assert "2 (1 done, 1 failed), 1 stack" in result.stdout
    assert [line.split()[-1] for line in result.stdout.splitlines()[1:3]] == ["seed=0", "seed=1"]
    again = sae("sweep", "grid.yaml")
    assert again.exit_code == 0
    assert "sae report runs/grid" in again.stdout
    data = json.loads(sae("sweep", "grid.yaml", "fail=1", "--json").stdout)
    assert (data["failed"], data["rows"][0]["overrides"]) == (["r2"], ["seed=0", "lr=1"])
    assert sae("sweep", "fail=1", "--dry-run").exit_code == 0


def test_cache_makes_plans_and_verifies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = {"folder": "caches/x", "hook": "h", "bytes": 2_000_000, "rows": 10, "state": "new"}
    stub(
        monkeypatch,
        "sae_cli.sources.registry",
        ensure_cache=lambda config, part: None,
        cache_folders=lambda config: {"h": Path("caches/x")},
        shares_left=lambda config: [],
        plan_cache=lambda config: [part, part | {"state": "done"}],
        refuse_synthetic=lambda config: None,
        SYNTHETIC=("three_features",),
    )
    made = sae("cache", "model=tiny", "text=wiki").stdout
    assert "caches/x" in made
    assert "sae train model=tiny text=wiki" in made
    (tmp_path / "own/sae").mkdir(parents=True)
    assert f"sae train --config-dir {tmp_path}/own" in sae("cache", "--config-dir", f"{tmp_path}/own").stdout
    plan = sae("cache", "--dry-run").stdout
    assert "2000000" in plan
    assert "2.0 MB" in plan
    assert json.loads(sae("cache", "--dry-run", "--json").stdout)["needed_bytes"] == 2_000_000

    stub(monkeypatch, "sae_cli.store.find", verify=lambda folder: ["shard 1 differs"] if folder.name == "bad" else [])
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert sae("cache", "verify", str(tmp_path / "good")).exit_code == 0
    both = sae("cache", "verify", str(tmp_path))
    assert both.exit_code == 1
    assert "shard 1 differs" in both.stdout
    assert sae("cache", "verify").exit_code == 2
    assert sae("cache", "verify", str(tmp_path / "none")).exit_code == 2


def test_eval_and_report_hand_over_and_print(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    found = {"run": "runs/r1", "reconstruction": {"l0": 12.345678, "fvu": None}}

    def open_subjects(*given: Any) -> str:
        calls.append(given)
        return "subjects"

    def evaluate(subjects: str, device: str) -> list[dict[str, Any]]:
        calls.append((subjects, device))
        return [found]

    stub(monkeypatch, "sae_cli.evaluation.evaluate", evaluate_subjects=evaluate)
    stub(monkeypatch, "sae_cli.runs.subjects", open_subjects=open_subjects, is_sae=lambda path: path.name == "sae")
    result = sae("eval", "runs", "sae", "--device", "cpu")
    assert result.stdout.splitlines()[:2] == ["run      L0", "runs/r1  12.35"]
    assert result.stdout.splitlines()[-1].endswith("sae report runs")
    assert calls == [([Path("runs"), Path("sae")], [], False), ("subjects", "cpu")]
    assert "next" not in sae("eval", "sae", "eval.rows=5", "--force").stdout
    assert calls[2] == ([Path("sae")], ["eval.rows=5"], True)
    assert json.loads(sae("eval", "runs", "--json").stdout) == {"runs/r1": found}
    assert sae("eval", "eval.rows=5").exit_code == 2

    stub(
        monkeypatch,
        "sae_cli.reporting.report",
        write_report=lambda folders, out: {"report": str(out), "parquet": "p", "folders": folders},
    )
    assert "x.html" in sae("report", "runs", "--out", "x.html").stdout
    assert json.loads(sae("report", "a", "b", "--json").stdout)["folders"] == ["a", "b"]


def test_doctor_reports_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_cli import doctor

    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("disk", "ok", "9 GB free")])
    assert sae("doctor").stdout == "ok    disk           9 GB free\n"
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("disk", "fail", "none", "free some")])
    result = sae("doctor")
    assert result.exit_code == 1
    assert "-> free some" in result.stdout
    assert json.loads(sae("doctor", "--json").stdout)["disk"]["state"] == "fail"


def test_config_show_ls_and_keys() -> None:
    assert "nonlinearity: prolu_ste" in sae("config", "show", *SYNTHETIC, "sae=prolu_ste").stdout
    assert json.loads(sae("config", "show", *SYNTHETIC, "--json").stdout)["source"]["kind"] == "three_features"
    assert "sae/prolu_ste" in sae("config", "ls").stdout
    assert {"none", "l1", "l0"} <= set(json.loads(sae("config", "ls", "sparsity", "--json").stdout)["sparsity"])
    assert "# @package" not in sae("config", "ls", "sae").stdout
    assert "Did you mean sparsity" in sae("config", "ls", "sparsty").stderr
    assert "train.batch (int, default 2048): Rows per step B." in sae("config", "keys").stdout
    shown = {key["name"] for key in json.loads(sae("config", "keys", "eval.", "--json").stdout)}
    assert shown == {f"eval.{one.name}" for one in fields(EvalConfig)}
    assert sae("config", "keys", "evl").exit_code == 2


def test_a_copied_file_is_used_from_the_users_folder(tmp_path: Path) -> None:
    assert sae("config", "cp", "train/quick", str(tmp_path)).exit_code == 0
    mine = tmp_path / "train/quick.yaml"
    mine.write_text(mine.read_text().replace("200_000", "77_777"))
    shown = sae("config", "show", *SYNTHETIC, "train=quick", "--config-dir", str(tmp_path)).stdout
    assert "tokens: 77777" in shown
    assert sae("config", "cp", "train/quick", str(tmp_path)).exit_code == 2
    assert "77_777" in mine.read_text()
    assert sae("config", "cp", "train/quick", str(tmp_path), "--force").exit_code == 0
    assert "77_777" not in mine.read_text()
    assert "Did you mean train/quick" in sae("config", "cp", "train/quik", str(tmp_path)).stderr


@pytest.mark.parametrize(("command", "why"), [("sweep", "--launcher"), ("cache", "run `sae cache` without it")])
def test_torchrun_is_for_train_only(monkeypatch: pytest.MonkeyPatch, command: str, why: str) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = sae(command, *SYNTHETIC)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: torchrun is for `sae train`")
    assert why in refused.stderr


def test_eval_shows_intervals_where_runs_differ_in_seeds_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = fake.write_sweep(tmp_path / "demo", lambdas=(1.0,), seeds=2)
    found = [{"run": str(run), "reconstruction": {"l0": 1.0}} for run in folder.iterdir()]
    stub(monkeypatch, "sae_cli.evaluation.evaluate", evaluate_subjects=lambda subjects, device: found)
    stub(monkeypatch, "sae_cli.runs.subjects", open_subjects=lambda *given: None, is_sae=lambda path: False)
    shown = sae("eval", str(folder)).stdout
    assert "± 95 % interval over seeds" in shown
    assert shown.splitlines()[-1].endswith(f"sae report {folder}")
