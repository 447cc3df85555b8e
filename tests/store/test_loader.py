"""The stream of batches: every row once per epoch, the same from any start, within bounded memory."""

import math
import threading
from itertools import islice

import pytest
import torch

from sae_cli.errors import UserError
from sae_cli.store import loader, mixing
from sae_cli.store.loader import CacheReader
from sae_cli.store.mixing import Slots
from tests.store.fakes import FakeRows, identities, in_process, small_cache

MIX = 2500
"""Bytes for mixing: of 7200 bytes in shards of at most 600, groups of two."""
ORDER = [251, 296, 267, 265, 303, 238, 255, 258, 308, 297]
ORDER_IN_ONE = [293, 140, 112, 307, 376, 426, 262, 66, 208, 39]
"""The seventh batch of ten rows, with groups and without."""


def numbers(reader: CacheReader, start: int, size: int, batches: int) -> list[int]:
    """Return the identities of the rows in some batches, one after another."""
    return [number for x_BD in islice(reader.batches(start, size), batches) for number in identities(x_BD)]


@pytest.mark.parametrize("mix", [MIX, 100_000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_each_epoch_gives_every_row_once(make_cache, mix, dtype):
    reader = CacheReader(make_cache(dtype=dtype), mix * 2 if dtype == "float32" else mix, 0)
    stream = numbers(reader, 0, 50, 27)
    epochs = [stream[450 * epoch : 450 * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(450))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("mix", [MIX, 100_000])
@pytest.mark.parametrize("size", [7, 64, 1000])
def test_any_start_continues_the_same_stream(make_cache, mix, size):
    folder = make_cache()
    whole = list(islice(CacheReader(folder, mix, 3).batches(0, size), 12))
    for start in (0, 1, 5, 11):
        rest = list(islice(CacheReader(folder, mix, 3).batches(start, size), 12 - start))
        assert all(torch.equal(one, other) for one, other in zip(whole[start:], rest, strict=True))
    assert all(batch.shape == (size, 8) for batch in whole)


def test_a_late_start_reads_only_the_groups_from_there_on(make_cache, monkeypatch):
    reader, read = CacheReader(make_cache(), MIX, 0), []
    order = CacheReader._order
    monkeypatch.setattr(CacheReader, "_order", lambda self, group: read.append(group) or order(self, group))
    # Row 450 * 7 + 440 lies in the last group of epoch 7.
    next(stream := reader.batches(359, 10))
    stream.close()
    assert 1 <= len(read) <= 2
    assert (read[0].epoch, read[0].number) == (7, reader._groups - 1)


def test_rows_have_their_values_and_batches_their_own_memory(make_cache):
    source = FakeRows({"a": 8})
    reader = CacheReader(make_cache(source), MIX, 0)
    batches = list(islice(reader.batches(0, 32), 40))
    for x_BD in batches:
        assert torch.equal(x_BD, source.values("train", "a", torch.tensor(identities(x_BD))).bfloat16())
    assert len({x_BD.data_ptr() for x_BD in batches}) == 40


def test_order_follows_seed_and_mix_bytes(make_cache):
    folder = make_cache()
    orders = [tuple(numbers(CacheReader(folder, mix, seed), 0, 50, 9)) for mix, seed in ((MIX, 0), (MIX, 1), (5000, 0))]
    assert len(set(orders)) == 3
    assert orders[0] == tuple(numbers(CacheReader(folder, MIX, 0), 0, 50, 9))


def test_groups_mix_shards_from_all_over_the_cache(make_cache):
    first = numbers(CacheReader(make_cache(), MIX, 1), 0, 70, 1)
    assert max(first) - min(first) > 113


def test_two_streams_of_one_reader_do_not_disturb_each_other(make_cache):
    for mix in (MIX, 100_000):
        reader = CacheReader(make_cache(), mix, 0)
        alone = numbers(reader, 0, 50, 18)
        one, other = reader.batches(0, 50), reader.batches(0, 50)
        pairs = [(identities(next(one)), identities(next(other))) for _ in range(18)]
        assert [number for pair in pairs for number in pair[0]] == alone
        assert all(first == second for first, second in pairs)


def test_validation_gives_every_row_once_in_a_fixed_order(make_cache):
    reader = CacheReader(make_cache(), MIX, 0)
    batches = list(reader.validation(25))
    ids = [number for x_BD in batches for number in identities(x_BD)]
    assert sorted(ids) == [1_000_000 + row for row in range(60)]
    assert all(len(x_BD) <= 25 for x_BD in batches)
    again = [number for x_BD in CacheReader(reader.folder, 100_000, 9).validation(7) for number in identities(x_BD)]
    assert again == ids


def test_what_the_trainer_needs_to_know(make_cache):
    reader = CacheReader(make_cache(FakeRows({"a": 8}), dtype="float32"), MIX, 0)
    x_ND = torch.cat(list(islice(reader.batches(0, 450), 1)))
    assert reader.d_model == 8
    assert reader.rows == 450
    assert reader.true_GD is None
    assert reader.fingerprint == reader.folder.name.rsplit("-", 1)[-1]
    assert (x_ND * reader.scale).square().sum(1).mean().item() == pytest.approx(8, rel=1e-5)
    torch.testing.assert_close(reader.mean_D, x_ND.mean(0))
    assert reader.variance == pytest.approx((x_ND - x_ND.mean(0)).square().sum(1).mean().item(), rel=1e-4)
    assert math.isfinite(reader.scale)


def test_too_little_memory_for_two_shards(make_cache):
    with pytest.raises(UserError, match=r"cache\.mix_bytes=900: two shards take 928;"):
        CacheReader(make_cache(), 900, 0)


def test_a_failure_of_the_reading_thread_reaches_the_caller(make_cache):
    reader = CacheReader(make_cache(), MIX, 0)
    stream = reader.batches(0, 50)
    next(stream)
    for shard in reader.manifest.train.shards:
        (reader.folder / shard.name).write_bytes(b"")
    with pytest.raises(UserError, match=r"train-\d+\.safetensors: (0 bytes|damaged|ends early).*see `sae cache verify"):
        list(islice(stream, 50))


def test_closing_a_stream_ends_its_thread(make_cache):
    stream = CacheReader(make_cache(), MIX, 0).batches(0, 50)
    next(stream)
    assert any(thread.name.startswith("sae-loader") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("sae-loader") for thread in threading.enumerate())


def test_a_cache_of_zeros_is_refused(tmp_path, make_cache, monkeypatch):
    monkeypatch.setattr(FakeRows, "values", lambda self, split, hook, row_N: torch.zeros(len(row_N), 8))
    with pytest.raises(UserError, match="no training rows, or all are the same"):
        CacheReader(make_cache(), MIX, 0)


def test_peak_memory_stays_within_mix_bytes_for_a_cache_four_times_larger(tmp_path):
    in_process("tests.store.memory", "write", str(tmp_path))
    # 16 MiB to mix, and a few batches of half a MiB; the cache takes 64 MiB.
    assert 8 < float(in_process("tests.store.memory", "read", str(tmp_path))) < 16 + 4


@pytest.mark.parametrize("tokens", [450, 1800])
def test_batches_take_mix_bytes_whatever_the_size_of_the_cache(make_cache, monkeypatch, tokens):
    made = []
    monkeypatch.setattr(loader, "Slots", lambda *shape: made.append(Slots(*shape)) or made[0])
    reader = CacheReader(make_cache(FakeRows({"a": 8}, contexts=400), tokens=tokens), MIX, 0)
    for x_BD in islice(reader.batches(0, 10), 3 * tokens // 10):
        assert len(x_BD) == 10
    # Besides: a batch that two groups share, and the one that this loop holds.
    assert made[0].made * 160 <= MIX + 3 * 160


@pytest.mark.parametrize("mix", [MIX, 100_000])
def test_without_a_compiler_the_batches_are_the_same(make_cache, monkeypatch, mix):
    folder = make_cache()
    expected = list(islice(CacheReader(folder, mix, 3).batches(5, 64), 12))
    monkeypatch.setattr(mixing, "library", lambda: None)
    found = islice(CacheReader(folder, mix, 3).batches(5, 64), 12)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_the_order_of_rows_does_not_change(make_cache):
    """A run that is resumed by a later version must see the same rows."""
    assert numbers(CacheReader(make_cache(), MIX, 0), 7, 10, 1) == ORDER
    assert numbers(CacheReader(make_cache(), 100_000, 0), 7, 10, 1) == ORDER_IN_ONE


def test_settings_have_groups_of_several_shards():
    cache = small_cache()
    assert cache.tokens * 16 > 2 * MIX
    assert MIX // 2 // cache.shard_bytes >= 2
