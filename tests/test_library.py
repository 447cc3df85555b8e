"""The package from a notebook: SAEs, activations, and hooks on a TransformerBridge."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sae_cli
from sae_cli import SAE, ActivationStore, ablate, load_sae, reconstruct, steer
from sae_cli.dictionary.artifact import row_scale, save_sae
from sae_cli.errors import UserError
from tests.interop.test_writing import example


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sae_cli, sys; assert 'torch' not in sys.modules; sae_cli.load_sae; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nonsense"):
        sae_cli.nonsense  # noqa: B018


@pytest.mark.parametrize("norm", ["scalar", "row"])
@pytest.mark.parametrize("kind", ["relu", "prolu_ste", "topk"])
def test_ablating_every_latent_leaves_the_bias_and_the_error(kind: str, norm: str, tmp_path: Path) -> None:
    save_sae(tmp_path, example(kind, norm))
    sae = load_sae(tmp_path)
    x = torch.randn(2, 5, 6)
    flat = x.view(-1, 6)
    x_hat = reconstruct(sae)(x).view(-1, 6)
    torch.testing.assert_close(x_hat, sae.forward(flat)[1])
    scale = row_scale(flat) if norm == "row" else 1
    left = ablate(sae, range(15))(x).view(-1, 6)
    torch.testing.assert_close(left, flat - x_hat + sae.b_dec_D * scale, atol=1e-5, rtol=1e-5)
    one = sae.encode(flat)[:, [3]] * sae.W_dec_FD[3] * scale
    torch.testing.assert_close(ablate(sae, [3])(x).view(-1, 6), flat - one, atol=1e-5, rtol=1e-5)


def test_steering_adds_a_direction_in_the_dtype_of_the_model() -> None:
    sae, x = example("relu"), torch.zeros(1, 2, 6, dtype=torch.bfloat16)
    steered = steer(sae, 4, -3.0)(x)
    assert steered.dtype == torch.bfloat16
    torch.testing.assert_close(steered[0, 1].float(), -3 * sae.W_dec_FD[4], atol=0.05, rtol=0.01)
    for hook in (lambda: steer(sae, 15, 1.0)(x), lambda: ablate(sae, [-1])):
        with pytest.raises(UserError, match="latents 0 to 14"):
            hook()
    with pytest.raises(UserError, match="not a folder"):
        load_sae("nowhere")


def test_a_store_and_hooks_on_the_bundled_model(tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    from sae_cli.assets import TINY

    store = ActivationStore(f"cache.dir={tmp_path}", "cache.tokens=2000", "cache.validation_tokens=500")
    x_BD = next(store.batches(64))
    assert x_BD.shape == (64, store.d_model)
    assert sum(len(rows_BD) for rows_BD in store.validation(100)) == 500
    D = store.d_model
    # exact where no activation is below -50
    sae = SAE("relu", torch.eye(D), torch.zeros(D), torch.eye(D), torch.full((D,), -50.0))
    bridge = TransformerBridge.boot_transformers(str(TINY))
    tokens, hook = torch.arange(12).view(1, -1), store.config.model.hook
    clean = bridge(tokens)
    exact = bridge.run_with_hooks(tokens, fwd_hooks=[(hook, reconstruct(sae))])
    torch.testing.assert_close(exact, clean, atol=1e-3, rtol=1e-3)
    steered = bridge.run_with_hooks(tokens, fwd_hooks=[(hook, steer(sae, 1, 100.0))])
    assert (steered - clean).abs().max() > 0.1
    again = bridge.run_with_hooks(tokens, fwd_hooks=[(hook, steer(sae, 1, 0.0))])
    torch.testing.assert_close(again, clean)
