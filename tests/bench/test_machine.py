"""Ceilings of a machine, cache reading and peaks of memory."""

import torch

from sae_cli.bench.machine import Peak, cache_rates, seconds_per_call


def test_calls_are_counted_after_the_first():
    calls = []
    assert len(seconds_per_call(lambda: calls.append(1), "cpu", 0, least=4)) == 4
    assert len(calls) == 5


def test_a_cache_is_written_and_read():
    found = cache_rates(8, 2048, seconds=0.01)
    assert 16 + 8 <= found["bytes_per_row"] < 2 * (16 + 8)
    assert found["read_bytes"] > 0
    assert found["write_bytes"] > 0


def test_a_peak_counts_what_was_freed_since_and_not_what_was_there_before():
    held = torch.ones(1 << 22)
    peak = Peak("cpu")
    torch.ones(1 << 24).sum()
    assert 60e6 < peak.read() < 90e6
    assert 0 <= Peak("cpu").read() < 16e6
    assert held.sum() == 1 << 22
