"""From run folders to compare.json: what is refused, what is written, what the command prints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from sae_cli.cli import app
from sae_cli.comparison import compare as module
from sae_cli.comparison.compare import compare
from sae_cli.config.compose import compose
from sae_cli.config.schema import EvalConfig
from sae_cli.dictionary.artifact import SAE, save_sae
from sae_cli.errors import UserError
from sae_cli.evaluation.evaluate import evaluate
from sae_cli.files import read_json
from sae_cli.reporting.report import write_report
from sae_cli.runs.directory import RunDirectory
from sae_cli.sources.registry import source_fingerprint

D = 8
EYE = torch.eye(D)
PARTS = torch.cat([EYE, -EYE])
MIXED = torch.cat([EYE[:4] + EYE[4:], EYE[4:], -EYE])
"""Four composites in the place of four parts."""
SOURCE = [
    "source=features",
    "source.features=8",
    f"source.width={D}",
    "source.orthogonal=true",
    "source.probability=0.3",
    "cache.validation_tokens=500",
]
MakeRun = Callable[..., Path]


def tied(W_dec_FD: torch.Tensor) -> SAE:
    """An SAE with a threshold just above 0 that reads and writes along the same directions."""
    bias_F = torch.full((len(W_dec_FD),), -1e-3)
    metadata = {"source": "features", "run_id": "x"}
    return SAE("relu", W_dec_FD.T.clone(), bias_F, W_dec_FD, torch.zeros(W_dec_FD.shape[1]), metadata=metadata)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str, W_dec_FD: torch.Tensor, state: str = "done", metadata: dict | None = None) -> Path:
        config = compose(SOURCE)
        run = RunDirectory(tmp_path / name)
        run.prepare(config, [], source_fingerprint(config), name, "cpu")
        sae = tied(W_dec_FD)
        sae.metadata |= metadata or {}
        save_sae(run.path, sae)
        run.set_status(state, 1, 1, name)
        return run.path

    return make


def sae(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_two_runs(make_run: MakeRun) -> None:
    a, b = make_run("a", MIXED), make_run("b", PARTS)
    path, content = compare([a, b], device="cpu")
    assert path == b / "compare.json"
    assert read_json(path) == content
    assert [(one["name"], one["latents"], one["rows"]) for one in content["dictionaries"]] == [
        ("A", 16, 500),
        ("B", 16, 500),
    ]
    tests = {(test["targets"], test["atoms"]): test for test in content["arithmetic"]}
    assert tests.keys() == {("A", "B"), ("B", "A"), ("A", "A"), ("B", "B")}
    assert tests["A", "B"]["rows"]["measured"]["composite"] == pytest.approx(4 / content["dictionaries"][0]["alive"])
    for one in tests["A", "B"]["examples"]:
        assert {term["id"] for term in one["terms"]} == {one["id"], one["id"] + 4}
    assert tests["B", "B"]["rows"]["measured"]["mean"] == pytest.approx([0, 0, 0], abs=1e-6)
    # e_0 = (e_0 + e_4) + (-e_4), and A has both.
    reverse = {one["id"]: {term["id"] for term in one["terms"]} for one in tests["B", "A"]["examples"]}
    assert reverse == {latent: {latent, latent + 12} for latent in range(4)}
    (pair,) = content["similarity"]
    assert pair["mmcs_b"] < 1
    assert content["splitting"] == []


def test_only_alive_latents_take_part(make_run: MakeRun) -> None:
    dead = torch.cat([PARTS, torch.zeros(3, D)])
    a, b = make_run("a", PARTS), make_run("b", dead)
    _, content = compare([a, b], device="cpu")
    first, second = content["dictionaries"]
    assert (second["latents"], second["alive"]) == (19, first["alive"])
    (pair,) = content["similarity"]
    assert pair["mmcs_a"] == pair["mmcs_b"] == pair["matched"] == pytest.approx(1)
    (level,) = content["splitting"]
    assert (level["narrow"], level["wide"], level["children"]) == ("A", "B", first["alive"])


def test_levels_go_from_narrow_to_wide_and_pairs_in_the_order_given(make_run: MakeRun) -> None:
    runs = [make_run("wide", PARTS), make_run("narrow", EYE[:4]), make_run("middle", EYE)]
    _, content = compare(runs, device="cpu")
    assert [(pair["a"], pair["b"]) for pair in content["similarity"]] == [("A", "B"), ("B", "C")]
    assert [(level["narrow"], level["wide"]) for level in content["splitting"]] == [("B", "C"), ("C", "A")]
    assert [edge["cosine"] for edge in content["splitting"][0]["edges"]] == pytest.approx([1] * 4)


def test_a_sample_of_targets(make_run: MakeRun) -> None:
    runs = [make_run("a", MIXED), make_run("b", PARTS)]
    first, again, other = (compare(runs, sample=3, seed=seed, device="cpu")[1] for seed in (0, 0, 1))
    assert first == again
    assert first["arithmetic"] != other["arithmetic"]
    assert {test["rows"]["measured"]["count"] for test in first["arithmetic"]} == {3}
    assert first["similarity"] == other["similarity"]


def test_different_widths_are_refused_even_with_force(make_run: MakeRun) -> None:
    runs = [make_run("a", EYE), make_run("b", torch.eye(5))]
    with pytest.raises(UserError, match=r"a has D=8 and .*b has D=5"):
        compare(runs, force=True)


def test_different_hooks_need_force_and_are_both_shown(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    runs = [make_run("a", EYE, metadata={"hook_name": "one"}), make_run("b", EYE, metadata={"hook_name": "two"})]
    out, _ = compare(runs, runs[0] / "forced.json", force=True, device="cpu")
    assert out.exists()
    assert "hook_name is one" in caplog.text
    result = sae("compare", *runs)
    assert result.exit_code == 2
    assert f"hook_name is one in {runs[0]} and two in {runs[1]}; --force" in result.stderr
    assert not (runs[1] / "compare.json").exists()


def test_unusable_runs_are_refused_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    good, unfinished = make_run("good", EYE), make_run("unfinished", EYE, state="interrupted")
    silent, broken = make_run("silent", torch.zeros(4, D)), make_run("broken", EYE * torch.nan)
    for paths, message in (
        ([good], "two or more"),
        ([good, good], "named twice"),
        ([good, tmp_path], "holds 4 runs"),
        ([good, unfinished], "state is interrupted"),
        ([good, silent], "no latent fires"),
        ([good, broken], "not finite"),
        ([good, tmp_path / "nowhere"], "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            compare(paths, device="cpu")


def test_rows_are_bounded_and_read_once_per_source(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 130)
    monkeypatch.setattr(module, "BATCH", 50)
    opened = []

    def counting(config, device):
        opened.append(config)
        return source(config, device)

    source = module.open_source
    monkeypatch.setattr(module, "open_source", counting)
    _, content = compare([make_run("a", EYE), make_run("b", PARTS)], device="cpu")
    assert [one["rows"] for one in content["dictionaries"]] == [130, 130]
    assert len(opened) == 1


def test_command_prints_tables_and_what_comes_next(make_run: MakeRun, tmp_path: Path) -> None:
    a, b = make_run("a", EYE[:6]), make_run("b", MIXED)
    result = sae("compare", a, b, "--device", "cpu")
    assert result.exit_code == 0
    for words in ("A on B, measured", "B on B, random atoms", "MMCS", "A -> B", f"sae report {b}"):
        assert words in result.stdout
    out = tmp_path / "deep" / "file.json"
    printed = json.loads(sae("compare", a, b, "--json", "--out", out, "--device", "cpu").stdout)
    assert printed == {"compare": str(out), **read_json(out)}
    refused = sae("compare", a, b, "--out", tmp_path / "x.txt")
    assert (refused.exit_code, ".json" in refused.stderr) == (2, True)


def test_the_report_of_the_last_run_shows_it(make_run: MakeRun) -> None:
    a, b = make_run("a", EYE[:6]), make_run("b", MIXED)
    compare([a, b], device="cpu")
    write_report([b])
    page = (b / "report.html").read_text()
    assert "<section id='composite-features'>" in page
    assert "known sums of 2" in page


def test_composition_is_a_section_of_eval_where_it_is_asked_for(make_run: MakeRun) -> None:
    wide = torch.cat([PARTS, *(EYE[:4] + EYE[4:] * weight for weight in (1, 2, 3, 4))])
    run = RunDirectory(make_run("a", wide))
    assert "composition" not in evaluate([run], "cpu")[0]
    (result,) = evaluate([run], "cpu", EvalConfig(composition=True, contexts=0))
    assert result["composition"]["count"] == round(32 * (1 - result["latents"]["dead"]))
    assert 0 < result["composition"]["ev"] < 1
    write_report([run.path])
    assert json.loads((run.path / "report.json").read_text())["table"][0]["composition"] == result["composition"]["ev"]
