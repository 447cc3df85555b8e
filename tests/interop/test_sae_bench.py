"""An exported SAE through SAEBench's core evaluation, offline: its numbers are those of our SAE on the same tokens."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.dictionary.artifact import SAE
from sae_cli.interop.writing import save_foreign
from sae_cli.library import reconstruct

pytestmark = pytest.mark.peers

D, F, T, VOCABULARY = 16, 64, 32, 50
HOOK = "blocks.0.hook_resid_post"
BATCH, BATCHES = 8, 3


def ours() -> SAE:
    W_FD = normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(0)), dim=1)
    metadata = {"model_name": "local", "hook_name": "blocks.0.hook_out", "context_size": T, "prepend_bos": False}
    return SAE("prolu_ste", W_FD.T.clone(), torch.full((F,), -0.05), W_FD / 4, torch.zeros(D), metadata=metadata)


@pytest.mark.parametrize("unit", [False, True])
def test_core_evaluation(tmp_path: Path, unit: bool) -> None:
    import datasets
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens import SAE as Theirs
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sae = ours()
    save_foreign(tmp_path, sae, "saelens", unit)
    _, theirs, _ = load_and_format_sae("exported", Theirs.load_from_disk(tmp_path), "cpu")
    sizes = {"n_layers": 2, "d_model": D, "n_ctx": T, "d_head": 8, "n_heads": 2, "d_mlp": 32, "d_vocab": VOCABULARY}
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu", seed=0, device="cpu"))
    text_NT = torch.randint(VOCABULARY, (48, T), generator=torch.Generator().manual_seed(1))
    data = datasets.Dataset.from_dict({"tokens": text_NT.tolist()})
    store = ActivationsStore.from_sae(model, theirs, data, context_size=T, streaming=False)
    given: list[Tensor] = []
    give = store.get_batch_tokens
    store.get_batch_tokens = lambda *args: given.append(give(*args)) or given[-1]
    wanted = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
    counts = {"n_eval_reconstruction_batches": BATCHES, "n_eval_sparsity_variance_batches": BATCHES}
    config = CoreEvalConfig(batch_size_prompts=BATCH, **counts, **{f"compute_{name}": True for name in wanted})
    found, _ = run_evals(theirs, store, model, config)

    spliced_CT, read_CT = torch.cat(given[:BATCHES]), torch.cat(given[BATCHES:])
    assert spliced_CT.shape == read_CT.shape == (BATCH * BATCHES, T)
    with torch.no_grad():
        x_ND = model.run_with_cache(read_CT, names_filter=[HOOK])[1][HOOK].reshape(-1, D)
        hooks = [(HOOK, reconstruct(sae))]
        loss = model.run_with_hooks(spliced_CT, return_type="loss", fwd_hooks=hooks)
    acts_NF, x_hat_ND = sae.forward(x_ND)
    error_N, square_N = (x_ND - x_hat_ND).square().sum(1), x_ND.square().sum(1)
    # The variance as SAEBench 0.6.0 has it: the mean square of a number, squared, taken off the mean square of a row.
    variance = square_N.mean() - x_ND.square().mean() ** 2
    expected = {
        ("sparsity", "l0"): (acts_NF != 0).sum(1).float().mean(),
        ("sparsity", "l1"): (acts_NF * sae.W_dec_FD.norm(dim=1) if unit else acts_NF).sum(1).mean(),
        ("reconstruction_quality", "mse"): error_N.mean() / (BATCH * T),
        ("reconstruction_quality", "explained_variance"): 1 - error_N.mean() / variance,
        ("shrinkage", "l2_ratio"): (x_hat_ND.norm(dim=1) / x_ND.norm(dim=1)).mean(),
        ("model_performance_preservation", "ce_loss_with_sae"): loss,
    }
    assert {key: found[key[0]][key[1]] for key in expected} == pytest.approx(
        {key: float(value) for key, value in expected.items()}, rel=1e-4
    )
    assert 1 < found["sparsity"]["l0"] < F
