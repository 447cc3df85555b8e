"""Pages made of hostile words, opened in Chromium (`-m browser`): nothing of them runs or becomes an element."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_cli.interop.card import model_card, training_figure
from sae_cli.reporting.dashboard import write_dashboard
from sae_cli.reporting.report import write_report
from tests.reporting import fake, fake_dashboard
from tests.reporting.conftest import browser  # noqa: F401 (a fixture)
from tests.reporting.test_composites import content

pytestmark = pytest.mark.browser

PAYLOADS = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</title></style></textarea></svg><svg onload=alert(1)>",
    "\"'><b onmouseover=alert(1) onfocus=alert(1) autofocus tabindex=0>",
    "<a href='javascript:alert(1)' onclick=alert(1)>x</a>",
    "%{x}%{customdata}<extra><img src=x onerror=alert(1)></extra>",
    "<!--<script>alert(1)",
    "{{ 7 * 7 }}${alert(1)}`+alert(1)+`\\u003cimg src=x onerror=alert(1)>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "javascript:alert(1)",
]
FOUND = (
    "document.querySelectorAll('[onerror],[onload],[onmouseover],[onfocus],[onclick],img[src=x],a[href^=java]').length"
)


def poisoned(value: Any, turn: int = 0) -> Any:
    """Return JSON with a payload behind every text in it."""
    match value:
        case str():
            return value + PAYLOADS[(len(value) + turn) % len(PAYLOADS)]
        case dict():
            return {key: poisoned(one, turn + len(key)) for key, one in value.items()}
        case list():
            return [poisoned(one, turn + index) for index, one in enumerate(value)]
    return value


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = fake.write_sweep(tmp_path_factory.mktemp("p") / "runs<b onclick=alert(1)>", truth=True, seeds=2)
    kept = ("kind", "nonlinearity", "precision", "processing", "dtype", "device", "parallel")
    for turn, run in enumerate(sorted(runs.iterdir())):
        config = yaml.safe_load((run / "config.yaml").read_text())
        for section in ("model", "text", "source"):
            config[section] |= {k: v if k in kept else poisoned(v, 0) for k, v in config[section].items()}
        config["sae"]["nonlinearity"] += PAYLOADS[0]
        config["orthogonality"]["kind"] += PAYLOADS[1] * (config["orthogonality"]["kind"] != "none")
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        status = json.loads((run / "status.json").read_text())
        status |= {"run_id": poisoned(run.name, turn), "error": "".join(PAYLOADS)}
        (run / "status.json").write_text(json.dumps(status | {"state": "failed" if turn == 1 else status["state"]}))
        (run / "stamp.json").write_text(json.dumps(poisoned({"device": "cpu", "run_id": "x"}, turn)))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line | dict.fromkeys(PAYLOADS, 1.0) for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        compare = content() | {
            key: poisoned(content()[key], turn) for key in ("dictionaries", "similarity", "splitting")
        }
        (run / "compare.json").write_text(json.dumps(compare if turn % 2 else {"version": "".join(PAYLOADS)}))
        (run / "dashboard.html").write_text("x")
        run.rename(runs / f"{run.name}{PAYLOADS[turn % len(PAYLOADS)].replace('/', '')}")
    return Path(write_report([runs], runs.parent / "report.html")["report"])


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = fake_dashboard.content()
    texts = {key: poisoned(data[key]) for key in ("title", "run", "facts", "other", "tokens") if data[key]}
    return write_dashboard(data | texts, tmp_path_factory.mktemp("f") / "features.html")


@pytest.mark.parametrize("name", ["report", "features"])
def test_nothing_of_a_payload_runs(name: str, browser: Any, request: pytest.FixtureRequest) -> None:  # noqa: F811
    file = request.getfixturevalue(name)
    page = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce").new_page()
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else 0
    )
    page.goto(file.as_uri())
    page.wait_for_selector(".example" if name == "features" else ".points tbody tr")
    assert "onerror" in page.inner_text("body")  # the words are there, as text
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        for x in range(10, int(box["width"]) if box else 0, 60):
            plot.hover(position={"x": x, "y": box["height"] / 2}, force=True)
    for button in page.locator("button:visible, summary:visible, [role=tab]:visible").all()[:60]:
        button.click(force=True, timeout=2000, no_wait_after=True)
    page.mouse.move(300, 300)
    assert page.evaluate(FOUND) == 0
    assert page.evaluate("document.title").count("<") == page.title().count("<")
    assert said == []
    page.context.close()


def test_a_figure_of_training_and_a_card_hold_numbers_and_fenced_text(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    lines = [{"step": step, "fvu": 0.5 / step, "l0": 9.0, **dict.fromkeys(PAYLOADS, 1)} for step in (1, 2, 3)]
    lines += [{"step": payload, "fvu": payload, "l0": payload} for payload in PAYLOADS]
    (tmp_path / "training.svg").write_text(training_figure(lines))
    page = browser.new_page()
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto((tmp_path / "training.svg").as_uri())
    assert page.evaluate("document.querySelectorAll('polyline').length") == 2
    assert page.evaluate(FOUND) == 0
    assert said == []
    page.close()
    card = model_card("a\n# b" + PAYLOADS[0], "saelens", "sae ```\n<script>", "name: |\n  ```\n  <script>\n", None, "")
    blocks = re.compile(r"^(`{3,})\w*\n.*?^\1$", re.DOTALL | re.MULTILINE)
    assert len(blocks.findall(card)) == 3
    assert "<" not in blocks.sub("", card)
