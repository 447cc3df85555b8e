"""The founding example: L1 alone loses a true feature to a combination, the orthogonality penalty finds all three."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.config.compose import compose
from sae_cli.dictionary.artifact import load_sae
from sae_cli.training.execute import execute

SEEDS = (0, 1, 2)


def directions(folder, gamma):
    words = ["experiment=three_features", "tracker=jsonl", "sparsity.weight=0.7", f"orthogonality.weight={gamma}"]
    outcomes = execute([compose([*words, f"seed={seed}", f"runs_dir={folder}"]) for seed in SEEDS])
    return [normalize(load_sae(outcome.folder).W_dec_FD, dim=1) for outcome in outcomes]


@pytest.mark.slow
def test_l1_loses_the_rare_feature_to_a_composite_and_the_penalty_finds_all_three(tmp_path):
    composite = torch.tensor([1.0, 1.0, 0.0]) / 2**0.5
    for W_FD in directions(tmp_path, 0):
        assert W_FD[:, 2].max() < 0.5, "feature 3 is found without the penalty"
        nearest = W_FD[(W_FD @ composite).argmax()]
        assert nearest @ composite > 0.9
        assert nearest @ composite > nearest.max(), "no latent is nearer to the composite than to a true feature"
    for W_FD in directions(tmp_path, 1):
        assert (W_FD.amax(0) > 0.95).all()
