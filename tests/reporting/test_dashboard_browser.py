"""The feature page in a real browser; needs Chromium and playwright, so it runs only with `-m browser`."""

import re

import pytest

from sae_cli.reporting.dashboard import write_dashboard
from tests.reporting.fake_dashboard import HOSTILE, SILENT, STRONG, TOKENS, content

pytestmark = pytest.mark.browser
DATA = content()
COLUMNS = DATA["columns"]
LINKS = "[...document.querySelectorAll('#list a')].map(a => Number(a.hash.slice(1)))"
CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const pixel = (...colours) => {
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const page = getComputedStyle(document.body).backgroundColor;
  return [...document.querySelectorAll('.token')].map((token) => {
    const style = getComputedStyle(token);
    const [ink, shade] = [light(pixel(style.color)), light(pixel(page, style.backgroundColor))];
    const ratio = (Math.max(ink, shade) + 0.05) / (Math.min(ink, shade) + 0.05);
    return [parseFloat(token.style.getPropertyValue('--a') || 0), ratio, pixel(page, style.backgroundColor)];
  });
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_dashboard(DATA, tmp_path_factory.mktemp("page") / "features.html").as_uri()


@pytest.fixture(params=[(1440, "light"), (390, "dark")], ids=["desktop", "phone"])
def page(browser, file, request):
    """The opened page; fails if anything is said on the console or asked for but the file."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500, reduced_motion="reduce"
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url.split("#")[0]))
    page.goto(file)
    page.wait_for_selector(".example")
    yield page
    assert said == []
    assert set(asked) == {file}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def shown(page) -> int:
    return int(page.locator("#name").inner_text().removeprefix("Latent "))


def is_shown(page, latent: int) -> None:
    """Wait for a latent: where a link was followed, the address changes a moment before the page."""
    from playwright.sync_api import expect

    expect(page.locator("#name")).to_have_text(f"Latent {latent}")


def row(k: int) -> str:
    return f"#list a[href='#{COLUMNS['id'][k]}']"


def panel(page) -> None:
    """Make the list visible; on a phone it is a drawer."""
    if page.locator("#menu").is_visible():
        page.locator("#menu").click()


def test_histogram_has_a_bar_per_filled_bin(page):
    filled = [(bin, count) for bin, count in enumerate(DATA["details"][0]["counts"]) if count]
    assert page.locator("svg .bin").count() == len(filled) > 5
    bin, count = filled[-1]
    page.locator("svg .hit").nth(bin).hover()
    low, high = DATA["edges"][bin : bin + 2]
    assert page.locator("#tip").inner_text() == f"{low:#.3g} to {high:#.3g}\n{count:,} rows"


def test_search_finds_tokens_and_a_hit_is_shown(page):
    panel(page)
    page.locator("#search").fill("church")
    church = TOKENS.index(" church")
    peaks = [COLUMNS["id"][k] for k, top in enumerate(COLUMNS["top"]) if top == church]
    promoted = [
        one
        for one, detail in zip(COLUMNS["id"], DATA["details"], strict=True)
        if one not in peaks and any(token == church for token, _ in detail["positive"])
    ]
    found = page.evaluate(LINKS)
    assert peaks
    assert promoted
    assert found == peaks + promoted
    assert page.locator("#hits").inner_text() == f"{len(found)} of 120"
    assert page.locator("#list .head").all_text_contents() == ["examples peak on it", "positive logits hold it"]
    page.locator("#list a").nth(1).click()
    page.wait_for_url(f"**#{found[1]}")
    is_shown(page, found[1])
    panel(page)
    page.locator("#search").fill("#31")
    assert page.evaluate(LINKS) == [31, 310, 313, 316, 319]
    page.locator("#search").press("Enter")
    is_shown(page, 31)
    panel(page)
    page.locator("#search").fill("")
    assert page.evaluate(LINKS) == COLUMNS["id"]


@pytest.mark.parametrize("key", ["id", "density", "max", "nearest", "explained", "bias"])
def test_sorting_both_ways(page, key):
    panel(page)
    page.locator("#sort").select_option(key)
    value = dict(zip(COLUMNS["id"], COLUMNS[key], strict=True))
    for down in (key != "id", key == "id"):
        found = [value[one] for one in page.evaluate(LINKS)]
        known = [one for one in found if one is not None]
        assert known == sorted(value[one] for one in value if value[one] is not None)[:: -1 if down else 1]
        assert found[len(known) :] == [None] * (len(found) - len(known))
        page.locator("#direction").click()


def test_filters_narrow_the_list(page):
    panel(page)
    tests = {
        "alive": lambda k: COLUMNS["density"][k] > 0,
        "dense": lambda k: COLUMNS["density"][k] > 0.01,
        "dead": lambda k: COLUMNS["density"][k] == 0,
        "composite": lambda k: COLUMNS["explained"][k] >= 0.8 and COLUMNS["single"][k] <= 0.6,
        "all": lambda k: True,
    }
    for name, test in tests.items():
        page.locator("#filter button", has_text=name).click()
        assert page.evaluate(LINKS) == [one for k, one in enumerate(COLUMNS["id"]) if test(k)]


def test_marks_of_dense_and_dead_latents(page):
    page.evaluate(f"location.hash = {COLUMNS['id'][STRONG]}")
    page.wait_for_selector("#marks .dense")
    page.evaluate(f"location.hash = {COLUMNS['id'][SILENT]}")
    page.wait_for_selector("#marks :text('dead')")
    assert page.locator("#groups").inner_text() == "Silent on all 1,048,576 rows."


def test_keys_move_through_the_order_of_the_list(page):
    panel(page)
    page.locator("#sort").select_option("density")
    order = page.evaluate(LINKS)
    page.keyboard.press("Escape")
    start = order.index(shown(page))
    for key, by in (("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        is_shown(page, order[start + by])
        assert page.locator("#list [aria-current]").get_attribute("href") == f"#{order[start + by]}"
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.locator("#search").input_value() == "jk"
    is_shown(page, order[start])
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    assert page.locator("#search").input_value() == "jk"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_address_opens_a_latent_and_back_returns(page, file):
    from playwright.sync_api import expect

    page.goto(f"{file}#46")
    is_shown(page, 46)
    page.keyboard.press("j")
    page.wait_for_url("**#49")
    page.go_back()
    page.wait_for_url("**#46")
    is_shown(page, 46)
    page.locator("#cards .rows a").first.click()
    expect(page.locator("#name")).not_to_have_text("Latent 46")
    page.go_back()
    expect(page.locator("#name")).to_have_text("Latent 46")
    page.goto(f"{file}#999999")
    is_shown(page, 46)


def test_constituents_lead_to_the_other_page(page, file):
    link = page.locator("a", has_text="B16").first
    assert link.evaluate("a => a.href") == f"{file.rsplit('/', 2)[0]}/b.html#16"
    assert "≈ 0.51 × B16 (cos 0.59)" in page.locator("#cards").inner_text()


@pytest.mark.parametrize("n", range(len(HOSTILE)))
def test_hostile_tokens_are_shown_literally(page, n):
    from playwright.sync_api import expect

    literal = {"\n": "↵", "‮שלום": "⟨202e⟩שלום", "\u200bзаря": "⟨200b⟩заря"}
    page.evaluate(f"location.hash = {COLUMNS['id'][10 + n]}")
    expect(page.locator("#name")).to_have_text(f"Latent {COLUMNS['id'][10 + n]}")
    want = literal.get(HOSTILE[n], HOSTILE[n])
    if HOSTILE[n] != "\ud800":
        assert page.locator(".peak").first.evaluate("node => node.textContent") == want
        assert page.locator(row(10 + n)).locator("bdi").evaluate("node => node.title") == want
    assert page.locator("main img, main script").count() == 0


def test_shade_follows_the_activation_and_is_readable(page):
    for _ in range(2):
        shades = sorted(page.evaluate(CONTRAST))
        assert shades[0][0] == 0
        assert shades[-1][0] == 100
        assert min(ratio for _, ratio, _ in shades) >= 4.5
        for share, _, colour in shades:
            ends = zip(shades[0][2], shades[-1][2], strict=True)
            assert colour == pytest.approx([low + share / 100 * (high - low) for low, high in ends], abs=2)
        page.keyboard.press("d")


def test_token_tells_its_value_and_place(page):
    example = DATA["details"][0]["groups"][0]["examples"][1]
    peak = page.locator(".peak").nth(1)
    peak.tap() if page.locator("#menu").is_visible() else peak.hover()
    tip = page.locator("#tip").inner_text().split("\n")
    assert tip[1:] == [f"{example['value']:.3g} · 98 % of max", f"context {example['context']} · position 101"]


def test_lines_and_context_switch(page):
    def tokens() -> int:
        return page.locator(".example").first.locator(".token").count()

    assert tokens() == 33
    page.locator("#around button", has_text=re.compile("^±8$")).click()
    assert tokens() == 17
    height = page.locator(".example").first.bounding_box()["height"]
    page.locator("#around button", has_text="all").click()
    assert page.locator(".example").first.bounding_box()["height"] == height
    page.set_viewport_size({"width": 390, "height": 900})
    page.locator("#wrap button", has_text="wrapped").click()
    assert page.locator(".example").first.bounding_box()["height"] > 2 * height


def test_without_text_places_stand_in_for_tokens(browser, tmp_path):
    page = browser.new_page()
    page.goto(write_dashboard(content(text=False, other=None), tmp_path / "vectors.html").as_uri())
    assert page.locator(".example").first.inner_text().split("\n")[-1].endswith("context 0 · position 100")
    assert not page.locator("#bar").is_visible()
    assert page.locator("#cards section").count() == 2
    page.close()
