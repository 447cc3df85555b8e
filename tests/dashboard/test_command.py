"""`sae dashboard` from the shell, on vectors."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from sae_cli.cli import app


def sae(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32))
    data = ["source=vectors", f"source.path={folder / 'x.npy'}", "cache.tokens=2000", "cache.validation_tokens=100"]
    place = [f"cache.dir={folder / 'caches'}", f"runs_dir={folder / 'runs'}", "tracker=jsonl"]
    words = [*data, *place, "sae.latents=32", "train.tokens=4096", "train.batch=256", "sparsity.weight=0.1"]
    result = sae("train", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["folder"], [*data, *place]


def content(page):
    text = page.read_text().split('<script type="application/json">')
    return [json.loads(part.split("</script>")[0]) for part in text[1:]]


def test_pages_hold_the_latents_that_were_asked_for(run, tmp_path):
    folder, _ = run
    for words, ids in ((["--ids", "3,30-31"], [3, 30, 31]), (["--latents", "all"], list(range(32)))):
        result = sae("dashboard", folder, *words, "--out", tmp_path / "page.html", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == {"pages": [str(tmp_path / "page.html")]}
        assert content(tmp_path / "page.html")[0]["columns"]["id"] == ids


def test_the_densest_latents_come_first(run, tmp_path):
    folder, _ = run
    page = tmp_path / "page.html"
    result = sae("dashboard", folder, "--top", "density", "--count", 5, "--split", "validation", "--out", page)
    assert result.exit_code == 0, result.output
    density = content(page)[0]["columns"]["density"]
    assert len(density) == 5
    assert density == sorted(density, reverse=True)


def test_an_exported_sae_has_pages_of_the_data_that_is_named(run, tmp_path):
    folder, data = run
    for name in ("cfg.json", "sae.safetensors"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    result = sae("dashboard", tmp_path, *data[:-2], "--latents", "0-3", "--against", folder)
    assert result.exit_code == 0, result.output
    page, details = content(tmp_path / "dashboard.html")
    assert page["title"] == f"relu · {tmp_path.name}"
    # Each direction is explained by itself in the other, equal SAE.
    assert [one["constituents"][0][0] for one in details] == [0, 1, 2, 3]
    assert page["columns"]["single"] == pytest.approx([1] * 4, abs=1e-3)


@pytest.mark.parametrize("words", [["--split", "test"], ["--latents", "32"], ["--top", "size"], ["--latents", "x"]])
def test_what_cannot_be_shown_is_one_line_and_code_2(run, words):
    result = sae("dashboard", run[0], *words)
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: {words[0]} {words[1]}")
