"""What holds for every orthogonality penalty: gradients, rows, frozen neighbours, memory, recall."""

import pytest
import torch

from sae_cli.config.combinations import WITHOUT_PHI
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import APPROXIMATE, ORTHOGONALITY, neighbour_recall
from sae_cli.losses.phi import PHI
from tests.losses.cases import Watch, cosines, omega, penalty, random_rows, settings, state_after_one_call

KINDS = sorted(ORTHOGONALITY.keys() - {"none"})
OF_PAIRS = [kind for kind in KINDS if kind not in WITHOUT_PHI]
WITH_ROWS = [*OF_PAIRS, "decomposable"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_pass_gradcheck(kind, signed):
    """Through the chosen pairs, with rows and frozen neighbours where the kind has them, and kept state fixed."""
    W, frozen = random_rows(7, 4).requires_grad_(), random_rows(3, 4, 5)
    rows = torch.tensor([0, 2, 5]) if kind in WITH_ROWS else None
    keys = settings(kind, signed=signed, tile=3, phi="exponential")
    state = state_after_one_call(W.detach(), keys, frozen_GD=frozen)
    parts = {"rows_N": rows, "frozen_GD": frozen, "state": state, "step": 1, "seed": 3}
    assert torch.autograd.gradcheck(lambda w: omega(w, keys, **parts), (W,))


@pytest.mark.parametrize("kind", ["nearest", "all_pairs"])
@pytest.mark.parametrize("phi", PHI)
def test_every_phi_passes_gradcheck(kind, phi):
    W = random_rows(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: omega(w, settings(kind, phi=phi, cap=0.6)), (W,))


@pytest.mark.parametrize("kind", OF_PAIRS)
@pytest.mark.parametrize("phi", sorted(PHI.keys() - {"logistic"}))
def test_orthonormal_rows_cost_nothing(kind, phi):
    W = torch.linalg.qr(random_rows(8, 8)).Q
    assert omega(W, settings(kind, phi=phi)).item() == pytest.approx(0, abs=1e-12)


def test_an_orthonormal_basis_is_optimal_for_gram_and_so_is_its_double():
    basis = torch.linalg.qr(random_rows(8, 8)).Q
    assert omega(basis, settings("gram")).item() == pytest.approx(0, abs=1e-12)
    twice = torch.cat([basis, basis]).requires_grad_()
    omega(twice, settings("gram")).backward()
    assert twice.grad.abs().max() < 1e-12
    assert omega(twice, settings("gram")) < omega(random_rows(16, 8), settings("gram"))


@pytest.mark.parametrize("kind", WITH_ROWS)
def test_without_penalised_rows_there_is_no_penalty(kind):
    W = random_rows(9).requires_grad_()
    value = omega(W, settings(kind), rows_N=torch.empty(0, dtype=torch.int64))
    assert value.item() == 0
    (W.sum() + value).backward()
    assert torch.equal(W.grad, torch.ones_like(W))


@pytest.mark.parametrize("kind", sorted(set(OF_PAIRS) - {"unique_nearest"}))
def test_the_gradient_reaches_a_neighbour_that_is_not_penalised(kind):
    """Direction 1 is all but parallel to 0, the only penalised one; the others are far."""
    W = torch.eye(6, dtype=torch.float64)
    W[1] = W[0] + 0.2 * W[1]
    W.requires_grad_()
    omega(W, settings(kind, chunk=6), rows_N=torch.tensor([0])).backward()
    assert W.grad[0].norm() > 0.01
    assert W.grad[1].norm() > 0.01


@pytest.mark.parametrize("kind", OF_PAIRS)
def test_frozen_directions_are_neighbours_that_stay(kind):
    """New directions are orthogonal to each other, and the first is a copy of a frozen one."""
    W = torch.eye(6, dtype=torch.float64)[:4]
    frozen = torch.stack([2 * W[0] + 0.1 * W[1], torch.eye(6, dtype=torch.float64)[5]]).requires_grad_()
    free = W.clone().requires_grad_()
    value = omega(free, settings(kind, chunk=6), frozen_GD=frozen)
    value.backward()
    assert value > 0.04
    assert free.grad[0].norm() > 0
    assert frozen.grad is None


@pytest.mark.parametrize("kind", ["gram", "rica"])
def test_frozen_directions_count_where_all_are_seen_at_once(kind):
    W, frozen = random_rows(5).requires_grad_(), random_rows(3, seed=1).requires_grad_()
    omega(W, settings(kind), frozen_GD=frozen).backward()
    alone = random_rows(5).requires_grad_()
    omega(alone, settings(kind)).backward()
    assert frozen.grad is None
    assert not torch.allclose(W.grad, alone.grad)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"unique_nearest"}))
