"""Triton's kernels on a GPU, at larger shapes than its interpreter can take; run by `make gpu-check`."""

import pytest
import torch

pytestmark = pytest.mark.gpu

SHAPE = (128, 2048, 64)
"""Rows, latents and width of a step's batch."""


@pytest.fixture
def cases():
    from tests.sparse import triton_cases  # which needs triton

    return triton_cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("K", "B", "F", "D"), [(1, 1, 1, 1), (1, 700, 4100, 256), (3, 200, 900, 100), (2, 4096, 40, 768), (1, 9, 70, 5000)]
)
def test_products_over_a_stacks_entries_equal_dense_products(cases, K, B, F, D, dtype):
    cases.check_products(K, B, F, D, dtype, "cuda")


@pytest.mark.parametrize(("ks", "F"), [([50], 24576), ([5, 300, 1], 3001), ([64, 32], 70001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_each_row_are_found(cases, ks, F, dtype):
    cases.check_largest(ks, 40, F, dtype, "cuda")


def trained(cases, folder, words, K, path, precision, steps=3):
    (B, F, D), words = SHAPE, (*words, f"train.precision={precision}")
    stepper = cases.make_stepper(folder, words, K, B, F, "cuda", path, D)
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        stepper.step(step, torch.randn(B, D, generator=generator).cuda())
    return stepper


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("name", ["relu", "prolu", "topk", "batchtopk", "jumprelu"])
def test_sparse_steps_equal_dense_steps_and_repeat_to_the_bit(cases, tmp_path, name, K):
    words = cases.STEPS[name]
    dense, sparse = (trained(cases, tmp_path, words, K, path, "fp32") for path in ("dense", "sparse"))
    cases.assert_same_steps(sparse, dense, 1e-4)
    first, again = (trained(cases, tmp_path, words, K, "sparse", "bf16").stack.state() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", ["relu", "topk", "batchtopk", "jumprelu"])
def test_no_host_sync_but_for_the_number_of_entries(cases, tmp_path, name):
    stepper = trained(cases, tmp_path, (*cases.STEPS[name], "orthogonality=none"), 3, "sparse", "bf16", steps=1)
    x_BD = torch.randn(SHAPE[0], SHAPE[2], device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.step(1, x_BD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(stepper.take_metrics(2)).all()
