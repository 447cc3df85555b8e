"""The tutorial and the how-tos, block after block in a copy of the checkout, at a few rows."""

from pathlib import Path

import pytest

from tests.docs.blocks import RUN, blocks_of, identify
from tests.docs.shell import Checkout
from tests.store.conftest import s3_server  # noqa: F401 (a fixture)


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Make the empty s3://bucket of the page about remote caches."""
    import s3fs

    words = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    for name, value in words.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    if not (store := s3fs.S3FileSystem()).exists("bucket"):
        store.mkdir("bucket")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=identify)
def test_a_page_does_what_it_says(page: Path, bucket: None, tmp_path: Path) -> None:
    checkout, blocks = Checkout(tmp_path), blocks_of(page)
    assert any(block.language in ("sh", "python") and not block.note for block in blocks)
    for block in blocks:
        checkout.run(block)
