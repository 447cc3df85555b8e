"""The package from a notebook: SAEs, activations, and hooks on a TransformerBridge."""

import shutil
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
    assert {*sae_cli.__all__} <= {*dir(sae_cli)}
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
    for hook in (lambda: steer(sae, 15, 1.0), lambda: ablate(sae, [-1])):
        with pytest.raises(UserError, match="latents 0 to 14"):
            hook()
    with pytest.raises(UserError, match="not a folder"):
        load_sae("nowhere")


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "gated"])
@pytest.mark.parametrize("norm", ["scalar", "row"])
def test_leading_axes_and_dtypes_do_not_matter(kind: str, norm: str) -> None:
    sae, x = example(kind, norm), torch.randn(3, 4, 6)
    acts, x_hat = sae.forward(x)
    assert (acts.shape, x_hat.shape) == ((3, 4, 15), (3, 4, 6))
    for row, position in ((0, 0), (2, 3)):
        one = sae.forward(x[row, position])
        torch.testing.assert_close((acts[row, position], x_hat[row, position]), one, atol=1e-5, rtol=1e-5)
    low = sae.forward(x.bfloat16())
    torch.testing.assert_close(low, sae.forward(x.bfloat16().float()))
    assert sae.encode(x[:0]).shape == (0, 4, 15)


def test_hooks_leave_bos_where_the_sae_was_trained_without_it() -> None:
    sae, x = example("relu"), torch.randn(2, 5, 6)
    hooks = (lambda **first: steer(sae, 4, 2.0, **first), lambda **first: ablate(sae, range(15), **first))
    for hook in (*hooks, lambda **first: reconstruct(sae, **first)):
        for metadata, kept in (({}, 0), ({"prepend_bos": True}, 1), ({"prepend_bos": True, "drop_bos": False}, 0)):
            sae.metadata = metadata
            assert (hook()(x) == x).all(-1).sum(0).tolist() == [2] * kept + [0] * (5 - kept)
            torch.testing.assert_close(hook()(x)[:, kept:], hook(first=0)(x)[:, kept:])
        assert (hook(first=3)(x) == x).all(-1)[0].tolist() == [True, True, True, False, False]
        # one position is a later step of generation with a cache
        torch.testing.assert_close(hook(first=1)(x[:, :1]), hook(first=0)(x[:, :1]))


def test_hooks_take_heads_tensors_and_numbers_and_refuse_other_widths() -> None:
    sae, x = example("relu"), torch.randn(2, 5, 6)
    for hook in (steer(sae, torch.tensor(4), 2.0), ablate(sae, 4), reconstruct(sae)):
        torch.testing.assert_close(hook(x.view(2, 5, 3, 2)), hook(x).view(2, 5, 3, 2))
        with pytest.raises(UserError, match=r"width 12, the SAE, of blocks\.3\.hook_out, has 6"):
            hook(torch.randn(2, 5, 12))
    torch.testing.assert_close(ablate(sae, 4)(x), ablate(sae, torch.tensor([4]))(x))


def test_a_folder_that_holds_one_run_stands_for_it(tmp_path: Path) -> None:
    save_sae(tmp_path / "runs" / "a", example("relu"))
    torch.testing.assert_close(load_sae(tmp_path / "runs").W_enc_DF, example("relu").W_enc_DF)
    save_sae(tmp_path / "runs" / "b", example("relu"))
    with pytest.raises(UserError, match=r"holds 2 runs; give one of them, such as .*runs.a"):
        load_sae(tmp_path / "runs")


def test_a_store_of_a_toy_and_of_the_user_s_own_group(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "mine.yaml").write_text("kind: features\nfeatures: 9\nwidth: 5\n")
    store = ActivationStore("source=mine", config_dir=str(tmp_path))
    assert next(store.batches(7)).shape == (7, store.d_model) == (7, 5)


@pytest.mark.slow
def test_a_type_checker_sees_the_types_of_an_installed_package_through_the_lazy_imports(tmp_path: Path) -> None:
    """py.typed, in the wheel by package-data, is what makes it look."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(str(Path(torch.__file__).parent.parent))
    shutil.copytree(Path(sae_cli.__file__).parent, site / "sae_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine.py").write_text(
        "from sae_cli import ActivationStore, ablate, load_sae, steer\n"
        'sae = load_sae("runs/x")\n'
        "reveal_type(sae.forward)\n"
        'reveal_type(next(ActivationStore("model=tiny").batches(8)))\n'
        "ablate(sae, [1, 2], first=1)\n"
        'steer(sae, "twelve", 1.0)\n'
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", "cache", "--python-executable", "env/bin/python", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("mine.py")]
    tensor = "torch._tensor.Tensor"
    assert len(found) == 3, done.stdout + done.stderr
    assert f"def (x_BD: {tensor}) -> tuple[{tensor}, {tensor}]" in found[0]
    assert f'Revealed type is "{tensor}"' in found[1]
    assert 'Argument 2 to "steer" has incompatible type "str"' in found[2]


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
