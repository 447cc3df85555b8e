"""Nearest neighbours inside random parts and inside cells."""

import random
from itertools import combinations

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import neighbour_recall
from sae_cli.losses.partition import packed, pieces, rooted_trees
from tests.losses.cases import cosines, omega, penalty, random_rows, settings


def inside(W, order, sizes, rows):
    """The naive mean over rows of the largest squared cosine inside their part."""
    values = []
    for part in order.split(sizes):
        c = cosines(W[part]).amax(1)
        values += [c[k] ** 2 for k, i in enumerate(part.tolist()) if i in rows]
    return torch.stack(values).mean()


def test_chunked_is_nearest_inside_the_drawn_parts():
    W = random_rows(14)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(3))
    expected = inside(W, order, [4, 4, 3, 3], range(14))
    torch.testing.assert_close(omega(W, settings("chunked"), seed=3), expected)
    assert not torch.equal(omega(W, settings("chunked"), seed=4), expected)


def test_chunked_with_rows_and_frozen():
    W, frozen, rows = random_rows(10), random_rows(5, seed=1), [0, 3, 4]
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    expected = inside(torch.cat([W, frozen]), order, [4, 4, 4, 3], rows)
    found = omega(W, settings("chunked"), seed=3, rows_N=torch.tensor(rows), frozen_GD=frozen)
    torch.testing.assert_close(found, expected)
    everyone = inside(torch.cat([W, frozen]), order, [4, 4, 4, 3], range(10))
    torch.testing.assert_close(omega(W, settings("chunked"), seed=3, frozen_GD=frozen), everyone)


@pytest.mark.parametrize("kind", ["chunked", "cells"])
def test_one_part_is_nearest(kind):
    W = random_rows(13)
    torch.testing.assert_close(omega(W, settings(kind, chunk=13)), omega(W, settings("nearest")))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("kind", ["chunked", "cells"])
def test_no_part_is_of_one(kind, count):
    W = random_rows(count)
    assert omega(W.abs(), settings(kind, chunk=2)).item() > 0


def test_cells_keep_clusters_together():
    """Six clusters of five directions in parts of ten: every nearest neighbour is seen; random parts miss most."""
    centres = torch.eye(8, dtype=torch.float64)[:6].repeat_interleave(5, 0)
    W = (centres + 0.1 * random_rows(30, 8))[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    keys = settings("cells", chunk=10, refresh=5)
    directions = Directions(W)
    torch.testing.assert_close(penalty(directions, keys), omega(W, settings("nearest")))
    assert neighbour_recall(directions, keys) == {"neighbour_recall": 1, "neighbour_gap": 0}
    assert neighbour_recall(Directions(W), settings("chunked", chunk=10))["neighbour_recall"] < 0.8
    order = directions.state["order"]
    assert sorted(order.tolist()) == list(range(30))
    other = random_rows(30, 8, 7)
    later = Directions(other, step=4, state=directions.state)
    torch.testing.assert_close(penalty(later, keys), inside(other, order, [10, 10, 10], range(30)))
    assert torch.equal(directions.state["order"], order)
    penalty(Directions(other, step=5, state=directions.state), keys)
    assert not torch.equal(directions.state["order"], order)


def test_cells_with_frozen():
    W, frozen = random_rows(9), random_rows(6, seed=1)
    directions = Directions(W, frozen_GD=frozen, rows_N=torch.tensor([1, 2, 8]))
    value = penalty(directions, settings("cells"))
    expected = inside(torch.cat([W, frozen]), directions.state["order"], [4, 4, 4, 3], [1, 2, 8])
    torch.testing.assert_close(value, expected)


def random_tree(count, seed):
    chance = random.Random(seed)
    parent = [None] + [chance.randrange(i) for i in range(1, count)]
    return list(range(count)), parent


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("largest", [2, 3, 4])
def test_trees_are_cut_by_the_fewest_links(seed, largest):
    tree, parent = random_tree(9, seed)

    def largest_piece(cut):
        home, sizes = {}, {}
        for i in tree:
            home[i] = i if i in cut or parent[i] is None else home[parent[i]]
            sizes[home[i]] = sizes.get(home[i], 0) + 1
        return max(sizes.values())

    fewest = next(n for n in range(9) if any(largest_piece(cut) <= largest for cut in combinations(range(1, 9), n)))
    found = pieces(tree, list(parent), largest)
    assert sorted(index for piece in found for index in piece) == tree
    assert max(map(len, found)) <= largest
    assert len(found) == fewest + 1


def test_parts_have_the_sizes_asked_for_and_cut_few_links():
    U = normalize(random_rows(200, 6), dim=1)
    nearest = cosines(U).argmax(1).tolist()
    order = packed(nearest, [34, 34, 33, 33, 33, 33])
    assert sorted(order) == list(range(200))
    part = {
        index: place for place, slice_ in enumerate(torch.tensor(order).tensor_split(6)) for index in slice_.tolist()
    }
    assert sum(part[i] != part[j] for i, j in enumerate(nearest)) <= 10


def test_trees_come_with_parents_first():
    nearest, parent = [1, 0, 0, 4, 3, 2], [None] * 6
    trees = rooted_trees(nearest, parent)
    assert [sorted(tree) for tree in trees] == [[0, 1, 2, 5], [3, 4]]
    assert parent == [None, 0, 0, None, 3, 2]
