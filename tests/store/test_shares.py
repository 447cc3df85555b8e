"""A cache that several workers write: the same bytes whoever writes what when, and a normal cache to its readers."""

import threading
from pathlib import Path

import pytest
import torch

from sae_cli.errors import UserError
from sae_cli.store.contexts import read_contexts, read_tokens
from sae_cli.store.find import cache_fingerprint, finished, plan_bytes, verify
from sae_cli.store.format import read_manifest
from sae_cli.store.loader import CacheReader
from sae_cli.store.order import block_sizes, share_rows
from sae_cli.store.part import PartWriter
from sae_cli.store.writer import complete, read_progress, write_caches
from tests.store.fakes import FakeRows, identities, small_cache

SOURCE = FakeRows({"a": 8})


def folder_of(root: Path, parts: int, **changes) -> Path:
    return root / f"fake-a-{cache_fingerprint(SOURCE.fingerprint('a'), small_cache(parts=parts, **changes))}"


def write(root: Path, parts: int, shares, **changes) -> Path:
    """Write some shares with a source each, as workers have."""
    folder = folder_of(root, parts, **changes)
    for share in shares:
        write_caches(FakeRows({"a": 8}), small_cache(parts=parts, **changes), {"a": folder}, share=share)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shares_cover_the_rows_in_even_pieces():
    cache = small_cache(parts=4)
    assert [share_rows(share, 10, cache) for share in range(4)] == [(0, 2), (2, 3), (5, 2), (7, 3)]
    # 16 bytes a row, 125 rows a block: no block crosses a share's end.
    assert list(block_sizes(450, 8, small_cache(parts=3), 450)) == [75, 75] * 3
    assert list(block_sizes(450, 8, small_cache(), 450)) == [113, 113, 112, 112]
    assert list(block_sizes(0, 8, small_cache(tokens=0), 300)) == [125, 125, 50]
    assert list(block_sizes(2, 8, cache, 2)) == [1, 1]


def test_one_part_is_the_cache_of_before():
    assert cache_fingerprint("rows", small_cache(parts=1)) == "7f734d6c50f9"
    assert cache_fingerprint("rows", small_cache(parts=2)) != cache_fingerprint("rows", small_cache(parts=3))


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_merged_cache_holds_every_row_and_its_text(tmp_path, parts):
    folder = write(tmp_path, parts, range(parts))
    assert verify(folder) == []
    for split, count, offset in (("train", 450, 0), ("validation", 60, 1_000_000)):
        rows = [row for batch in read_contexts(folder, split, 40) for row in identities(batch.x_ND)]
        assert rows == list(range(offset, offset + count))
        for batch in read_contexts(folder, split, 40):
            assert torch.equal(batch.context_N, (torch.tensor(identities(batch.x_ND)) - offset) // 5)
        expected = torch.cat([block.tokens_CT for block in SOURCE.rows(split, 0)]).tolist()
        assert read_tokens(folder, split, range(count // 5)) == dict(enumerate(expected[: count // 5]))
    manifest = read_manifest(folder)
    stored = sum(file.bytes for part in (manifest.train, manifest.validation) for file in part.files())
    assert stored == plan_bytes(8, small_cache(parts=parts), 6, 5)


def test_shares_that_cut_a_context_store_its_text_once(tmp_path):
    folder = write(tmp_path, 7, reversed(range(7)), tokens=448)
    assert sum(file.rows for file in read_manifest(folder).train.tokens) == 90
    rows = [row for batch in read_contexts(folder, "train", 40) for row in identities(batch.x_ND)]
    assert rows == list(range(448))
    for batch in read_contexts(folder, "train", 40):
        assert batch.context_N.bincount()[batch.context_N[0] : 89].eq(5).all()


def test_statistics_are_those_of_one_part(tmp_path):
    one, many = (read_manifest(write(tmp_path, parts, range(parts))) for parts in (1, 3))
    assert many.mean == pytest.approx(one.mean, rel=1e-12)
    assert many.mean_squared_norm == pytest.approx(one.mean_squared_norm, rel=1e-12)
    assert many.variance == pytest.approx(one.variance, rel=1e-9)
    assert (many.settings, one.settings.get("parts")) == (one.settings | {"parts": 3}, None)


def test_training_reads_every_row_once_per_epoch(tmp_path):
    folder = write(tmp_path, 3, range(3))
    for mix_bytes in (10**6, 3000):
        batches = CacheReader(folder, mix_bytes, 0).batches(0, 50)
        rows = [row for _ in range(9) for row in identities(next(batches))]
        assert sorted(rows) == list(range(450))


def test_order_and_company_of_the_workers_change_no_byte(tmp_path):
    expected = content(write(tmp_path / "in order", 3, range(3)))
    assert content(write(tmp_path / "reversed", 3, [2, 1, 0, 2])) == expected
    place = tmp_path / "at once"
    threads = [threading.Thread(target=write, args=(place, 3, [share])) for share in (0, 1, 2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert content(folder_of(place, 3)) == expected
    assert not [name for name in expected if name.startswith((".lock-", "progress"))]


def test_a_worker_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    expected = content(write(tmp_path / "whole", 3, range(3)))
    store, place = PartWriter._store_block, tmp_path / "broken"

    def fail_later(part):
        if part.split == "train" and part.state.blocks:
            raise RuntimeError("the worker of part 1 dies")
        store(part)

    for share in (0, 1, 2):
        with monkeypatch.context() as patch:
            if share == 1:
                patch.setattr(PartWriter, "_store_block", fail_later)
                with pytest.raises(RuntimeError, match="dies"):
                    write(place, 3, [share])
            else:
                write(place, 3, [share])
    folder = folder_of(place, 3)
    assert not finished(folder)
    states = [read_progress(folder, share, small_cache(parts=3), folder.name[-12:]) for share in range(3)]
    assert [complete(state) for state in states] == [True, False, True]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("train-000[02]-*")}
    source = FakeRows({"a": 8})
    write_caches(source, small_cache(parts=3), {"a": folder}, share=1)
    assert source.started == [("train", 150 + 75)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert content(folder) == expected


def test_a_lost_file_of_another_share_is_noticed_before_the_merge(tmp_path):
    folder = write(tmp_path, 2, [0])
    (folder / "train-0000-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"train-0000-00001\.safetensors: missing"):
        write(tmp_path, 2, [1])


def test_too_little_text_is_said_by_the_share_that_lacks_it(tmp_path):
    write(tmp_path, 2, [0], tokens=900)
    with pytest.raises(UserError, match=r"cache\.tokens=900: the source has only 500 train rows"):
        write(tmp_path, 2, [1], tokens=900)


def test_what_a_killed_worker_left_is_removed_by_its_successor_only(tmp_path):
    folder = folder_of(tmp_path, 2)
    folder.mkdir()
    mine, other = folder / ".train-0001-00000.safetensors.9.tmp", folder / ".train-0000-00000.safetensors.9.tmp"
    for path in (mine, other, folder / ".progress-0001.json.9.tmp"):
        path.touch()
    write(tmp_path, 2, [1])
    assert list(folder.glob(".*.tmp")) == [other]
    write(tmp_path, 2, [0])
    assert list(folder.glob(".*.tmp")) == []
