"""Lists of nearest others that are renewed a few directions at a time, so that each use costs the same."""

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.sparse.pairs import NONE, Largest, dots, see

EVERY = 4
"""Uses of the penalty from one turn to the next: products of more rows at a time are faster."""
SORTED_WITHIN = 2
"""Turns within which each list is put in order anew."""


def turn(number: int, count: int, parts: int, rows: int) -> tuple[slice, slice]:
    """Return the slice of the part that is searched in a turn, and of its `rows` directions that are searched for.

    Parts are as `tensor_split` makes them of `count`. All directions come up in about count / rows turns.
    """
    size, larger = divmod(count, parts)
    blocks = -(-(size + (larger > 0)) // rows)
    part, block = divmod(number % (parts * blocks), blocks)
    start = part * size + min(part, larger)
    stop = start + size + (part < larger)
    first = min(start + block * rows, stop)
    return slice(start, stop), slice(first, min(first + rows, stop))


@torch.no_grad()
def roll(directions: Directions, settings: OrthogonalityConfig, order_M: Tensor | None = None, parts: int = 1) -> None:
    """Let the lists in `state` take their turn: `neighbours` (M, k), nearest first, and their `cosines`.

    It comes at every 4th use. 4 * search_rows directions are searched for among the others of their part, a slice of
    order_M (None: all directions, as they come); each of those, too, takes the nearest of the searched for in place of
    the last of its list. Half of the lists are put in order by cosines of today. Lists begin with others picked
    without a search. Cost per use search_rows * part * D + M k / 8 * D, memory tile^2 beside the lists.
    """
    state, low_MD = directions.state, directions.low_MD
    round_, between = divmod(directions.step // settings.every, EVERY)
    M = len(low_MD)
    every_M, count = torch.arange(M, device=low_MD.device), min(settings.neighbours, M - 1)
    if "cosines" not in state:
        state["neighbours"] = (every_M.unsqueeze(1) + every_M[1 : count + 1]) % M
        state["cosines"] = Largest.of_none(M, count, low_MD).values_NC
    elif between:
        return
    lists_MC, cosines_MC = state["neighbours"].clone(), state["cosines"].clone()

    def today(rows_N: Tensor, others_NC: Tensor) -> Tensor:
        c_NC = dots(low_MD, rows_N, others_NC)
        return c_NC if settings.signed else c_NC.abs()

    part, turn_T = turn(round_, M, parts, EVERY * settings.search_rows)
    members_S = slice(None) if order_M is None else order_M[part]
    ids_S = every_M[members_S]
    rows_T = (every_M if order_M is None else order_M)[turn_T]
    keys_SD, queries_TD = low_MD[members_S], low_MD[rows_T]
    last_S1 = cosines_MC[members_S, -1:]
    found = Largest.of_none(len(rows_T), count, low_MD)
    offered = Largest(last_S1.clone(), torch.empty_like(last_S1, dtype=torch.int64))  # only what is nearer
    at_once = max(settings.tile, settings.tile**2 // max(1, len(rows_T)))
    for start in range(0, len(ids_S), at_once):
        some = slice(start, start + at_once)
        see(queries_TD @ keys_SD[some].T, rows_T, ids_S[some], settings.signed, found, offered.part(some))

    offer_S, from_S = offered.values_NC.squeeze(1), offered.indices_NC.squeeze(1)
    known_SC = lists_MC[members_S]
    taken_S = (offer_S > last_S1.squeeze(1)) & ~(known_SC == from_S.unsqueeze(1)).any(1)
    lists_MC[members_S, -1] = torch.where(taken_S, from_S, known_SC[:, -1])
    cosines_MC[members_S, -1] = torch.where(taken_S, offer_S, last_S1.squeeze(1))

    listed_TC = lists_MC[rows_T]
    both_TX = torch.cat([listed_TC, found.indices_NC], 1)
    again_TX = (both_TX.unsqueeze(2) == both_TX.unsqueeze(1)).tril(-1).any(2)
    values_TX = torch.cat([today(rows_T, listed_TC), found.values_NC], 1).masked_fill(again_TX, NONE)
    cosines_MC[rows_T], best_TC = values_TX.topk(count, dim=1)
    lists_MC[rows_T] = both_TX.gather(1, best_TC)

    due = slice(round_ % SORTED_WITHIN, None, SORTED_WITHIN)
    cosines_MC[due], places_NC = today(every_M[due], lists_MC[due]).sort(dim=1, descending=True, stable=True)
    lists_MC[due] = lists_MC[due].gather(1, places_NC)
    state |= {"neighbours": lists_MC, "cosines": cosines_MC}
