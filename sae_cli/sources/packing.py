"""Documents to contexts: concatenated, separated, cut into equal pieces, without padding."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

DOCUMENTS_PER_CALL = 256
"""Documents given to the tokenizer at a time."""


@dataclass
class ContextBatch:
    """Contexts of equal length, without padding."""

    tokens_CT: Tensor
    """int64 token ids."""
    document_CT: Tensor
    """int64 index in the stream of each token's document; BOS belongs to the document of the next token."""


def pack(
    documents: Iterable[str],
    encode: Callable[[list[str]], list[list[int]]],
    context: int,
    batch: int,
    bos_id: int | None,
    separator_id: int | None,
) -> Iterator[ContextBatch]:
    """Yield `batch` contexts at a time; the last batch may be smaller.

    Each document is followed by the separator. The stream of tokens is cut into pieces of `context` tokens, or of one
    less behind a BOS if there is one; an incomplete last piece is dropped.
    """
    body = context - (bos_id is not None)
    size = batch * body
    end = [] if separator_id is None else [separator_id]
    tokens: list[int] = []
    owners: list[int] = []
    stream, first = iter(documents), 0
    while texts := list(islice(stream, DOCUMENTS_PER_CALL)):
        for index, ids in enumerate(encode(texts), first):
            tokens += ids + end
            owners += [index] * (len(ids) + len(end))
        first += len(texts)
        full = len(tokens) // size * size
        for at in range(0, full, size):
            yield _contexts(tokens[at : at + size], owners[at : at + size], body, bos_id)
        del tokens[:full], owners[:full]
    if rest := len(tokens) // body * body:
        yield _contexts(tokens[:rest], owners[:rest], body, bos_id)


def _contexts(tokens: list[int], owners: list[int], body: int, bos_id: int | None) -> ContextBatch:
    """Cut tokens and their documents into contexts (C, T)."""
    tokens_CT, document_CT = (torch.tensor(ids, dtype=torch.int64).view(-1, body) for ids in (tokens, owners))
    if bos_id is not None:
        tokens_CT = torch.cat([torch.full((len(tokens_CT), 1), bos_id), tokens_CT], dim=1)
        document_CT = torch.cat([document_CT[:, :1], document_CT], dim=1)
    return ContextBatch(tokens_CT, document_CT)
