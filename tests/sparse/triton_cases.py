"""What Triton's operators and a stack's step through them must equal, on a CPU (interpreted) and on a GPU."""

import torch

from sae_cli.dictionary.stack import SAEStack
from sae_cli.sparse.triton_operators import Triton
from sae_cli.training import adam, step, terms
from sae_cli.training.step import Stepper
from tests.training.points import point

STEPS = {
    "relu": ("sae=relu", "sparsity=sqrt_l1", "sae.decoder_norm=free"),
    "prolu": ("sae=prolu_ste", "orthogonality=nearest", "orthogonality.weight=0.3"),
    "topk": ("sae=topk", "sae.auxk_weight=0.25", "sae.auxk_latents=3"),
    "batchtopk": ("sae=batchtopk",),
    "jumprelu": ("sae=jumprelu", "sae.bandwidth=0.3", "sparsity=l0", "sparsity.bandwidth=0.4"),
}


def drawn(K, B, F, dtype=torch.float32, device="cpu"):
    """Return m and offsets; the stack has a row without entries and one of nothing else, and such latents."""
    generator = torch.Generator().manual_seed(K + B + F)
    m_KBF = torch.randn(K, B, F, generator=generator)
    m_KBF[:, B // 3] = -9
    m_KBF[0, :, F // 2] = -9
    m_KBF[-1, B // 2] = 3
    m_KBF[-1, :, F // 3] = 4
    offset_KF = torch.randn(K, F, generator=generator) * 0.3 - 0.5
    return m_KBF.to(dtype).to(device), offset_KF.to(device)


def check_found(K, B, F, dtype, device="cpu"):
    """Compare what is found with a dense mask; return it with the entries and their m."""
    operators = Triton()
    m_KBF, offset_KF = drawn(K, B, F, dtype, device)
    m_KBF[0, 0, 0] = torch.nan
    open_KBF = ~(m_KBF.float() + offset_KF.unsqueeze(1) <= 0)
    found = operators.find(m_KBF, offset_KF, [0] * K, K * B * F)
    assert operators.find(m_KBF, offset_KF, [0] * K, int(open_KBF.sum()) - 1) is None
    entries, m_N = found
    k_N, b_N, f_N = open_KBF.nonzero(as_tuple=True)
    assert torch.equal(entries.columns_N, (k_N * F + f_N).int())
    assert torch.equal(entries.row_N, (k_N * B + b_N).int())
    assert torch.equal(entries.starts_R[1:], open_KBF.flatten(0, 1).sum(1).cumsum(0).int())
    assert entries.sizes == open_KBF.sum((1, 2)).tolist()
    torch.testing.assert_close(m_N, m_KBF[open_KBF].float(), rtol=0, atol=0, equal_nan=True)
    return open_KBF, entries, m_N


def check_products(K, B, F, D, dtype, device="cpu"):
    """Compare every product over the entries of a stack with dense ones in fp64."""
    operators = Triton()
    open_KBF, entries, m_N = check_found(K, B, F, dtype, device)
    k_N = open_KBF.nonzero(as_tuple=True)[0]
    order_N = entries.columns_N.argsort(stable=True)
    starts_C, rows_N, orders_N = entries.by_column
    assert torch.equal(orders_N, order_N.int())
    assert torch.equal(rows_N, entries.row_N[order_N])
    assert torch.equal(starts_C[1:], open_KBF.sum(1).flatten().cumsum(0).int())

    generator = torch.Generator().manual_seed(1)
    W_KFD, G_KBD = (torch.randn(K, n, D, generator=generator).to(dtype).to(device) for n in (F, B))
    b_KD, values_N = (torch.randn(*shape, generator=generator).to(device) for shape in ((K, D), (len(m_N),)))
    f_KBF = torch.zeros(K, B, F, dtype=torch.float64, device=device)
    f_KBF[open_KBF] = values_N.double()
    for target_TD in (G_KBD[0].float(), G_KBD.flatten(0, 1).float()):  # the members', or one for each
        e_KBD = f_KBF @ W_KFD.double() + b_KD.double().unsqueeze(1) - target_TD.double().view(-1, B, D)
        made = operators.decode(entries, values_N, W_KFD.flatten(0, 1), b_KD, target_TD)
        assert made[0].dtype == dtype
        close(made[0], e_KBD.flatten(0, 1), 2**-7 if dtype == torch.bfloat16 else 1e-5)  # interpreted, bf16 is cut off
        close(made[1], e_KBD.square().sum(2).flatten())
        close(made[2], (e_KBD @ W_KFD.double().mT)[open_KBF])
    sums_KFD = f_KBF.mT @ G_KBD.double()
    close(operators.accumulate(entries, values_N, G_KBD.flatten(0, 1), False), sums_KFD.flatten(0, 1))
    close(operators.accumulate(entries, values_N, G_KBD.flatten(0, 1), True), sums_KFD.mT)
    close(operators.column_sums(entries, values_N), f_KBF.sum(1).flatten())
    close(operators.member_sums(entries, values_N), f_KBF.sum((1, 2)))
    assert torch.equal(entries.each(torch.arange(K, device=device)).expand(len(m_N)), k_N)


def close(made, expected, rtol=1e-5):
    """Compare fp32 sums, whose rounding errors grow with the largest of them."""
    torch.testing.assert_close(made.double(), expected, rtol=rtol, atol=1e-5 * float(expected.abs().max()) + 1e-6)


def check_largest(ks, B, F, dtype, device="cpu"):
    """Compare the largest of each row with a stable sort: of equal ones the first."""
    m_KBF, offset_KF = drawn(len(ks), B, F, dtype, device)
    m_KBF, offset_KF = (m_KBF * 2).round() / 2, torch.zeros_like(offset_KF)  # many ties
    m_KBF[0, 1, :2] = torch.nan
    m_KBF[0, 0, 0] = torch.inf
    entries, m_N = Triton().find(m_KBF, offset_KF, ks, sum(ks) * B)
    assert Triton().find(m_KBF, offset_KF, ks, sum(ks) * B - 1) is None
    assert entries.sizes == [k * B for k in ks]
    places = m_KBF.float().sort(dim=2, descending=True, stable=True).indices
    columns = [(member * F + places[member, :, :k].sort(1).values).flatten() for member, k in enumerate(ks)]
    assert torch.equal(entries.columns_N, torch.cat(columns).int())
    assert torch.equal(entries.starts_R.diff(), entries.row_N.bincount(minlength=len(ks) * B).int())
    expected_N = m_KBF[entries.row_N // B, entries.row_N % B, entries.columns_N % F].float()
    torch.testing.assert_close(m_N, expected_N, rtol=0, atol=0, equal_nan=True)


def make_stepper(folder, words, members, batch, latents, device, path, width=12):
    """Return a stepper of members that differ in what may differ, all in one part."""
    fixed = (f"source.width={width}", f"sae.latents={latents}", f"train.batch={batch}", f"train.tokens={100 * batch}")
    own = [(f"seed={k}", f"train.lr={1e-3 * (k + 1)}", f"sae.k={3 + k}", "sae.bias_init=-0.1") for k in range(members)]
    configs = [point(folder, *fixed, *words, *own[k], f"train.sparse={path}", "train.warmup=0") for k in range(members)]
    stepper = Stepper(SAEStack.initialise(configs, torch.zeros(width), device, torch.empty(0)), configs, device)
    stepper.parts = [slice(0, members)]
    return stepper


def through_triton(monkeypatch):
    """Let steps on any device take Triton's operators."""
    for module in (terms, step, adam):
        monkeypatch.setattr(module, "operators", lambda device, size: Triton())


def assert_same_steps(sparse, dense, rtol):
    """Compare parameters, counters, moments and metrics of two steppers."""
    for name, tensor in dense.stack.state().items():
        assert (sparse.stack.state()[name] - tensor).norm() <= rtol * tensor.norm(), name
    assert torch.equal(sparse.last_fired_KF, dense.last_fired_KF)
    torch.testing.assert_close(sparse.take_metrics(1), dense.take_metrics(1), rtol=max(rtol, 1e-4), atol=1e-6)
    for k in range(dense.stack.members):
        for name, state in dense.adam.state(k).items():
            mine = sparse.adam.state(k)[name]
            assert mine["step"] == state["step"]
            for moment in ("exp_avg", "exp_avg_sq"):
                assert (mine[moment] - state[moment]).norm() <= 10 * rtol * state[moment].norm(), (name, moment)
