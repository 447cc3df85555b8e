"""A batch in pieces gives the losses and gradients of the whole."""

import pytest
import torch

from sae_cli.dictionary.stack import SAEStack
from sae_cli.training.execute import execute
from sae_cli.training.loss import Weights
from sae_cli.training.memory import LATENT_BYTES
from sae_cli.training.pieces import batch_gradients
from tests.training.points import point
from tests.training.ranks import equal

CASES = {
    "relu": ["sae=relu", "orthogonality=active_only", "orthogonality.weight=0.5"],
    "sparse": ["sae=prolu_relu", "train.sparse=sparse"],
    "topk": ["sae=topk", "sae.k=3", "sae.auxk_weight=0.1", "sae.auxk_latents=4"],
    "batchtopk": ["sae=batchtopk", "sae.k=3", "orthogonality=nearest", "orthogonality.weight=0.5"],
    "sparse batchtopk": ["sae=batchtopk", "sae.k=2", "train.sparse=sparse"],
    "jumprelu": ["sae=jumprelu", "sae.preact_weight=0.1", "sae.decoder_norm=free"],
    "gated": ["sae=gated", "sae.prefixes=[0.3]"],
    "l0": ["sae=relu", "sparsity=l0"],
}


def both(tmp_path, words, size):
    """Return the losses and gradients of a batch as a whole and in pieces of `size` rows."""
    config = point(tmp_path, *words)
    found = []
    for rows in (80, size):
        stack = SAEStack.initialise([config], torch.ones(12) / 9, "cpu", torch.empty(0))
        x_BD = torch.randn(80, 12, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 3, 80).unsqueeze(1)
        weights = Weights(torch.tensor([0.5]), torch.tensor([0.5]), [config.orthogonality.weight > 0])
        dead_KF = torch.arange(32).remainder(3).eq(0).unsqueeze(0)
        found.append(batch_gradients(stack.part(slice(0, 1)), config, x_BD, dead_KF, weights, 0, [{}], None, rows))
    return found


@pytest.mark.parametrize("size", [1, 30, 40])
@pytest.mark.parametrize("name", CASES)
def test_pieces_add_up_to_the_batch(tmp_path, name, size):
    (whole, expected), (pieces, gradients) = both(tmp_path, CASES[name], size)
    for term in ("mse_K", "sparsity_K", "omega_K", "auxiliary_K", "loss_K", "counts_KF", "frozen_KG"):
        torch.testing.assert_close(getattr(pieces, term), getattr(whole, term), rtol=1e-5, atol=1e-6)
    assert expected.keys() == gradients.keys()
    for key in expected:
        torch.testing.assert_close(gradients[key], expected[key], rtol=1e-4, atol=1e-5)
    if "batchtopk" in name:
        torch.testing.assert_close(pieces.acts.min(), whole.acts[whole.acts > 0].min())


@pytest.mark.parametrize("words", [["sae=batchtopk", "sae.k=3"], ["sae.grow=[12,20]", "sae=relu"]], ids=str)
def test_memory_bytes_changes_no_result_and_no_run_id(tmp_path, words):
    """30 rows fit, so 80 are taken in three pieces."""
    words = [*words, "train.tokens=1600", "orthogonality=nearest", "orthogonality.weight=0.3"]
    limit = f"train.memory_bytes={30 * 32 * LATENT_BYTES}"
    (whole,) = execute([point(tmp_path / "whole", *words)])
    (pieces,) = execute([point(tmp_path / "pieces", *words, limit)])
    assert whole.run_id == pieces.run_id
    equal(whole.folder, pieces.folder)
