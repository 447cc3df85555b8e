"""The rolling search: whose turn it is, and what the lists come to hold."""

from math import ceil

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import neighbour_recall
from sae_cli.losses.rolling import EVERY, turn
from sae_cli.sparse import pairs
from tests.losses.cases import Watch, cosines, omega, penalty, random_rows, settings

KEYS = {"search_rows": 1, "neighbours": 3, "refresh": 10**6}


def after(W, keys, uses, state=None, start=0, **parts):
    """Return what is kept after some uses on directions that stay as they are."""
    state = {} if state is None else state
    for step in range(start, start + uses):
        penalty(Directions(W, step=step, state=state, **parts), keys)
    return state


@pytest.mark.parametrize(("count", "parts", "rows"), [(10, 1, 3), (11, 3, 2), (9, 4, 5), (5, 1, 9)])
def test_in_a_round_of_turns_each_direction_is_searched_for_once_in_its_part(count, parts, rows):
    every = torch.arange(count)
    of = {i: part.tolist() for part in every.tensor_split(parts) for i in part.tolist()}
    turns = parts * ceil(ceil(count / parts) / rows)
    seen = []
    for number in range(turns):
        part, some = turn(number, count, parts, rows)
        assert len(every[some]) <= rows
        for i in every[some].tolist():
            assert every[part].tolist() == of[i]
            seen.append(i)
    assert sorted(seen) == every.tolist()
    assert turn(turns, count, parts, rows) == turn(0, count, parts, rows)


@pytest.mark.parametrize("kind", ["cells", "neighbours"])
@pytest.mark.parametrize("signed", [True, False])
def test_lists_come_to_hold_the_nearest(kind, signed):
    W = random_rows(23)
    keys = settings(kind, chunk=23, signed=signed, **KEYS)
    state = after(W, keys, EVERY * (-(-23 // EVERY) + 2))
    expected = cosines(W, signed).topk(3, dim=1)
    assert torch.equal(state["neighbours"], expected.indices)
    torch.testing.assert_close(state["cosines"], expected.values)
    largest = expected.values.clamp(min=0).square()
    expected_omega = largest[:, 0].mean() if kind == "cells" else largest.mean()
    torch.testing.assert_close(omega(W, keys, state=state, step=1), expected_omega)
    assert neighbour_recall(Directions(W, state=state), keys)["neighbour_recall"] == 1


def test_compiled_kernels_find_the_same_lists_in_fp32(monkeypatch):
    monkeypatch.setattr(pairs, "COMPILED_FROM", 0)
    W = random_rows(150, 20)
    keys = settings("cells", chunk=150, tile=32, **KEYS | {"search_rows": 8})
    wide, narrow = (after(rows, keys, 40) for rows in (W, W.float()))
    assert torch.equal(wide["neighbours"], narrow["neighbours"])
    torch.testing.assert_close(wide["cosines"].float(), narrow["cosines"], rtol=0, atol=1e-6)


def test_a_direction_takes_a_new_nearest_when_that_has_its_turn():
    """A direction of the last turn comes up to direction 3, whose own is over; 3 holds it once it is searched for."""
    W, keys = random_rows(24), settings("cells", chunk=24, **KEYS)
    state = after(W, keys, 7 * EVERY)
    new = next(i for i in range(20, 24) if i not in state["neighbours"][3])
    W[new] = normalize(W[3] + 0.01 * W[new], dim=0)
    state = after(W, keys, 4 * EVERY, state, start=7 * EVERY)
    assert new not in state["neighbours"][3]
    state = after(W, keys, 2 * EVERY, state, start=11 * EVERY)
    assert state["neighbours"][3, 0] == new
    assert state["neighbours"][new, 0] == 3


def test_lists_hold_each_other_once_and_never_the_direction_itself():
    W, state = random_rows(40), {}
    for step in range(120):
        W = W + 0.2 * random_rows(40, seed=step)
        penalty(Directions(W, step=step, state=state), settings("cells", chunk=13, **KEYS | {"refresh": 50}))
        for i, others in enumerate(state["neighbours"].tolist()):
            assert len({i, *others}) == 4


def test_in_cells_a_refresh_finds_all_lists_and_turns_keep_to_the_cell():
    W = random_rows(30)
    keys = settings("cells", chunk=10, **KEYS | {"refresh": 8})
    state = after(W, keys, 1)
    assert torch.equal(state["neighbours"], cosines(W).topk(3, dim=1).indices)
    order = state["order"].clone()
    other = random_rows(30, seed=5)
    state = after(other, keys, 7, state, start=1)
    assert torch.equal(state["order"], order)
    part, some = turn(1, 30, 3, EVERY)  # that of use 4
    inside = order[part]
    c = torch.full((30, 30), -1.0, dtype=torch.float64).index_put(
        (inside.unsqueeze(1), inside), cosines(other)[inside][:, inside]
    )
    for i in order[some].tolist():
        assert c[i].argmax() in state["neighbours"][i]


def test_frozen_directions_and_penalised_rows():
    W, frozen, rows = random_rows(9), random_rows(4, seed=1), torch.tensor([1, 4, 8])
    keys = settings("cells", chunk=13, **KEYS)
    state = after(W, keys, 6 * EVERY, rows_N=rows, frozen_GD=frozen)
    expected = cosines(torch.cat([W, frozen]))[rows].amax(1).square().mean()
    torch.testing.assert_close(omega(W, keys, state=state, step=1, rows_N=rows, frozen_GD=frozen), expected)


@pytest.mark.parametrize("kind", ["cells", "neighbours"])
def test_what_other_settings_kept_is_no_obstacle(kind):
    """A state without lists, as one of older checkpoints, begins them."""
    W, keys = random_rows(20), settings(kind, chunk=20, **KEYS)
    older = {"order": torch.arange(20), "neighbours": torch.zeros(20, 1, dtype=torch.int64)}
    state = after(W, keys, EVERY * 7, older, start=3)
    assert torch.equal(state["neighbours"], cosines(W).topk(3, dim=1).indices)


@pytest.mark.parametrize("kind", ["cells", "neighbours"])
def test_memory_is_the_lists_and_a_tile(kind):
    F, D = 3000, 4
    keys = settings(kind, tile=16, chunk=F, **KEYS)
    with Watch() as watch:
        omega(random_rows(F, D).requires_grad_(), keys).backward()
    assert watch.largest <= 3 * F * D


def test_a_use_between_turns_changes_nothing():
    W, keys = random_rows(20), settings("cells", chunk=20, **KEYS)
    state = after(W, keys, 1)
    before = dict(state)
    after(W, keys, EVERY - 1, state, start=1)
    assert all(torch.equal(before[name], state[name]) for name in ("neighbours", "cosines"))
