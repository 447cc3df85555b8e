import pytest
import torch

from sae_cli.sources import packing
from sae_cli.sources.packing import pack

DOCUMENTS = ["abc", "de", "f", "ghij"]
BOS, END = 100, 99


def encode(texts):
    return [[ord(letter) - ord("a") for letter in text] for text in texts]


@pytest.mark.parametrize("per_call", [1, 2, 256])
def test_contexts_by_hand(monkeypatch, per_call):
    monkeypatch.setattr(packing, "DOCUMENTS_PER_CALL", per_call)
    batches = list(pack(DOCUMENTS, encode, 4, 2, BOS, END))
    # Stream: a b c | d e | f | g h i j |, where | is END; the last piece "| " is one token short of three and dropped.
    tokens = [[BOS, 0, 1, 2], [BOS, END, 3, 4], [BOS, END, 5, END], [BOS, 6, 7, 8]]
    owners = [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 2, 2], [3, 3, 3, 3]]
    assert torch.cat([batch.tokens_CT for batch in batches]).tolist() == tokens
    assert torch.cat([batch.document_CT for batch in batches]).tolist() == owners
    assert [len(batch.tokens_CT) for batch in batches] == [2, 2]
    assert batches[0].tokens_CT.dtype == batches[0].document_CT.dtype == torch.int64


def test_without_bos_and_separator():
    (batch,) = pack(DOCUMENTS, encode, 3, 8, None, None)
    assert batch.tokens_CT.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert batch.document_CT.tolist() == [[0, 0, 0], [1, 1, 2], [3, 3, 3]]


def test_last_batch_is_smaller_and_too_little_text_gives_nothing():
    assert [len(batch.tokens_CT) for batch in pack(DOCUMENTS, encode, 4, 3, BOS, END)] == [3, 1]
    assert list(pack(["ab"], encode, 8, 2, BOS, END)) == []
