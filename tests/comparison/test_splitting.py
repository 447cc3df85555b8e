import pytest
import torch

from sae_cli.comparison.splitting import splitting
from sae_cli.dictionary.artifact import SAE


def reader(W_dec: list[list[float]], W_enc: list[list[float]] | None = None) -> SAE:
    """A ReLU SAE that reads along `W_enc` (rows by latent; default: its directions) with a small threshold."""
    W_dec_FD = torch.tensor(W_dec)
    W_enc_FD = torch.tensor(W_enc or W_dec)
    return SAE("relu", W_enc_FD.T.clone(), torch.full((len(W_dec),), -0.05), W_dec_FD, torch.zeros(W_dec_FD.shape[1]))


E = torch.eye(4)
NARROW = reader(E[:3].tolist())
WIDE = reader(
    [[1.0, 0, 0, 0.5], [1.0, 0, 0, -0.5], [0, 1.0, 1.0, 0], [0, 0, 0, 1.0], [0, 1.0, 0, 0]],
    [[0, 0, 0, 1.0], [0, 0, 0, -1.0], [0, 1.0, 0, 0], [0, 0, 0, 1.0], [0, 0, -1.0, 0]],
)
# Latent 0 of the narrow one fires on three rows of four, its children 0 and 1 on two and one of these.
ROWS = torch.tensor([[1.0, 0, 0, 1], [1.0, 0, 0, 1], [1.0, 0, -1, -1], [0, 1.0, 1, 0]])


def test_tree_on_paper():
    result = splitting(NARROW, WIDE, torch.arange(3), torch.arange(5), [ROWS[:3], ROWS[3:]])
    edges = {edge["child"]: edge for edge in result["edges"]}
    # 3 has no parent (cosine 0); 4 lies at its parent, but fires on the third row only, where the parent does not.
    assert {child: edge["parent"] for child, edge in edges.items()} == {0: 0, 1: 0, 2: 1}
    assert (result["close"], result["children"], result["split"], result["childless"]) == (4, 3, 1, 1)
    assert edges[0]["cosine"] == pytest.approx(1 / 1.25**0.5)
    assert (edges[0]["child_given_parent"], edges[0]["parent_given_child"]) == (pytest.approx(2 / 3), 1)
    assert (edges[1]["child_given_parent"], edges[1]["parent_given_child"]) == (pytest.approx(1 / 3), 1)


def test_a_child_that_is_its_parent_and_another_direction():
    result = splitting(NARROW, WIDE, torch.arange(3), torch.arange(5), [ROWS])
    edges = {edge["child"]: edge for edge in result["edges"]}
    assert result["sums"] == 1
    assert edges[2]["explained"] == pytest.approx([0.5, 1])
    assert (edges[2]["sum"], edges[2]["other"]) == (True, 2)
    assert edges[0]["explained"] == pytest.approx([0.8, 0.8])
    assert (edges[0]["sum"], edges[0]["other"]) == (False, None)


def test_ids_are_those_of_the_latents():
    result = splitting(NARROW, WIDE, torch.tensor([0, 2]), torch.tensor([1, 2]), [ROWS])
    assert [(edge["parent"], edge["child"]) for edge in result["edges"]] == [(0, 1), (2, 2)]
    assert (result["narrow_alive"], result["wide_alive"]) == (2, 2)


def test_one_narrow_latent_and_no_children():
    alone = splitting(NARROW, WIDE, torch.tensor([0]), torch.arange(5), [ROWS])
    assert [(edge["child"], edge["other"], edge["sum"]) for edge in alone["edges"]] == [
        (0, None, False),
        (1, None, False),
    ]
    nothing = splitting(NARROW, WIDE, torch.tensor([2]), torch.tensor([0, 1]), [ROWS])
    assert (nothing["edges"], nothing["childless"], nothing["sums"]) == ([], 1, 0)
