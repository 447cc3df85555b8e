"""Rows in text order: every stored row once, whole contexts, whatever the blocks and batches."""

import pytest
import torch

from sae_cli.errors import UserError
from sae_cli.store.contexts import read_contexts, read_tokens
from sae_cli.store.format import read_manifest
from tests.store.fakes import FakeRows, identities

LENGTH = 5
"""Rows per context of FakeRows."""


@pytest.mark.parametrize("size", [1, 13, 40, 10_000])
@pytest.mark.parametrize("shuffle_bytes", [640, 2000, 10**6])
def test_every_row_comes_once_in_text_order(make_cache, size, shuffle_bytes):
    folder = make_cache(shuffle_bytes=shuffle_bytes)
    batches = list(read_contexts(folder, "train", size))
    assert [row for batch in batches for row in identities(batch.x_ND)] == list(range(450))
    context_N = torch.cat([batch.context_N for batch in batches])
    position_N = torch.cat([batch.position_N for batch in batches])
    assert torch.equal(context_N, torch.arange(450) // LENGTH)
    assert torch.equal(position_N, torch.arange(450) % LENGTH + 1)
    for batch in batches:
        assert len(batch.x_ND) <= max(size, LENGTH)
        assert batch.context_N.bincount()[batch.context_N[0] :].eq(LENGTH).all()


def test_a_part_that_ends_inside_a_context_is_read_to_its_end(make_cache):
    folder = make_cache(tokens=448, shuffle_bytes=640)
    rows = [row for batch in read_contexts(folder, "train", 50) for row in identities(batch.x_ND)]
    assert rows == list(range(448))


def test_a_source_of_unknown_length_is_read_too(make_cache):
    folder = make_cache(tokens=0, shuffle_bytes=640)
    rows = [row for batch in read_contexts(folder, "train", 50) for row in identities(batch.x_ND)]
    assert rows == list(range(500))


def test_the_text_of_contexts_is_that_of_the_source(make_cache):
    source = FakeRows({"a": 8})
    folder = make_cache(source, shuffle_bytes=640)
    expected = torch.cat([block.tokens_CT for block in source.rows("train", 0)]).tolist()
    assert len(read_manifest(folder).train.tokens) > 1
    found = read_tokens(folder, "train", [88, 3, 40, 3])
    assert found == {context: expected[context] for context in (3, 40, 88)}


def test_a_damaged_shard_is_named(make_cache):
    folder = make_cache()
    shard = sorted(folder.glob("train-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=shard.name):
        list(read_contexts(folder, "train", 50))
