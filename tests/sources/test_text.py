import gzip
import hashlib
import json
import random
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from sae_cli.config.compose import compose
from sae_cli.config.schema_data import TextConfig
from sae_cli.errors import UserError
from sae_cli.sources.text import documents, text_fingerprint

TEXTS = [f"Document number {i} is about the letter {chr(97 + i % 26)}." for i in range(200)]


def local(path, **changes):
    return TextConfig(name="local", path=str(path), validation=0.25, **changes)


def write_jsonl(path, texts, key="text"):
    data = "".join(json.dumps({key: text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path, texts):
    pyarrow.parquet.write_table(pa.table({"title": ["t"] * len(texts), "text": texts}), path, row_group_size=30)
    return path


def expected(split, share=0.25):
    part = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") / 2**64 < share for t in TEXTS]
    return [text for text, held in zip(TEXTS, part, strict=True) if held == (split == "validation")]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_format_gives_the_same_documents(tmp_path, split):
    for name, write in [("a.jsonl", write_jsonl), ("a.jsonl.gz", write_jsonl), ("a.parquet", write_parquet)]:
        path = write(tmp_path / name, TEXTS)
        assert list(documents(local(path), split)) == expected(split)
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        (folder / f"{i:03}.txt").write_text(text)
    (folder / "notes.md").write_text("no document")
    assert list(documents(local(folder.parent), split)) == expected(split)


def test_parts_do_not_depend_on_the_order(tmp_path):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    path = write_jsonl(tmp_path / "b.jsonl", shuffled)
    held_out = list(documents(local(path), "validation"))
    assert sorted(held_out) == sorted(expected("validation"))
    assert set(held_out).isdisjoint(documents(local(path), "train"))


def test_empty_documents_are_dropped_and_max_documents_counts_the_rest(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", ["", " \n", None, *TEXTS])
    both = [*documents(local(path, max_documents=50), "train"), *documents(local(path, max_documents=50), "validation")]
    assert sorted(both) == sorted(TEXTS[:50])


def test_bundled_text():
    text = TextConfig(name="wiki", path="bundled:wiki")
    held_out = sum(1 for _ in documents(text, "validation"))
    train = sum(1 for _ in documents(text, "train"))
    assert train > 9000
    assert abs(held_out / (held_out + train) - 0.05) < 0.01


def test_hugging_face_datasets_from_a_folder(tmp_path):
    write_parquet(tmp_path / "part.parquet", TEXTS)
    streamed = TextConfig(name="hf", dataset=str(tmp_path), validation=0.25)
    assert list(documents(streamed, "validation")) == expected("validation")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    saved = TextConfig(name="hf", dataset=str(tmp_path / "saved"), validation=0.25)
    assert list(documents(saved, "train")) == expected("train")
    with pytest.raises(UserError, match=r"text\.dataset=.*bananas"):
        list(documents(TextConfig(name="hf", dataset=str(tmp_path), split="bananas"), "train"))


def test_fingerprint_follows_contents_and_settings_not_the_folder(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first, second = (write_jsonl(tmp_path / name / "a.jsonl", TEXTS) for name in ("one", "two"))
    base = text_fingerprint(local(first))
    assert text_fingerprint(local(second)) == base
    assert text_fingerprint(local(second.parent)) == base
    changed = [
        local(write_jsonl(tmp_path / "two" / "a.jsonl", TEXTS[:-1])),
        local(first, max_documents=3),
        local(first, field="body"),
        TextConfig(name="local", path=str(first), validation=0.5),
        TextConfig(name="hub", dataset="owner/name"),
        TextConfig(name="hub", dataset="owner/name", revision="v1"),
    ]
    assert len({base, *map(text_fingerprint, changed)}) == len(changed) + 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.jsonl",
            b'{"txt": "x"}\n',
            r"text\.field=text: .*a\.jsonl line 1 has the keys txt: give one\. Did you mean txt\?",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 holds int, not text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "cannot read .*it is not UTF-8 text .byte 10 is 0xff"),
        ("a.jsonl.gz", b"plain", "cannot read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}')[:10] + b"\xff" * 20, "cannot read"),
        ("a.parquet", b"plain", "cannot read"),
        ("a.csv", b"text\nx\n", "unknown kind of file.*text.dataset=FOLDER"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        list(documents(local(tmp_path / name), "train"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two\nthree four\n\nfive six", ["one two\nthree four\n\n", "five six"]),  # an empty line before all else
        ("one two three\nfour five six", ["one two three\n", "four five six"]),
        ("a line\none two six four five", ["a line\none two six ", "four five"]),  # ends in its second half
        ("\u65e5\u672c" * 15, ["\u65e5\u672c" * 10, "\u65e5\u672c" * 5]),
        ("word " * 4, ["word " * 4]),
        ("", []),
    ],
)
def test_a_cut_file_is_as_many_documents_as_its_paragraphs_lines_or_words_make(tmp_path, text, pieces):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())  # as Windows writes it
    cut = TextConfig(name="local", path=str(path), validation=1e-9, cut=20)
    assert (list(documents(cut, "train")) if text else []) == pieces
    assert "".join(pieces) == text


def test_one_text_file_has_a_validation_part_under_text_local_and_says_what_to_do_without(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(f"Paragraph {i}. " + TEXTS[i] * 9 for i in range(200)))
    config = compose(["text=local", f"text.path={tmp_path}/book.txt"]).text
    parts = [list(documents(config, split)) for split in ("train", "validation")]
    assert all(parts)
    assert sum(map(len, (*parts[0], *parts[1]))) == (tmp_path / "book.txt").stat().st_size
    with pytest.raises(UserError, match=r"none of the 1 documents .*cut \.txt files into them \(text\.cut=4000\)"):
        [list(documents(replace(config, cut=0), split)) for split in ("train", "validation")]
    assert text_fingerprint(config) != text_fingerprint(replace(config, cut=0))


def test_the_fingerprint_of_an_uncut_text_is_what_it_was_before_texts_could_be_cut(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    assert text_fingerprint(local(tmp_path / "a.txt")) == "dd434a389d1e"


def test_missing_things_are_named(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    with pytest.raises(UserError, match=r"does not exist\. Did you mean .*texts\.jsonl"):
        list(documents(local(tmp_path / "text.jsonl"), "train"))
    with pytest.raises(UserError, match="has the keys title, text"):
        list(documents(local(write_parquet(tmp_path / "a.parquet", TEXTS), field="body"), "train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.txt"):
        list(documents(local(tmp_path / "empty"), "train"))
    with pytest.raises(UserError, match=r"bundled.*Did you mean bundled:wiki"):
        text_fingerprint(local("bundled:wikis"))
    with pytest.raises(UserError, match="neither is given"):
        text_fingerprint(TextConfig(name="none"))
    with pytest.raises(UserError, match="both are given"):
        list(documents(local("a.txt", dataset="b"), "train"))
    one = write_jsonl(tmp_path / "one.jsonl", expected("train")[:1])
    with pytest.raises(UserError, match=r"none of the 1 documents .* validation part: change text\.validation"):
        list(documents(local(one), "validation"))
