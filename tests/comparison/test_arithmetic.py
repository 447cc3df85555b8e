import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch.nn.functional import normalize

from sae_cli.comparison.arithmetic import arithmetic, nonnegative, pursue, random_directions, summary


def reference(target: np.ndarray, atoms: np.ndarray, forbidden: int = -1) -> tuple[list[int], list[float]]:
    """Non-negative orthogonal matching pursuit, one target at a time, with scipy's NNLS."""
    chosen, explained, fit = [], [], np.zeros_like(target)
    for _ in range(3):
        score = atoms @ (target - fit)
        score[[*chosen, *([forbidden] if forbidden >= 0 else [])]] = -np.inf
        chosen.append(int(score.argmax()))
        coefficients, residual = nnls(atoms[chosen].T, target)
        fit = atoms[chosen].T @ coefficients
        explained.append(1 - residual**2)
    return chosen, explained


def test_pursuit_equals_the_written_out_one():
    targets, atoms = random_directions(30, 6, 0), random_directions(20, 6, 1)
    fit = pursue(5 * targets, 0.1 * atoms, tile=7)
    for row in range(30):
        chosen, explained = reference(targets[row].double().numpy(), atoms.double().numpy())
        assert fit.atoms_NT[row].tolist() == chosen
        assert fit.explained_NT[row].tolist() == pytest.approx(explained, abs=1e-6)
        rebuilt = fit.coefficients_NT[row].float() @ atoms[fit.atoms_NT[row]]
        assert 1 - (targets[row] - rebuilt).square().sum() == pytest.approx(explained[-1], abs=1e-5)


def test_a_direction_does_not_use_itself():
    atoms = random_directions(20, 6, 1)
    fit = pursue(atoms, atoms, torch.arange(20))
    for row in range(20):
        chosen, explained = reference(atoms[row].double().numpy(), atoms.double().numpy(), row)
        assert fit.atoms_NT[row].tolist() == chosen
        assert fit.explained_NT[row].tolist() == pytest.approx(explained, abs=1e-6)


def test_exact_nonnegative_least_squares():
    generator = torch.Generator().manual_seed(0)
    A_BTD = torch.randn(200, 3, 5, generator=generator, dtype=torch.float64)
    d_BD = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    product_BT = torch.einsum("btd,bd->bt", A_BTD, d_BD)
    c_BT, squares_B = nonnegative(A_BTD @ A_BTD.mT, product_BT)
    for row in range(200):
        expected, residual = nnls(A_BTD[row].numpy().T, d_BD[row].numpy())
        assert c_BT[row].numpy() == pytest.approx(expected, abs=1e-6)
        assert float(squares_B[row]) == pytest.approx(float(d_BD[row].square().sum()) - residual**2, abs=1e-6)
    assert ((c_BT > 0).sum(1).bincount(minlength=4) > 0).all()


def test_a_repeated_atom_is_not_split():
    c, squares = nonnegative(torch.ones(1, 3, 3, dtype=torch.float64), torch.full((1, 3), 0.8, dtype=torch.float64))
    assert sorted(c[0].tolist()) == pytest.approx([0, 0, 0.8])
    assert float(squares) == pytest.approx(0.64)


def test_opposite_directions_explain_nothing():
    fit = pursue(torch.eye(3), -torch.eye(3))
    assert torch.equal(fit.explained_NT, torch.zeros(3, 3, dtype=torch.float64))


def test_a_given_first_atom_is_kept():
    fit = pursue(torch.tensor([[1.0, 1, 0.1]]), torch.eye(3), first_N=torch.tensor([2]), terms=2)
    assert fit.atoms_NT.tolist() == [[2, 0]]
    assert fit.explained_NT[0].tolist() == pytest.approx([0.01 / 2.01, 1.01 / 2.01])


def test_fewer_atoms_than_terms():
    fit = pursue(torch.tensor([[1.0, 1, 1]]), torch.eye(3)[:2])
    assert fit.explained_NT[0].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    alone = pursue(torch.eye(3)[:2], torch.eye(3)[:2], torch.arange(2))
    assert torch.equal(alone.explained_NT, torch.zeros(2, 3, dtype=torch.float64))


def test_composites_are_told_from_parts_and_from_noise():
    parts = random_directions(60, 64, 0)
    composites = normalize(torch.stack([parts[0] + parts[1], parts[2] + parts[3] + parts[4]]), dim=1)
    targets = torch.cat([composites, parts[5:20], random_directions(15, 64, 9)])
    result = arithmetic(targets, parts, list(range(100, 132)), list(range(200, 260)), seed=0)
    assert result["rows"]["measured"]["composite"] == pytest.approx(2 / 32)
    assert result["rows"]["measured"]["single"] == pytest.approx(15 / 32)
    named = {one["id"]: {term["id"] for term in one["terms"]} for one in result["examples"]}
    assert named[100] >= {200, 201}
    assert named[101] == {202, 203, 204}
    assert list(named) == [101, 100]
    (first, *_) = next(one for one in result["examples"] if one["id"] == 101)["terms"]
    assert first["cosine"] == pytest.approx(float(composites[1] @ parts[first["id"] - 200]), abs=1e-5)


def test_controls():
    """Known sums are recovered, random directions and random atoms explain little."""
    atoms = random_directions(300, 128, 0)
    rows = arithmetic(atoms[:100], atoms, list(range(100)), list(range(300)), seed=3)["rows"]
    assert rows["measured"]["mean"] == pytest.approx([1, 1, 1])
    for name in ("sum_of_2", "sum_of_3"):
        assert rows[name]["recovered"] > 0.99
        assert rows[name]["composite"] > 0.95
        assert rows[name]["count"] == 100
    for name in ("random_targets", "random_atoms"):
        assert rows[name]["mean"][2] < 0.25
        assert rows[name]["composite"] == rows[name]["single"] == 0
        assert "recovered" not in rows[name]


def test_known_sums_have_different_constituents():
    rows = arithmetic(torch.eye(3), torch.eye(3), [0, 1, 2], [0, 1, 2], seed=0)["rows"]
    assert rows["sum_of_3"]["mean"] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rows["sum_of_2"]["mean"] == pytest.approx([1 / 2, 1, 1])
    assert "sum_of_3" not in arithmetic(torch.eye(3), torch.eye(3)[:2], [0, 1, 2], [0, 1], seed=0)["rows"]


def test_within_excludes_the_same_latent_by_its_id():
    W = torch.eye(4)
    W[3] = torch.tensor([1.0, 1, 0, 0])
    result = arithmetic(W[[1, 3]], W, [11, 13], [10, 11, 12, 13], seed=0, within=True)
    (composite,) = [one for one in result["examples"] if one["id"] == 13]
    assert {term["id"]: term["coefficient"] for term in composite["terms"]} == pytest.approx(
        {10: 0.5**0.5, 11: 0.5**0.5}, abs=1e-6
    )


def test_summary_and_seed():
    targets, atoms = random_directions(50, 16, 0), random_directions(40, 16, 1)
    fit = pursue(targets, atoms)
    shown = summary(fit)
    assert shown["mean"] == pytest.approx(fit.explained_NT.mean(0).tolist())
    assert shown["quantiles"]["0.5"] == pytest.approx(np.median(fit.explained_NT.numpy(), axis=0).tolist())
    ids = list(range(50)), list(range(40))
    first, again, other = (arithmetic(targets, atoms, *ids, seed=seed)["rows"] for seed in (1, 1, 2))
    assert first == again != other
    assert first["measured"] == other["measured"]
