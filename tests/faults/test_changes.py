"""Caches that are deleted or replaced while they are read, models and texts that change: refused, never mixed."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from sae_cli.assets import TINY as MODEL
from tests.faults.conftest import MIXED, TRAIN, last_lines, same
from tests.faults.processes import output, pause, run, start, wait_for
from tests.faults.test_kill import TINY, TRAINING

pytestmark = pytest.mark.slow
Whole = dict[str, bytes]


def cache_of(folder: Path, words: list[str]) -> Path:
    """Return where the cache of a command lies, and forget what the command printed."""
    assert run(["cache", *TINY, *words], folder) == 0
    return folder / next(line.split()[-1] for line in last_lines(folder).splitlines() if line.startswith("cache "))


def paused(folder: Path, words: list[str], step: int):
    process = start(words, folder, partial(pause, step))
    wait_for(folder / "paused")
    return process


def ended(process, folder: Path) -> int:
    (folder / "go").touch()
    process.join(60)
    return process.exitcode


def test_a_cache_deleted_under_a_run_is_named_and_made_again(folder: Path, whole: Whole) -> None:
    cache = cache_of(folder, MIXED)
    process = paused(folder, [*TRAIN, *MIXED], 4)
    shutil.rmtree(cache)
    assert ended(process, folder) == 2
    last = last_lines(folder).splitlines()[-1]
    assert last.startswith(f"error: {cache.relative_to(folder)}/train-")
    assert "missing; see `sae cache verify" in last
    assert run([*TRAIN, *MIXED], folder) == 0
    assert "resuming 1 member(s) at step" in last_lines(folder)
    assert same(folder, whole)


def test_a_cache_that_is_kept_in_memory_may_go(folder: Path, whole: Whole) -> None:
    cache = cache_of(folder, [])
    process = paused(folder, TRAIN, 4)
    shutil.rmtree(cache)
    assert ended(process, folder) == 0
    assert same(folder, whole)


@pytest.mark.parametrize("how", ["renamed", "written over"])
def test_a_cache_replaced_after_it_was_read_is_found_out(folder: Path, whole: Whole, how: str) -> None:
    other, cache = cache_of(folder, [*MIXED, "cache.seed=5"]), cache_of(folder, MIXED)
    shutil.copytree(cache, kept := folder / "kept")
    process = paused(folder, [*TRAIN, *MIXED], 14)  # in the second epoch
    for file in other.glob("*.safetensors"):
        assert (cache / file.name).stat().st_size == file.stat().st_size
        if how == "renamed":
            shutil.copy(file, cache / ".other")
            (cache / ".other").rename(cache / file.name)
        else:
            (cache / file.name).write_bytes(file.read_bytes())
    assert ended(process, folder) == 2
    last = last_lines(folder).splitlines()[-1]
    assert "its content is not that of manifest.json (SHA-256); see `sae cache verify" in last
    assert run([*TRAIN, *MIXED], folder) == 2  # nor does it go on with it
    shutil.copy(other / "manifest.json", cache)
    assert run([*TRAIN, *MIXED], folder) == 2
    assert "belongs to cache" in output(folder)
    shutil.rmtree(cache)
    kept.rename(cache)
    shutil.rmtree(other)
    assert run([*TRAIN, *MIXED], folder) == 0
    assert same(folder, whole)


def model_folder(place: Path) -> Path:
    shutil.copytree(MODEL, place)
    return place


def change(file: Path) -> None:
    """Change one weight, or one word of the text or of the vocabulary."""
    data = bytearray(file.read_bytes())
    if file.suffix == ".safetensors":
        data[-2] ^= 1
    elif file.suffix == ".json":
        data[:] = data.replace(b'"the"', b'"teh"', 1)
    else:
        data += b"One more sentence. " * 50
    assert data != file.read_bytes()
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/tokenizer.json", "texts/0.txt"])
def test_a_run_is_not_evaluated_on_a_changed_model_tokenizer_or_text(tmp_path: Path, name: str) -> None:
    model_folder(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for number in range(40):
        (tmp_path / f"texts/{number}.txt").write_text(f"Document {number} tells of the river and the town. " * 80)
    own = ["model.path=./model", "text.path=texts", "text.validation=0.3", "cache.validation_tokens=300"]
    words = [*TINY, *own, *TRAINING, "train.tokens=1024"]
    assert run(["train", *words], tmp_path) == 0, output(tmp_path)
    (one,) = (path.parent.relative_to(tmp_path) for path in tmp_path.glob("runs/*/*/cfg.json"))
    last_lines(tmp_path)
    before = (tmp_path / name).read_bytes()
    change(tmp_path / name)
    for command in (["eval", str(one), "eval.contexts=2"], ["dashboard", str(one), "--latents", "0-3"]):
        assert run(command, tmp_path) == 2
        last = last_lines(tmp_path).splitlines()[-1]
        assert f"{one}: the weights or tokenizer of model.path=./model, or text=wiki, changed since it was" in last
    assert len([*tmp_path.glob("caches/*")]) == 1  # none was made of the changed one
    (tmp_path / name).write_bytes(before)
    assert run(["eval", str(one), "eval.contexts=2"], tmp_path) == 0
