import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.comparison import similarity as module
from sae_cli.comparison.similarity import greedy, hungarian, nearest, similarity


def directions(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_written_out_on_paper():
    A = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    B = torch.tensor([[0.0, 3, 0], [3, 4, 0]])
    result = similarity(A, B, [10, 11, 12], [20, 21])
    # cosines of A's rows with B's: (0, .6), (1, .8), (0, 0)
    assert result["mmcs_a"] == pytest.approx((0.6 + 1 + 0) / 3)
    assert result["mmcs_b"] == pytest.approx((1 + 0.8) / 2)
    assert result["matched"] == pytest.approx((1 + 0.6) / 2)
    assert (result["unique_a"], result["unique_b"], result["match"]) == (pytest.approx(1 / 3), 0, "hungarian")
    assert result["only_a"] == [{"id": 12, "cosine": pytest.approx(0)}]
    assert result["only_b"] == []


def test_assignment_beats_greed_where_they_differ():
    A = normalize(torch.tensor([[1.0, 0.1], [1.0, -0.4]]), dim=1)
    B = normalize(torch.tensor([[1.0, 0.0], [0.2, 1.0]]), dim=1)
    cosine = A @ B.T
    assert greedy(A, B).tolist() == pytest.approx([cosine[0, 0].item(), cosine[1, 1].item()])
    assert sorted(hungarian(A, B)) == pytest.approx(sorted([cosine[0, 1].item(), cosine[1, 0].item()]))
    assert hungarian(A, B).sum() > greedy(A, B).sum()


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_greedy_equals_sorting_all_pairs(tile):
    # Most of A lies in one cluster, so that near partners run out.
    A = normalize(directions(40, 8, 0) * 0.4 + directions(1, 8, 1), dim=1)
    B = normalize(directions(30, 8, 2), dim=1)
    cosine = (A @ B.T).double()
    free_A, free_B, expected = set(range(40)), set(range(30)), []
    for index in cosine.flatten().argsort(descending=True).tolist():
        if index // 30 in free_A and index % 30 in free_B:
            free_A.remove(index // 30)
            free_B.remove(index % 30)
            expected.append(float(cosine.flatten()[index]))
    assert sorted(greedy(A, B, tile)) == pytest.approx(sorted(expected), abs=1e-6)
    assert greedy(B, A).sum() == pytest.approx(sum(expected), abs=1e-5)


def test_same_directions_in_another_order_are_found_by_either_match(monkeypatch):
    A = directions(20, 6, 0)
    B = 3 * A[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    assert similarity(A, B, list(range(20)), list(range(20)))["matched"] == pytest.approx(1, abs=1e-6)
    monkeypatch.setattr(module, "HUNGARIAN", 10)
    result = similarity(A, B, list(range(20)), list(range(20)))
    assert (result["matched"], result["match"]) == (pytest.approx(1, abs=1e-6), "greedy")


def test_random_directions_meet_their_baseline():
    A, B = directions(400, 64, 0), directions(600, 64, 1)
    result = similarity(A, B, list(range(400)), list(range(600)))
    assert result["mmcs_a"] == pytest.approx(result["random_a"], rel=0.02)
    assert result["mmcs_b"] == pytest.approx(result["random_b"], rel=0.02)


def test_missing_directions_come_lowest_first_and_are_capped(monkeypatch):
    monkeypatch.setattr(module, "LISTED", 2)
    A = torch.tensor([[1.0, 0, 0]])
    B = torch.tensor([[0.1, 1, 0], [-0.5, 1, 0], [0, 0, 1.0], [1, 0, 0]])
    listed = similarity(A, B, [0], [5, 6, 7, 8])["only_b"]
    assert [one["id"] for one in listed] == [6, 7]


def test_tiles_do_not_matter():
    A, B = normalize(directions(30, 5, 0), dim=1), normalize(directions(20, 5, 1), dim=1)
    cosine = A @ B.T
    best_A, partner_A, best_B, partner_B = nearest(A, B, tile=4)
    assert torch.allclose(best_A, cosine.amax(1))
    assert torch.allclose(best_B, cosine.amax(0))
    assert partner_A.tolist() == cosine.argmax(1).tolist()
    assert partner_B.tolist() == cosine.argmax(0).tolist()
