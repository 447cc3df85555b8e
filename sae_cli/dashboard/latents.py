"""Which latents a feature page shows."""

import re

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.dictionary.artifact import SAE
from sae_cli.errors import UserError
from sae_cli.losses.search import search
from sae_cli.sources import ActivationSource

ORDERS = ("density", "max", "nearest")
"""Numbers by which `--top` chooses, the largest first."""
ROWS = 16_384
"""Validation rows on which densities and maxima are ranked."""
BATCH = 2048


def parse_latents(words: str, count: int) -> list[int]:
    """Return the latents that `0-99,205` names, in that order and each once; `all`: every one of the `count`.

    A range ends at the last latent. Raises UserError if a word is no number or range, or begins beyond the last latent.
    """
    if words == "all":
        return list(range(count))
    found: dict[int, None] = {}
    for word in words.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", word)
        if not match:
            raise UserError(f"--latents {words}: {word!r} is no latent or range; give some such as 0-99,205, or all")
        first, last = int(match[1]), int(match[2] or match[1])
        if first >= count or last < first:
            raise UserError(f"--latents {words}: {word.strip()} lies outside 0-{count - 1}, the latents of this SAE")
        found |= dict.fromkeys(range(first, min(last + 1, count)))
    return list(found)


@torch.no_grad()
def top_latents(sae: SAE, source: ActivationSource, by: str, count: int, device: str) -> list[int]:
    """Return the `count` latents with the largest density, max activation or nearest cosine, the largest first.

    Density and maximum are those of the first ROWS validation rows; of equal ones the first latent comes first.
    """
    if by == "nearest":
        values_F = nearest(sae.W_dec_FD, torch.arange(len(sae.W_dec_FD), device=device), 1)[0][:, 0]
    else:
        values_F, rows = torch.zeros(len(sae.W_dec_FD), device=device), 0
        for x_BD in source.validation(BATCH):
            acts_BF = sae.encode(x_BD.to(device).float()).abs()
            values_F = values_F + (acts_BF != 0).sum(0) if by == "density" else values_F.maximum(acts_BF.amax(0))
            rows += len(x_BD)
            if rows >= ROWS:
                break
    return values_F.argsort(descending=True, stable=True)[:count].tolist()


def nearest(W_FD: Tensor, ids_L: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return cosines and ids (L, K) of the directions nearest to those of ids_L, nearest first; K <= F - 1."""
    return search(normalize(W_FD.float(), dim=1), ids_L, count, OrthogonalityConfig(kind="nearest"))
