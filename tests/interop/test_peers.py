"""Exported SAEs through the libraries themselves: their latents and reconstructions are ours."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.ground_truth import directions
from sae_cli.interop.writing import save_foreign
from tests.interop.test_reading import rows
from tests.interop.test_writing import KINDS, D, example

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("norm", ["scalar", "row"])
@pytest.mark.parametrize("kind", [*KINDS, "gated"])
def test_saelens(tmp_path: Path, kind: str, norm: str, unit: bool) -> None:
    from sae_lens import SAE as Theirs

    sae, x_BD = example(kind, norm), rows(D)
    save_foreign(tmp_path, sae, "saelens", unit)
    theirs = Theirs.load_from_disk(tmp_path)
    acts_BF, x_hat_BD = sae.forward(x_BD)
    with torch.no_grad():
        found_BF = theirs.encode(x_BD)
        found_BD = theirs.decode(found_BF)
    found_BF = found_BF.to_dense() if found_BF.is_sparse else found_BF
    torch.testing.assert_close(found_BF, acts_BF * (2.5 if unit else 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_BD, x_hat_BD, atol=1e-5, rtol=1e-5)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("kind", [*KINDS, "gated"])
def test_dictionary_learning(tmp_path: Path, kind: str) -> None:
    from dictionary_learning.utils import load_dictionary

    sae, x_BD = example(kind), rows(D)
    save_foreign(tmp_path, sae, "dictionary_learning")
    theirs, _ = load_dictionary(str(tmp_path), device="cpu")
    acts_BF, x_hat_BD = sae.forward(x_BD)
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x_BD), acts_BF, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs(x_BD), x_hat_BD, atol=1e-5, rtol=1e-5)


def test_sparsify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # where it is installed, sparsify wants a GPU
    from sparsify import SparseCoder

    sae, x_BD = example("topk"), rows(D)
    save_foreign(tmp_path, sae, "sparsify")
    theirs = SparseCoder.load_from_disk(tmp_path)
    acts_BF, x_hat_BD = sae.forward(x_BD)
    with torch.no_grad():
        found = theirs.encode(x_BD)
        top_BF = torch.zeros_like(acts_BF).scatter(1, found.top_indices, found.top_acts)
        torch.testing.assert_close(top_BF, acts_BF, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.decode(found.top_acts, found.top_indices), x_hat_BD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_an_export_goes_through_the_synthetic_scorer_of_saelens(tmp_path: Path, noise: float) -> None:
    from sae_lens import SAE as Theirs
    from sae_lens.synthetic.activation_generator import ActivationGenerator
    from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
    from sae_lens.synthetic.feature_dictionary import FeatureDictionary

    features = FeatureDictionary(num_features=16, hidden_dim=24, seed=3)
    true_GD = features.feature_vectors.detach()
    found_GD = normalize(true_GD + noise * torch.randn(16, 24, generator=torch.Generator().manual_seed(1)), dim=1)
    sae = SAE("prolu_ste", found_GD.T.clone(), torch.full((16,), -0.3), found_GD, torch.zeros(24))
    save_foreign(tmp_path, sae, "saelens")
    generator = ActivationGenerator(num_features=16, firing_probabilities=0.2)
    score = eval_sae_on_synthetic_data(Theirs.load_from_disk(tmp_path), features, generator, num_samples=4000)
    assert score.mcc == pytest.approx(float(directions(true_GD @ found_GD.T)[0]["mcc"]), abs=1e-5)
    if not noise:
        assert score.mcc > 0.9999
        assert score.explained_variance > 0.999
        assert score.sae_l0 == pytest.approx(score.true_l0, rel=1e-3)
