"""Nothing is lost, doubled or left unshuffled, whatever happens to the writer."""

import errno
import json
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sae_cli.store.writer as writer_module
from sae_cli.errors import UserError
from sae_cli.store.find import cache_fingerprint, verify
from sae_cli.store.format import MANIFEST, read_manifest
from sae_cli.store.part import PartWriter
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, identities, in_process, small_cache


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(folder: Path, split: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / shard.name) for shard in getattr(read_manifest(folder), split).shards]


@pytest.mark.parametrize("parts", ["1", "3"])
def test_sigkill_at_random_moments_changes_no_byte(tmp_path, parts):
    outcome = json.loads(in_process("tests.store.crash", str(tmp_path), "random", parts))
    assert outcome["kills"] >= 20
    assert outcome["stages"] >= 5
    assert outcome["equal"]
    assert outcome["problems"] == []


@pytest.mark.parametrize("parts", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_sigkill_before_every_rename_changes_no_byte(tmp_path, parts):
    outcome = json.loads(in_process("tests.store.crash", str(tmp_path), "steps", parts))
    assert outcome["kills"] > 30
    assert outcome["unequal"] == []


def test_memory_is_bounded_by_the_shuffle_buffer(tmp_path):
    # 16 MiB to shuffle, a 2 MiB shard, and the source's own; the cache takes 64 MiB.
    assert 16 < float(in_process("tests.store.memory", "write", str(tmp_path))) < 16 + 2 + 10


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_row_once_with_its_place_and_shuffled(make_cache, split):
    source = FakeRows({"a": 8})
    folder = make_cache(source)
    shards = stored(folder, split)
    ids = [number for shard in shards for number in identities(shard["x"])]
    offset = 1_000_000 if split == "validation" else 0
    count = {"train": 450, "validation": 60}[split]
    assert sorted(ids) == [offset + row for row in range(count)]
    assert ids != sorted(ids)
    x_ND = torch.cat([shard["x"] for shard in shards])
    row_N = torch.tensor(ids) - offset
    assert torch.equal(x_ND, source.values(split, "a", row_N).bfloat16())
    assert torch.equal(torch.cat([shard["context"] for shard in shards]), (row_N // 5).int())
    assert torch.equal(torch.cat([shard["position"] for shard in shards]), (row_N % 5 + 1).int())


def test_shuffled_across_a_whole_block(make_cache):
    first = stored(make_cache(), "train")[0]
    # 2000 bytes of 16 are 125 rows a block; the 450 rows are cut into four even blocks.
    ids = identities(first["x"])
    assert max(ids) > 75
    assert max(ids) < 113


def test_text_is_stored_for_the_contexts_of_the_rows(make_cache):
    folder = make_cache()
    manifest = read_manifest(folder)
    for part, contexts, offset in ((manifest.train, 90, 0), (manifest.validation, 12, 1_000_000)):
        files = [load_file(folder / file.name) for file in part.tokens]
        tokens_CT = torch.cat([file["tokens"] for file in files])
        expected_CT = torch.arange(contexts * 6).view(contexts, 6)
        assert torch.equal(tokens_CT, expected_CT.int() + offset)
        assert torch.equal(torch.cat([file["document"] for file in files]), (expected_CT // 10).int())
        assert sum(file.rows for file in part.tokens) == contexts


def test_a_source_without_text_has_no_tokens_files(make_cache):
    folder = make_cache(FakeRows({"a": 8}, text=False))
    assert read_manifest(folder).train.tokens == []
    assert not list(folder.glob("tokens*"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_statistics_are_those_of_the_stored_rows(make_cache, dtype):
    folder = make_cache(FakeRows({"a": 7}), dtype=dtype)
    x_ND = torch.cat([shard["x"] for shard in stored(folder, "train")])
    assert x_ND.dtype == getattr(torch, dtype)
    x_ND = x_ND.double()
    manifest = read_manifest(folder)
    torch.testing.assert_close(torch.tensor(manifest.mean, dtype=torch.float64), x_ND.mean(0))
    assert manifest.mean_squared_norm == pytest.approx(float(x_ND.square().sum(1).mean()), rel=1e-12)
    assert manifest.variance == pytest.approx(float((x_ND - x_ND.mean(0)).square().sum(1).mean()), rel=1e-9)


def test_two_hooks_in_one_pass_are_the_same_as_alone(tmp_path):
    widths, cache = {"a": 8, "b": 5}, small_cache()
    source = FakeRows(widths)
    write_caches(source, cache, {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert [split for split, _ in source.started] == ["validation", "train"]
    for hook in widths:
        write_caches(FakeRows(widths), cache, {hook: tmp_path / "alone" / hook})
        assert contents(tmp_path / hook) == contents(tmp_path / "alone" / hook)


def test_hooks_at_different_progress_go_on_together(tmp_path, monkeypatch):
    widths, cache = {"a": 8, "b": 5}, small_cache()
    write_caches(FakeRows(widths), cache, {"a": tmp_path / "whole-a", "b": tmp_path / "whole-b"})
    store = PartWriter._store_block

    def stop_after(row):
        def stored_block(part):
            if part.split == "train" and part.state.rows >= row:
                raise KeyboardInterrupt
            store(part)

        return stored_block

    for hook, row in (("a", 300), ("b", 100)):
        monkeypatch.setattr(PartWriter, "_store_block", stop_after(row))
        with pytest.raises(KeyboardInterrupt):
            write_caches(FakeRows(widths), cache, {hook: tmp_path / hook})
    monkeypatch.undo()
    progress = [json.loads((tmp_path / hook / "progress.json").read_text())["train"]["rows"] for hook in widths]
    source = FakeRows(widths)
    write_caches(source, cache, {hook: tmp_path / hook for hook in widths})
    assert source.started == [("train", min(progress))]
    assert progress[0] != progress[1]
    for hook in widths:
        assert contents(tmp_path / hook) == contents(tmp_path / f"whole-{hook}")


def test_files_are_on_disk_before_they_have_their_name(make_cache, monkeypatch):
    events, replace = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(Path, "replace", lambda path, new: events.append((str(path), str(new))) or replace(path, new))
    folder = make_cache()
    renames = [event for event in events if isinstance(event, tuple)]
    for event in renames:
        at = events.index(event)
        assert (events[at - 1], events[at + 1]) == (event[0], str(folder))
    assert renames[-1][1] == str(folder / "manifest.json")


def test_a_finished_cache_is_left_alone(make_cache):
    folder = make_cache()
    before = contents(folder)
    source = FakeRows({"a": 8})
    assert make_cache(source) == folder
    assert source.started == []
    assert contents(folder) == before


def test_zero_tokens_takes_every_row(make_cache):
    folder = make_cache(FakeRows({"a": 8}, contexts=37), tokens=0, validation_tokens=1000)
    manifest = read_manifest(folder)
    assert (manifest.train.rows, manifest.validation.rows) == (185, 185)
    ids = [number for shard in stored(folder, "train") for number in identities(shard["x"])]
    assert sorted(ids) == list(range(185))


def test_no_validation_part(make_cache):
    folder = make_cache(validation_tokens=0)
    assert read_manifest(folder).validation.rows == 0
    assert verify(folder) == []


@pytest.mark.parametrize(("key", "given"), [("tokens", 501), ("validation_tokens", 777)])
def test_too_little_text_says_how_much_there_is(make_cache, key, given):
    with pytest.raises(UserError, match=rf"cache\.{key}={given}.* only 500 .* at most 500"):
        make_cache(**{key: given})


def test_no_rows_at_all(make_cache):
    with pytest.raises(UserError, match="no training rows"):
        make_cache(FakeRows({"a": 8}, contexts=0), tokens=0)


def test_values_that_the_dtype_cannot_hold(make_cache):
    with pytest.raises(UserError, match=r"float16.*hook a, train row \d+ \(context \d+, position \d\).*bfloat16"):
        make_cache(FakeRows({"a": 8}, largest=1e5), dtype="float16", validation_tokens=0)


def test_too_little_disk_is_said_before_anything_is_written(make_cache, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(UserError, match=r"2\d,\d{3} bytes needed, 5,000 free.*cache\.tokens"):
        make_cache()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_disk_that_fills_up_loses_nothing(make_cache, monkeypatch, tmp_path):
    write, calls = writer_module.PartWriter._store_block, []

    def full(part):
        calls.append(part)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part)

    monkeypatch.setattr(PartWriter, "_store_block", full)
    with pytest.raises(UserError, match="no space left"):
        make_cache()
    monkeypatch.undo()
    source = FakeRows({"a": 8})
    folder = make_cache(source)
    assert source.started[0][1] > 0
    assert verify(folder) == []
    ids = [number for shard in stored(folder, "train") for number in identities(shard["x"])]
    assert sorted(ids) == list(range(450))


def test_another_cache_in_the_folder_is_refused(tmp_path):
    write_caches(FakeRows({"a": 8}), small_cache(), {"a": tmp_path / "a"})
    with pytest.raises(UserError, match=r"a/manifest\.json: belongs to cache"):
        write_caches(FakeRows({"a": 8}), small_cache(seed=1), {"a": tmp_path / "a"})


def test_damaged_progress_names_the_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "progress.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match=r"progress\.json: damaged"):
        write_caches(FakeRows({"a": 8}), small_cache(), {"a": tmp_path / "a"})


def test_a_shard_lost_between_two_attempts_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module.CacheWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_caches(FakeRows({"a": 8}), small_cache(), {"a": tmp_path / "a"})
    monkeypatch.undo()
    (tmp_path / "a" / "train-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"train-00001\.safetensors: missing"):
        write_caches(FakeRows({"a": 8}), small_cache(), {"a": tmp_path / "a"})


def test_a_second_writer_waits_and_finds_it_finished(tmp_path, caplog):
    first, second = FakeRows({"a": 8}, pause=0.02), FakeRows({"a": 8})
    begun = threading.Event()

    def progress(done: int, wanted: int) -> None:
        assert 0 < done <= wanted == 510
        begun.set()

    thread = threading.Thread(target=write_caches, args=(first, small_cache(), {"a": tmp_path}, progress))
    thread.start()
    begun.wait(10)
    write_caches(second, small_cache(), {"a": tmp_path})
    thread.join()
    assert second.started == []
    assert "another process is writing" in caplog.text


@pytest.mark.parametrize("change", [{"tokens": 451}, {"validation_tokens": 61}, {"dtype": "float32"}, {"seed": 1}])
def test_fingerprint_follows_what_decides_the_bytes(change):
    assert cache_fingerprint("rows", small_cache(**change)) != cache_fingerprint("rows", small_cache())
    assert cache_fingerprint("rows", small_cache(mix_bytes=1, dir="x")) == cache_fingerprint("rows", small_cache())


def test_what_changes_while_it_is_cached_is_refused(tmp_path, make_cache, monkeypatch):
    source = FakeRows({"a": 8})
    prints = iter(["before"])
    monkeypatch.setattr(source, "fingerprint", lambda hook: next(prints, "after"))
    with pytest.raises(UserError, match=r"the model or the text changed while it was cached; delete "):
        write_caches(source, small_cache(), {"a": tmp_path / "a"})
    assert not (tmp_path / "a" / MANIFEST).exists()


@pytest.mark.parametrize("of", ["model", "text"])
@pytest.mark.parametrize("parts", [1, 2])
def test_another_commit_of_a_hub_s_model_or_text_does_not_go_on(tmp_path, monkeypatch, parts, of):
    source, cache, places = FakeRows({"a": 8}), small_cache(parts=parts), {"a": tmp_path / "a"}
    commit = {"commit": "old"}
    monkeypatch.setattr(source, "describe", lambda hook: {of: commit})
    if parts == 1:
        monkeypatch.setattr(PartWriter, "end", lambda part: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_caches(source, cache, places)
        monkeypatch.undo()
        monkeypatch.setattr(source, "describe", lambda hook: {of: commit})
    else:
        write_caches(source, cache, places)  # the first of two shares
    commit["commit"] = "new"
    with pytest.raises(UserError, match=rf"progress.*json: begun with commit old of the {of}, which is now new"):
        write_caches(source, cache, places, None, parts - 1)
    commit["commit"] = "old"
    write_caches(source, cache, places, None, parts - 1)
    assert verify(tmp_path / "a") == []
