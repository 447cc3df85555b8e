"""Least work of a step, counted by hand."""

from sae_cli.bench.work import Work

B, D, F, L0 = 8, 3, 10, 2


def test_sparse_steps_have_one_dense_product_and_touch_a_row_per_latent_that_fires():
    work = Work.of(B, D, F, L0, narrow=True, sparse=True)
    assert work.flops == 2 * B * D * F
    assert work.entry_bytes == 4 * (B * L0) * D * 2
    assert work.latent_bytes == 2 * B * F * 2
    assert work.parameter_bytes == 32 * (2 * D * F + F + D)


def test_dense_steps_have_five_products_in_their_precision():
    work = Work.of(B, D, F, L0, narrow=False, sparse=False)
    assert work.flops == 5 * 2 * B * D * F
    assert work.entry_bytes == 0
    assert work.latent_bytes == 8 * B * F * 4
