"""The sparse path against the dense one: terms, gradients, and whole runs."""

import pytest
import torch

from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.stack import SAEStack
from sae_cli.sources.registry import open_source
from sae_cli.sparse import functions
from sae_cli.sparse.compiled import Compiled, library
from sae_cli.sparse.operators import Operators
from sae_cli.training import terms
from sae_cli.training.loss import Weights, losses
from sae_cli.training.step import Stepper
from tests.training.points import point

B, D, F = 40, 12, 48
CASES = [
    ("sae=relu", "sparsity=l1", "train.precision=fp32"),
    ("sae=relu", "sparsity=sqrt_l1"),
    ("sae=relu", "sparsity=l0", "sparsity.bandwidth=0.4"),
    ("sae=relu", "sparsity=tanh", "sae.decoder_norm=free"),
    ("sae=relu", "sparsity=sqrt_l1", "sae.decoder_norm=free", "sae.preact_weight=0.3"),
    ("sae=prolu_relu",),
    ("sae=prolu_ste", "orthogonality=nearest", "orthogonality.weight=0.5"),
    ("sae=prolu_ste", "sae.ste=window"),
    ("sae=prolu_mixed", "sae.alpha_m=0.5", "sae.alpha_b=0.3", "sae.ste=clamp_0_1"),
    ("sae=prolu_hybrid", "sae.alpha_m=0.5", "sae.alpha_b=0.3"),
    ("sae=trec", "sparsity=l1"),
    ("sae=jumprelu", "sae.bandwidth=0.6"),
    ("sae=jumprelu", "sae.bandwidth=0.1", "sparsity.bandwidth=0.7", "sae.preact_weight=0.1"),
    ("sae=topk", "sae.k=5", "sae.auxk_weight=0.25", "sae.auxk_latents=3"),
    ("sae=topk", "sae.k=48", "sae.decoder_norm=free"),
    ("sae=batchtopk", "sae.k=6"),
]
DENSE_ONLY = [
    ("sae=gated",), ("sae=tlin",), ("sae=prolu_ste", "sae.ste=exp"), ("sae=relu", "sae.prefixes=[0.5]"),
    ("sae=topk", "sae.k=3", "sparsity.kind=l0"), ("train.sparse=dense",),
]  # fmt: skip


def drawn(config, bias=-0.5):
    """Return a member of random parameters; one latent in five never fires."""
    stack = SAEStack.initialise([config], torch.zeros(D), "cpu", torch.empty(0)).part(slice(None))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in stack.tensors().items():
            scale = 0.3 if name in ("W_enc_KDF", "b_enc_KF", "log_threshold_KF") else 1.0
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
        stack.b_enc_KF += bias
        stack.b_enc_KF[:, ::5] = -99
        stack.W_enc_KDF[:, :, ::5] = 0
    return stack


def measure(folder, words, mode, stack=None, x=None):
    """Return the losses and the gradients of all parameters."""
    config = point(folder, "orthogonality=none", f"sae.latents={F}", *words, f"train.sparse={mode}")
    stack = drawn(config) if stack is None else stack
    x_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(6)) if x is None else x
    dead_KF = torch.zeros(1, F, dtype=torch.bool)
    dead_KF[:, ::5] = True
    weights = Weights(torch.tensor([0.7]), torch.tensor([0.5]), [config.orthogonality.weight != 0])
    found = losses(stack, config, x_BD, dead_KF, weights, 0, [{}])
    gradients = torch.autograd.grad(found.loss_K.sum(), list(stack.tensors().values()), materialize_grads=True)
    return found, dict(zip(stack.tensors(), gradients, strict=True))


@pytest.fixture(params=["torch", "compiled"])
def operators(request, monkeypatch):
    compiled = library()
    chosen = Operators() if request.param == "torch" or compiled is None else Compiled(compiled)
    monkeypatch.setattr(terms, "operators", lambda device, size: chosen)
    return chosen


