"""One run as text."""

import json

import pytest

from sae_cli.files import read_json
from sae_cli.reporting.collect import collect
from sae_cli.reporting.one_run import show_run
from tests.reporting import fake


@pytest.fixture
def run(tmp_path):
    folder = fake.write_run(tmp_path / "a", fake.config(weight=2.0))
    stamp = {"device": "cuda", "host": "node7", "git": {"commit": "a" * 40, "dirty": True}}
    (folder / "stamp.json").write_text(json.dumps(stamp))
    (folder / "overrides.txt").write_text("sparsity.weight=2\nname=a b\n")
    return folder


def draw(folder, width=80, ascii_only=False):
    return show_run(*collect([folder]))[1](width, ascii_only)


def test_a_finished_run_shows_facts_numbers_curves_and_histograms(run):
    lines = draw(run)
    pairs = {line[: line.index("  ")]: line.split("  ", 1)[1].strip() for line in lines if "  " in line}
    assert pairs["sparsity.weight"] == "2.0"
    assert (pairs["device"], pairs["host"], pairs["git"]) == ("cuda", "node7", "a" * 12 + " (changed)")
    assert pairs["FVU (share of variance unexplained)"] == "0.06916"
    assert pairs["random nearest cosine (median of random directions)"] == "0.186"
    first, last = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:: 480 - 1])
    assert pairs["fvu"].endswith(f"{first['fvu']:.4g} → {last['fvu']:.4g}")
    assert pairs["fvu"].startswith("█")
    assert "→" in pairs["nearest_cosine"]
    assert not {"step", "tokens", "seconds"} & pairs.keys()
    bars, ends = (pairs["random directions"].rsplit("  ", 1)[side] for side in (0, 1))
    assert ends == pairs["nearest cosine"].rsplit("  ", 1)[1]
    assert bars.index("█") < pairs["nearest cosine"].index("█")
    assert lines[-1] == f"next  sae report {run}"


def test_what_never_changes_is_no_curve_unless_it_is_a_result(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    moving = [line | {"gamma": 0.5, "dead": 0, "lambda": line["step"]} for line in lines]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in moving))
    curves = show_run(*collect([run]))[0]["curves"]
    assert curves["lambda"] == {"first": 1, "last": 480}
    assert curves["dead"] == {"first": 0, "last": 0}
    assert "gamma" not in curves


def test_a_synthetic_source_has_no_model(tmp_path):
    point = fake.config()
    point.source.kind = "tree"
    settings = show_run(*collect([fake.write_run(tmp_path / "a", point)]))[0]["settings"]
    assert settings["source.kind"] == "tree"
    assert not any(key.startswith(("model", "text")) for key in settings)


@pytest.mark.parametrize(
    ("state", "evaluated", "following"),
    [
        ("done", False, "sae eval {}"),
        ("running", False, "sae show --watch 10 {}"),
        ("interrupted", False, "sae train sparsity.weight=2 'name=a b'"),
    ],
)
def test_the_next_command_follows_from_the_state(run, state, evaluated, following):
    status = read_json(run / "status.json") | {"state": state}
    (run / "status.json").write_text(json.dumps(status))
    if not evaluated:
        (run / "eval.json").unlink()
    lines = draw(run)
    assert lines[-1] == "next  " + following.format(run)
    assert "evaluation" in {line.split()[0] for line in lines if line}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_corrupt_run_still_shows_the_rest_and_its_whole_error(run, width):
    (run / "config.yaml").write_text("sae: {latentz: 3}")
    (run / "stamp.json").write_text("[")
    (run / "status.json").write_text('{"step": "x", "steps": null}')
    (run / "overrides.txt").unlink()
    lines = draw(run, width, ascii_only=True)
    assert all(line.isascii() and len(line) <= width for line in lines)
    assert "latentz" in "".join(lines).replace(" ", "")
    assert any(line.startswith("fvu") for line in lines)
    assert not lines[-1].startswith("next")


def test_json_has_what_is_shown(run):
    data, _ = show_run(*collect([run]))
    json.dumps(data, allow_nan=False)
    assert data["metrics"]["l0"] == pytest.approx(fake.numbers(fake.config(weight=2.0))["l0"])
    assert (data["step"], data["steps"], data["evaluated"]) == (480, 480, True)
    density = data["histograms"]["log10 density"]
    assert len(density["edges"]) == len(density["shares"]) + 1
