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
    tokens_CT = document_CT = torch.empty(0, context, dtype=torch.int64)
    for more_CT, of_CT in _pieces(iter(documents), encode, context, bos_id, separator_id):
        tokens_CT, document_CT = torch.cat([tokens_CT, more_CT]), torch.cat([document_CT, of_CT])
        while len(tokens_CT) >= batch:
            yield ContextBatch(tokens_CT[:batch], document_CT[:batch])
            tokens_CT, document_CT = tokens_CT[batch:], document_CT[batch:]
    if len(tokens_CT):
        yield ContextBatch(tokens_CT, document_CT)


def _pieces(
    documents: Iterator[str],
    encode: Callable[[list[str]], list[list[int]]],
    context: int,
    bos_id: int | None,
    separator_id: int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield contexts (C, T) of tokens and of documents, as many as the documents read so far fill."""
    body = context - (bos_id is not None)
    end = [] if separator_id is None else [separator_id]
    tokens: list[int] = []
    owners: list[int] = []
    first = 0
    while texts := list(islice(documents, DOCUMENTS_PER_CALL)):
        for index, ids in enumerate(encode(texts), first):
            tokens += ids + end
            owners += [index] * (len(ids) + len(end))
        first += len(texts)
        full = len(tokens) // body * body
        tokens_CT = torch.tensor(tokens[:full], dtype=torch.int64).view(-1, body)
        document_CT = torch.tensor(owners[:full], dtype=torch.int64).view(-1, body)
        del tokens[:full], owners[:full]
        if bos_id is not None:
            tokens_CT = torch.cat([torch.full((len(tokens_CT), 1), bos_id), tokens_CT], dim=1)
            document_CT = torch.cat([document_CT[:, :1], document_CT], dim=1)
        yield tokens_CT, document_CT
