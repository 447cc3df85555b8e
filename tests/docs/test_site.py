"""The site: built without a warning, complete, without a request to anywhere, usable on a phone."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import sae_cli
from sae_cli.cli import app
from sae_cli.config.groups import GROUPS, choices
from sae_cli.config.keys import by_name
from tests.docs.blocks import ROOT
from tests.docs.site import HOOKS, build

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    build(folder)
    return folder


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    loading = r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//[^>]*"""
    for page in pages:
        assert not re.findall(loading, page.read_text()), page
    assert not re.findall(r"url\([\"']?(?:https?:)?//[^)]*", "".join(file.read_text() for file in site.rglob("*.css")))


def test_the_reference_has_every_key_group_command_and_name() -> None:
    pages = {uri: unescape(text) for uri, text in HOOKS.pages().items()}
    keys = {re.sub("<[^>]+>", "", key) for key in re.findall("<code>(.+?)</code>", pages["reference/keys.md"])}
    assert by_name().keys() <= keys
    for group in GROUPS:
        section = pages["reference/groups.md"].split(f"\n## {group}\n")[1].split("\n## ")[0]
        found = re.findall('<td class="name"><code>(.+?)</code>', section)
        assert found == list(choices(group))
    assert {f"## sae {name}" for name in get_command(app).commands} <= set(pages["reference/commands.md"].splitlines())
    assert {f"## {name}" for name in sae_cli.__all__} <= set(pages["reference/library.md"].splitlines())


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("[a](docs/scaling.md#curves)", "README.md", "[a](scaling.md#curves)"),
        ("[a](CONTRIBUTING.md)", "README.md", "[a](contributing.md)"),
        ("[the notice](NOTICE), [NOTICE](NOTICE)", "README.md", "the notice (`NOTICE`), NOTICE"),
        ("[a](docs/notebook.ipynb)", "README.md", "[a](notebook.md)"),
        ("[a](../../README.md)", "docs/how-to/ray.md", "[a](../index.md)"),
        ("[a](../scaling.md), [b](https://example.org/x)", "docs/how-to/ray.md", None),
    ],
)
def test_links_are_those_of_the_site(text: str, page: str, expected: str | None) -> None:
    uri = HOOKS.OUTSIDE.get(page, page.removeprefix("docs/"))
    assert HOOKS.relinked(text, ROOT / page, uri) == (text if expected is None else expected)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield one
        one.close()


@pytest.mark.browser
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_pages_fit_and_search_works_from_the_disk(site: Path, browser: Any, size: dict[str, int]) -> None:
    page = browser.new_page(viewport=size)
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    for name in ("index", "tutorial", "reference/keys", "reference/commands", "errors", "results/which-penalty"):
        page.goto(f"file://{site}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], name
    if size is PHONE:
        page.click("label.md-header__button[for=__search]")
    else:
        page.click("input.md-search__input")
    page.wait_for_function("document.querySelector('.md-search-result__meta').innerText.startsWith('Type')")
    page.locator("input.md-search__input").press_sequentially("shrinkage")
    page.wait_for_function("document.querySelectorAll('.md-search-result__link').length > 2")
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    page.close()


def test_a_notebook_becomes_a_page(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    expected = "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```"
    assert HOOKS.notebook(tmp_path / "one.ipynb") == expected
