"""Row normalisation over another source."""

import torch

from sae_cli.sources.normalised import RowNormalised
from sae_cli.sources.registry import open_source
from tests.training.points import point


def test_rows_have_norm_sqrt_d_and_keep_their_direction_and_order(tmp_path):
    raw = open_source(point(tmp_path, "source.noise=0.1"), "cpu")
    source = RowNormalised(raw)
    x, y = next(raw.batches(3, 50)), next(source.batches(3, 50))
    torch.testing.assert_close(y.norm(dim=1), torch.full((50,), 12**0.5))
    torch.testing.assert_close(torch.cosine_similarity(x, y), torch.ones(50))
    assert source.scale == 1
    # E||y - mean||^2 = E||y||^2 - ||mean||^2 = D - ||mean||^2
    assert abs(source.variance - (12 - float(source.mean_D.square().sum()))) < 1e-3
