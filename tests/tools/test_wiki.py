"""Packing of the text sample."""

import gzip
import json
import random

from tools.wiki import write_wiki


def summaries(tmp_path, count=300):
    draw = random.Random(0)
    names = [f"Title {draw.random()}" for _ in range(count)]
    records = {name: {"title": name, "extract": f"Text ü of {draw.random()}", "topic": "Arts"} for name in names}
    path = tmp_path / "summaries.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path, records


def lines_of(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_keeps_title_and_text_in_order_of_title(tmp_path):
    path, records = summaries(tmp_path)
    assert write_wiki(path, tmp_path / "wiki.jsonl.gz") == len(records)
    expected = [{"title": name, "text": records[name]["extract"]} for name in sorted(records)]
    assert lines_of(tmp_path / "wiki.jsonl.gz") == expected


def test_packing_again_gives_the_same_bytes(tmp_path):
    path, _ = summaries(tmp_path)
    write_wiki(path, tmp_path / "a.gz")
    write_wiki(path, tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_leaves_the_last_titles_out_where_all_are_too_large(tmp_path):
    path, records = summaries(tmp_path)
    count = write_wiki(path, tmp_path / "wiki.jsonl.gz", largest=4_000)
    assert 0 < count < len(records)
    assert (tmp_path / "wiki.jsonl.gz").stat().st_size <= 4_000
    assert [line["title"] for line in lines_of(tmp_path / "wiki.jsonl.gz")] == sorted(records)[:count]