def assert_same(sparse, dense):
    (found, gradients), (expected, wanted) = sparse, dense
    assert found.acts.shape[:2] == (1, 1)
    assert expected.acts.shape == (1, B, F)
    assert torch.equal(found.counts_KF, expected.counts_KF)
    for name in ("mse_K", "sparsity_K", "omega_K", "auxiliary_K", "loss_K"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_sparse_terms_and_gradients_equal_dense_ones(tmp_path, operators, words):
    sparse, dense = (measure(tmp_path, words, mode) for mode in ("sparse", "dense"))
    assert_same(sparse, dense)
    assert all(gradient.any() for name, gradient in sparse[1].items() if name != "b_enc_KF" or "trec" not in words[0])


@pytest.mark.parametrize("words", DENSE_ONLY, ids=" ".join)
def test_where_gradients_reach_further_products_are_dense(tmp_path, words):
    config = point(tmp_path, *words)
    assert terms.entry_reach(config, NONLINEARITIES[config.sae.nonlinearity]) is None


def test_rows_without_latents_and_all_dead_latents(tmp_path, operators):
    for words in (("sae=relu",), ("sae=topk", "sae.k=3"), ("sae=batchtopk", "sae.k=3")):
        config = point(tmp_path, f"sae.latents={F}", *words)
        x_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(6))
        x_BD[::3] = drawn(config).b_dec_KD[0].detach()  # m is 0 there, and all biases are negative
        assert_same(*(measure(tmp_path, words, mode, drawn(config, -2), x_BD) for mode in ("sparse", "dense")))
        silent = [measure(tmp_path, words, mode, drawn(config, -999)) for mode in ("sparse", "dense")]
        assert_same(*silent)
        assert not silent[0][0].counts_KF.any()


@pytest.mark.parametrize("words", [("sae=relu",), ("sae=topk", "sae.k=3"), ("sae=batchtopk", "sae.k=3")])
def test_what_is_not_finite_reaches_the_loss(tmp_path, operators, words):
    stack = drawn(point(tmp_path, f"sae.latents={F}", *words))
    with torch.no_grad():
        stack.W_enc_KDF[0, 3, 7] = torch.nan
    assert measure(tmp_path, words, "sparse", stack)[0].loss_K.isnan().all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_auto_takes_dense_products_where_many_latents_fire(tmp_path, monkeypatch, share):
    monkeypatch.setattr(Operators, "auto_from", 1)
    monkeypatch.setattr(Operators, "wide_share", share)
    found, _ = measure(tmp_path, ("sae=relu",), "auto")
    assert (found.acts.shape == (1, B, F)) == (share == 0)


@pytest.mark.parametrize(
    "words",
    [("sae=relu", "sae.bias_init=-0.2", "train.lr=2e-3"), ("sae=topk", "sae.k=4", "train.lr=2e-3")],
    ids=" ".join,
)
def test_200_sparse_bf16_steps_end_at_the_loss_of_dense_fp32_ones(tmp_path, monkeypatch, words):
    monkeypatch.setattr(functions, "COMPILED_FROM", 1)
    source = open_source(point(tmp_path, "source.width=32"), "cpu")
    batches = [x_BD * source.scale for _, x_BD in zip(range(200), source.batches(0, 256), strict=False)]
    ends = {}
    for mode, precision in (("dense", "fp32"), ("sparse", "fp32"), ("sparse", "bf16")):
        paths = (f"train.sparse={mode}", f"train.precision={precision}")
        config = point(tmp_path, *words, "sae.latents=96", "train.tokens=51200", "train.batch=256", *paths)
        stack = SAEStack.initialise([config], source.mean_D * source.scale, "cpu", torch.empty(0))
        stepper, found = Stepper(stack, [config], "cpu"), []
        for step, x_BD in enumerate(batches):
            stepper.step(step, x_BD)
            found.append(stepper.take_metrics(1)[0, 0].item())
        ends[mode, precision] = sum(found[-40:]) / 40
        assert ends[mode, precision] < 0.5 * found[0]
    assert ends["sparse", "fp32"] == pytest.approx(ends["dense", "fp32"], rel=1e-3)
    assert ends["sparse", "bf16"] == pytest.approx(ends["dense", "fp32"], rel=0.01)
