"""`sae bench` as a command: what it prints and what it refuses."""

import json

import pytest
from typer.testing import CliRunner, Result

from sae_cli.cli import app

QUICK = ["train.batch=64", "--seconds", "0.01", "--l0", "4"]


def bench(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words])


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    found = {"fp32_flops": 1e12, "bf16_flops": 1e12, "copy_bytes": 1e11, "device": "a CPU", "cores": 2, "threads": 2}
    monkeypatch.setattr("sae_cli.bench.run.machine", lambda device, seconds: {**found, "torch": "2"})


def test_json_has_the_machine_a_row_per_size_and_shares():
    result = json.loads(
        bench(*QUICK, "sae=topk", "--sizes", "16x32,16x32x3", "--sizes", "24x48", "--members", "1,2", "--json").stdout
    )
    assert set(result) == {"machine", "cache", "rows", "hints"}
    assert [(row["width"], row["latents"], row["members"]) for row in result["rows"]] == [
        (16, 32, 1),
        (16, 32, 2),
        (16, 32, 3),
        (24, 48, 1),
        (24, 48, 2),
    ]
    for row in result["rows"]:
        assert set(row) == {
            *("width", "latents", "members", "batch", "precision", "path", "l0", "ms", "tokens_per_second"),
            *("member_tokens_per_second", "peak_bytes", "share", "limit"),
        }
        assert row["l0"] == 4
        assert row["batch"] == 64
        for name in ("products", "bandwidth", "data", "dense_bound"):
            assert 0 < row["share"][name] < 1.5


def test_the_size_of_a_configuration_and_text_for_people():
    result = bench(*QUICK, "source=features", "source.width=24", "sae.latents=40")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["machine", "a", "CPU,"]
    header = next(index for index, line in enumerate(lines) if line.startswith("D "))
    assert lines[header + 1].split()[:4] == ["24", "40", "1", "dense"]
    assert lines[-1].startswith("hint")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "512"], "--sizes 512 --members 1: write DxF or DxFxMEMBERS"),
        (["--sizes", "512x0"], "--sizes 512x0 "),
        (["--sizes", "8x64,axb"], "--sizes axb "),
        (["--sizes", "8x64x2x2"], "--sizes 8x64x2x2 "),
        (["--sizes", "8x64", "--members", "1,-2"], "--members 1,-2"),
        (["--sizes", "99999x99999999"], "lower the size"),
        (["sae.latent=4"], "Did you mean sae.latents"),
    ],
)
def test_bad_sizes_exit_2(words, said):
    result = bench(*words)
    assert result.exit_code == 2
    assert said in result.output
