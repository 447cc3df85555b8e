"""The tutorial and the how-tos, block after block in a copy of the checkout, at a few rows."""

from pathlib import Path

import pytest

from tests.docs.blocks import RUN, blocks_of, identify
from tests.docs.shell import Checkout


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=identify)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    checkout, blocks = Checkout(tmp_path), blocks_of(page)
    assert any(block.language in ("sh", "python") and not block.note for block in blocks)
    for block in blocks:
        checkout.run(block)
