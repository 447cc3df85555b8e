"""The file: all of the data, once, as text that cannot be markup; and refusals."""

import copy
import json
import re
from collections.abc import Callable, Iterator

import pytest

from sae_cli.reporting.dashboard import CHUNK, COLUMNS, write_dashboard
from tests.reporting.fake_dashboard import content

BLOCK = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def data():
    return content(latents=CHUNK + 7, examples=4)


@pytest.fixture(scope="module")
def html(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep" / "features.html"
    assert write_dashboard(data, out) == out
    return out.read_text()


def test_data_comes_back_from_the_file(html, data):
    page, *blocks = [json.loads(text) for text in BLOCK.findall(html)]
    assert [len(block) for block in blocks] == [CHUNK, 7]
    for key, value in data.items():
        assert ([one for block in blocks for one in block] if key == "details" else page[key]) == value


def test_index_names_peaks_of_examples_and_positive_logits(html, data):
    index = json.loads(BLOCK.search(html)[1])["index"]
    for detail, peaks, promoted in zip(data["details"], index["peaks"], index["promoted"], strict=True):
        examples = [one for group in detail["groups"] for one in group["examples"]]
        assert peaks == [one["t"][one["at"]] for one in examples]
        assert promoted == [token for token, _ in detail["positive"]]


def test_strings_stand_once_and_escaped(tmp_path):
    words = iter(f"</script><b>&'\"\\ {n}\n" for n in range(10_000, 20_000))
    data = content(latents=2, examples=2)
    data |= {key: next(words) for key in ("title", "run")}
    data["facts"] = [[next(words), next(words)]]
    data["tokens"] = [next(words) for _ in data["tokens"]]
    data["other"] = {"name": next(words), "run": next(words), "page": next(words)}
    html = write_dashboard(data, tmp_path / "d.html").read_text()
    for word in (data["title"], data["run"], *data["facts"][0], *data["tokens"], *data["other"].values()):
        assert html.count(json.dumps(word)[1:-1].replace("<", "\\u003c")) == 1
    assert "<b>" not in html.replace('"', "").split("</style>")[1].split("<noscript>")[1]
    assert html.count("</script>") == html.count("<script") == 3


def test_page_asks_for_nothing(html):
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|href)\s*=\s*["']?\w|@import|url\(|https?://(?!www\.w3\.org)""", BLOCK.sub("", html))


def _broken() -> Iterator[tuple[str, Callable[[dict], object]]]:
    keys = content(latents=3, examples=2)
    yield from ((key, lambda data, key=key: data.pop(key)) for key in keys)
    yield from ((f"columns.{key}", lambda data, key=key: data["columns"].pop(key)) for key in keys["columns"])
    wanted = ("counts", "neighbours", "groups", "constituents", "explained")
    yield from ((f"details[1].{key}", lambda data, key=key: data["details"][1].pop(key)) for key in wanted)
    yield "columns.bias", lambda data: data["columns"]["bias"].pop()
    yield "details[0].counts", lambda data: data["details"][0]["counts"].append(0)
    yield "details[2].groups", lambda data: data["details"][2]["groups"][0]["examples"][0].update(at=33)
    yield "details[2].groups", lambda data: data["details"][2]["groups"][0]["examples"][0]["a"].pop()
    yield "details[2].groups", lambda data: data["details"][2]["groups"][0]["examples"][0]["t"].__setitem__(0, 9999)
    yield "details[2].groups", lambda data: data["details"][2]["groups"][1]["examples"][0].pop("position")
    yield "details", lambda data: data.update(details=[], columns={key: [] for key in COLUMNS})
    yield "edges", lambda data: data["edges"].__setitem__(0, 0)
    yield "JSON", lambda data: data["columns"]["max"].__setitem__(0, float("nan"))


@pytest.mark.parametrize(("named", "damage"), list(_broken()))
def test_malformed_content_is_refused(named, damage, tmp_path):
    data = copy.deepcopy(content(latents=3, examples=2))
    damage(data)
    with pytest.raises(ValueError, match=re.escape(named)):
        write_dashboard(data, tmp_path / "d.html")
    assert not list(tmp_path.iterdir())


def test_vectors_and_no_other_sae(tmp_path):
    data = content(latents=3, text=False, other=None)
    html = write_dashboard(data, tmp_path / "d.html").read_text()
    assert json.loads(BLOCK.search(html)[1])["index"] == {"peaks": [[], [], []], "promoted": [[], [], []]}