def test_no_square_matrix_is_allocated(kind):
    """At most tile * F cosines, 2 F D for neighbours, M F_meta for the meta-SAE and D^2 exist at a time."""
    F, D, tile = 600, 4, 16
    keys = settings(kind, tile=tile, chunk=F, meta_share=0.02)
    W = random_rows(F, D).requires_grad_()
    with Watch() as watch:
        omega(W, keys, x_BD=random_rows(8, D)).backward()
    assert F <= watch.largest <= tile * F + 2 * F * D


def test_a_greedy_assignment_allocates_no_square_matrix():
    with Watch() as watch:
        omega(random_rows(600, 4), settings("unique_nearest", tile=16, greedy=True, assign_limit=1))
    assert watch.largest <= 600 * 16 + 2 * 600 * 4


@pytest.mark.parametrize("kind", OF_PAIRS)
def test_a_negative_weight_draws_directions_together_up_to_the_cap(kind):
    W = random_rows(12, seed=2).requires_grad_()
    keys = settings(kind, cap=0.7, phi="abs", refresh=1, chunk=12, tile=12)
    state, optimiser = {}, torch.optim.Adam([W], lr=0.05)
    before = cosines(W.detach()).amax(1)
    for step in range(60):
        optimiser.zero_grad()
        (-penalty(Directions(W, step, step, state=state), keys)).backward()
        optimiser.step()
    after = cosines(W.detach()).amax(1)
    assert after.mean() > before.mean() + 0.1
    assert after.median() > 0.69
    assert after.max() < 0.999


@pytest.mark.parametrize("kind", OF_PAIRS)
def test_beyond_the_cap_there_is_no_gradient(kind):
    W = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-0.1, 1.0]], requires_grad=True)
    omega(W, settings(kind, cap=0.5, chunk=4, neighbours=1), x_BD=None).backward()
    near = omega(W.detach(), settings(kind, chunk=4, neighbours=1), x_BD=None)
    assert omega(W.detach(), settings(kind, cap=0.5, chunk=4, neighbours=1), x_BD=None) < near
    # what is left are the pairs below the cap: all_pairs and mixed_max see (1, 2), whose cosine is 0.1
    below = kind in ("all_pairs", "mixed_max")
    assert (W.grad.norm() > 0) == below


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_recall_is_the_share_of_rows_held_against_their_nearest(kind):
    W = random_rows(40, 8)
    keys = settings(kind, chunk=10, neighbours=2)
    directions = Directions(W, seed=4, rows_N=torch.arange(5, 30))
    value = penalty(directions, keys)
    seen, gaps = [], []
    c = cosines(W)
    rows, partners = APPROXIMATE[kind](directions, keys)
    for i, others in zip(rows.tolist(), partners.tolist(), strict=True):
        best = max(c[i, j].item() for j in others)
        seen.append(best >= c[i].max().item() - 1e-9)
        gaps.append(c[i].max().item() - best)
    assert sorted(rows.tolist()) == list(range(5, 30))
    expected = {"neighbour_recall": sum(seen) / 25, "neighbour_gap": sum(gaps) / 25}
    assert neighbour_recall(directions, keys) == pytest.approx(expected)
    assert value > 0


@pytest.mark.parametrize("kind", KINDS)
def test_unit_rows_need_no_normalisation(kind):
    """The same value, and after the step's projection the same gradient, as with the norm divided out."""
    unit_FD, x_BD = torch.nn.functional.normalize(random_rows(40, 6), dim=1), random_rows(64, 6, 6)
    found = []
    for unit in (False, True):
        W_FD = unit_FD.clone().requires_grad_()
        value = ORTHOGONALITY[kind](Directions(W_FD, seed=3, x_BD=x_BD, unit=unit), settings(kind))
        (grad_FD,) = torch.autograd.grad(value, W_FD)
        found.append((value.detach(), grad_FD - (grad_FD * unit_FD).sum(1, keepdim=True) * unit_FD))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
