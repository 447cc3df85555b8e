"""Assignments of neighbours without repetition."""

from itertools import permutations

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.losses.assignment import exact, greedy
from tests.losses.cases import cosines, omega, random_rows, settings


def test_the_exact_assignment_has_the_largest_sum():
    U = normalize(random_rows(6, 4), dim=1)
    c = U @ U.T
    legal = [order for order in permutations(range(6)) if all(i != j for i, j in enumerate(order))]
    best = max(legal, key=lambda order: sum(c[i, j].item() for i, j in enumerate(order)))
    assert exact(U, 6, settings()).tolist() == list(best)
    value = omega(U, settings("unique_nearest"))
    torch.testing.assert_close(value, cosines(U)[range(6), best].square().mean())


@pytest.mark.parametrize("assign", [exact, greedy])
@pytest.mark.parametrize(("new", "frozen"), [(2, 0), (3, 0), (40, 0), (41, 0), (30, 1), (10, 30)])
def test_no_direction_is_used_twice_or_by_itself(assign, new, frozen):
    found = assign(normalize(random_rows(new + frozen, 5), dim=1), new, settings()).tolist()
    assert len(set(found)) == new
    assert all(i != j for i, j in enumerate(found))


def test_the_greedy_assignment_takes_pairs_in_descending_cosine():
    U = normalize(random_rows(30, 5), dim=1)
    c = cosines(U, signed=False)
    expected, rows, columns = {}, set(range(30)), set(range(30))
    for flat in (-c).flatten().argsort().tolist():
        i, j = divmod(flat, 30)
        if i in rows and j in columns and i != j:
            expected[i] = j
            rows.remove(i)
            columns.remove(j)
    found = greedy(U, 30, settings(signed=False)).tolist()
    assert sum(found[i] != j for i, j in expected.items()) <= 2  # the last row may have to swap


def test_the_last_row_left_with_itself_swaps():
    """0 and 1 are each other's nearest, so 2 has only itself: it takes 0's."""
    U = normalize(torch.tensor([[1.0, 0, 0], [1.0, 0.1, 0], [0, 0, 1.0]]), dim=1)
    assert greedy(U, 3, settings()).tolist() == [2, 0, 1]


def test_greedy_comes_close_to_the_best_sum():
    U = normalize(random_rows(60, 8), dim=1)
    c = U @ U.T
    sums = [c[torch.arange(60), assign(U, 60, settings())].sum() for assign in (greedy, exact)]
    assert 0.85 * sums[1] < sums[0] <= sums[1]
