"""Rows land where their places say, by kernels and by torch's operators; memory is used again when it is free."""

import gc

import pytest
import torch

from sae_cli.store import mixing
from sae_cli.store.mixing import Batches, Slots, inverse, piece_rows


@pytest.fixture(params=["compiled", "torch"])
def either(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(mixing, "library", lambda: None)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (5, torch.bfloat16), (1, torch.float16)])
@pytest.mark.parametrize("size", [1, 4, 40])
def test_scatter_equals_row_by_row(width, dtype, size):
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(17, width, generator=generator).to(dtype)
    places_N = torch.randperm(25, generator=generator)[:17] - 3
    expected, batches = ([torch.zeros(size, width, dtype=dtype) for _ in range(-(-25 // size))] for _ in range(2))
    for row, place in zip(x_ND, places_N.tolist(), strict=True):
        if place >= 0:
            expected[place // size][place % size] = row
    target = Batches(batches)
    target.scatter(x_ND[:9], places_N[:9])
    target.scatter(x_ND[9:], places_N[9:])
    assert all(torch.equal(one, other) for one, other in zip(batches, expected, strict=True))


def test_inverse_undoes_a_permutation():
    order_N = torch.randperm(50)
    assert torch.equal(order_N[inverse(order_N)], torch.arange(50))


def test_pieces_have_a_row_and_no_more_than_a_shard():
    assert piece_rows(100, 7, 250) == 2
    assert piece_rows(300, 7, 250) == 1
    assert piece_rows(10, 7, 250) == 7


def test_memory_is_used_again_once_nothing_refers_to_it():
    slots = Slots(4, 3, torch.bfloat16)
    batches = slots.take(3)
    assert [tuple(x_BD.shape) for x_BD in batches] == [(4, 3)] * 3
    assert len({x_BD.data_ptr() for x_BD in batches}) == slots.made == 3
    for number, x_BD in enumerate(batches):
        x_BD.fill_(number)
    row_D, addresses = batches[1][2], [x_BD.data_ptr() for x_BD in batches]
    del batches, x_BD
    gc.collect()
    again = slots.take(3)
    assert slots.made == 4  # a row of batch 1 is in use
    assert addresses[1] not in [x_BD.data_ptr() for x_BD in again]
    assert {addresses[0], addresses[2]} < {x_BD.data_ptr() for x_BD in again}
    for x_BD in again:
        x_BD.fill_(9)
    assert row_D.tolist() == [1.0] * 3
