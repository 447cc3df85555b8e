"""Lists of nearest others that are renewed a few directions at a time, so that each use costs the same."""

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.sparse.pairs import NONE, Largest, dots, see

SORTED_WITHIN = 8
"""Uses of the penalty within which each list is put in order anew."""


def turn(use: int, count: int, parts: int, rows: int) -> tuple[slice, slice]:
    """Return the slice of the part that is searched at a use, and of its `rows` directions that are searched for.

    Parts are as `tensor_split` makes them of `count`. All directions have had their turn after about count / rows uses.
    """
    size, larger = divmod(count, parts)
    blocks = -(-(size + (larger > 0)) // rows)
    part, block = divmod(use % (parts * blocks), blocks)
    start = part * size + min(part, larger)
    stop = start + size + (part < larger)
    first = min(start + block * rows, stop)
    return slice(start, stop), slice(first, min(first + rows, stop))


@torch.no_grad()
def roll(directions: Directions, settings: OrthogonalityConfig, order_M: Tensor | None = None, parts: int = 1) -> None:
    """Let the lists in `state` take their turn: `neighbours` (M, k), nearest first, and their `cosines`.

    `search_rows` directions are searched for among the others of their part, a slice of order_M (None: all directions,
    as they come); each of those, too, takes the nearest of the searched for in place of the last of its list. A k-th
    of 8 of the lists is put in order by cosines of today. Lists begin with others picked without a search. Cost
    search_rows * part * D + M k / 8 * D, memory tile^2 beside the lists.
    """
    state, low_MD, use = directions.state, directions.low_MD, directions.step // settings.every
    M = len(low_MD)
    every_M, count = torch.arange(M, device=low_MD.device), min(settings.neighbours, M - 1)
    if "cosines" not in state:
        state["neighbours"] = (every_M.unsqueeze(1) + every_M[1 : count + 1]) % M
        state["cosines"] = Largest.of_none(M, count, low_MD).values_NC
    lists_MC, cosines_MC = state["neighbours"].clone(), state["cosines"].clone()

    def today(rows_N: Tensor, others_NC: Tensor) -> Tensor:
        c_NC = dots(low_MD, rows_N, others_NC)
        return c_NC if settings.signed else c_NC.abs()

    part, turn_T = turn(use, M, parts, settings.search_rows)
    members_S, rows_T = ((every_M if order_M is None else order_M)[places] for places in (part, turn_T))
    keys_SD = low_MD[part] if order_M is None else low_MD.index_select(0, members_S)
    queries_TD = low_MD.index_select(0, rows_T)
    found, offered = (Largest.of_none(n, c, low_MD) for n, c in ((len(rows_T), count), (len(members_S), 1)))
    at_once = max(settings.tile, settings.tile**2 // settings.search_rows)
    for start in range(0, len(members_S), at_once):
        some = slice(start, start + at_once)
        see(queries_TD @ keys_SD[some].T, rows_T, members_S[some], settings.signed, found, offered.part(some))

    listed_TC = lists_MC[rows_T]
    both_TX = torch.cat([listed_TC, found.indices_NC], 1)
    again_TX = (both_TX.unsqueeze(2) == both_TX.unsqueeze(1)).tril(-1).any(2)
    values_TX = torch.cat([today(rows_T, listed_TC), found.values_NC], 1).masked_fill(again_TX, NONE)
    cosines_MC[rows_T], best_TC = values_TX.topk(count, dim=1)
    lists_MC[rows_T] = both_TX.gather(1, best_TC)

    offer_S, from_S = offered.values_NC.squeeze(1), offered.indices_NC.squeeze(1)
    last_S, known_S = cosines_MC[members_S, -1], (lists_MC[members_S] == from_S.unsqueeze(1)).any(1)
    taken_S = (offer_S > last_S) & ~known_S
    lists_MC[members_S, -1] = torch.where(taken_S, from_S, lists_MC[members_S, -1])
    cosines_MC[members_S, -1] = torch.where(taken_S, offer_S, last_S)

    due = slice(use % SORTED_WITHIN, None, SORTED_WITHIN)
    cosines_MC[due], places_NC = today(every_M[due], lists_MC[due]).sort(dim=1, descending=True, stable=True)
    lists_MC[due] = lists_MC[due].gather(1, places_NC)
    state |= {"neighbours": lists_MC, "cosines": cosines_MC}
