"""Every link of every document leads somewhere, as a reader of the repository and as a visitor of the site sees it."""

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

from tests.docs.blocks import PAGES, ROOT, identify, prose_of
from tests.docs.site import HOOKS

LINKS = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
GENERATED = {ROOT / "docs" / uri: text for uri, text in HOOKS.pages().items()}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINKS.findall(re.sub(r"`[^`\n]*`", "", prose_of(page))):
        if "://" in link:
            parts = urlparse(link)
            assert parts.scheme == "https", link
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() or (target in GENERATED and page.is_relative_to(ROOT / "docs")), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings; mkdocs and GitHub make the same of plain ones."""
    text = prose_of(page) if page.exists() else GENERATED[page]
    titles = re.findall("^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_a_link_that_leads_nowhere_is_found() -> None:
    assert "behind-a-url" in anchors(ROOT / "docs" / "cache-format.md")
    assert "behind-an-url" not in anchors(ROOT / "docs" / "cache-format.md")
