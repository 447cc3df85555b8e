"""Files that the safetensors library reads, and damage that is named instead of read."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sae_cli.errors import UserError
from sae_cli.files import read_json
from sae_cli.store.find import cache_folder, finished, plan_bytes, verify
from sae_cli.store.format import bytes_of, file_bytes, find_x, header_bytes, read_manifest, shard_tensors
from sae_cli.store.loader import CacheReader
from tests.store.fakes import ROOT, FakeRows, small_cache


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("width", [5, 8])
def test_shards_are_plain_safetensors(make_cache, dtype, width):
    source = FakeRows({"a": width})
    folder = make_cache(source, dtype=dtype)
    for shard in read_manifest(folder).train.shards:
        tensors = load_file(folder / shard.name)
        assert {name: tensor.dtype for name, tensor in tensors.items()} == {
            "x": getattr(torch, dtype),
            "context": torch.int32,
            "position": torch.int32,
        }
        assert tensors["x"].shape == (shard.rows, width)
        begin = find_x(folder, shard, read_manifest(folder))
        assert (folder / shard.name).read_bytes()[begin:] == bytes(bytes_of(tensors["x"]))


def test_manifest_has_no_time_and_no_path(make_cache, tmp_path):
    text = (make_cache() / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)) == {
        "content_hash", "created_by", "dtype", "fingerprint", "format", "format_version", "hook", "mean",
        "mean_squared_norm", "settings", "source", "train", "validation", "variance", "width",
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"tokens": 1, "validation_tokens": 0}, {"dtype": "float32", "tokens": 333}])
@pytest.mark.parametrize("width", [5, 8, 70])
def test_planned_bytes_are_the_written_bytes(make_cache, changes, width):
    folder = make_cache(FakeRows({"a": width}), **changes)
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert plan_bytes(width, small_cache(**changes), context=6, rows_per_context=5) == written


def test_planned_bytes_of_every_row(make_cache):
    folder = make_cache(FakeRows({"a": 8}, contexts=61, text=False), tokens=0)
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert plan_bytes(8, small_cache(tokens=0), rows={"train": 305, "validation": 60}) == written


def test_every_key_and_file_is_in_the_normative_text(make_cache):
    text = (ROOT / "docs" / "cache-format.md").read_text()
    folder = make_cache()
    manifest = read_json(folder / "manifest.json")
    keys = {*manifest, *manifest["train"], *manifest["train"]["shards"][0], *manifest["settings"]}
    assert [key for key in keys if f"`{key}`" not in text] == []
    assert [path.name for path in folder.iterdir() if path.name not in text and "00000" in path.name] == []


def test_planned_manifest_margin(make_cache):
    folder = make_cache(FakeRows({"a": 700}), shard_bytes=100_000, shuffle_bytes=200_000)
    assert (folder / "manifest.json").stat().st_size < 25 * 700 + 300 * len(list(folder.glob("*.safetensors"))) + 2000


def test_cache_folder_is_one_plain_name(tmp_path):
    assert (
        cache_folder(tmp_path, "org/model", "blocks.1.hook_out", "abc") == tmp_path / "org_model-blocks.1.hook_out-abc"
    )


def test_a_sound_cache_has_no_problems(make_cache):
    folder = make_cache()
    assert finished(folder)
    assert verify(folder) == []


def test_absent_and_unfinished_caches_are_not_finished(tmp_path, make_cache):
    assert not finished(tmp_path / "nothing")
    folder = make_cache()
    (folder / "progress.json").write_text("{}")
    assert not finished(folder)
    with pytest.raises(UserError, match=r"no finished cache here .* run `sae cache`"):
        CacheReader(tmp_path / "nothing", 10**6, 0)


def test_a_renamed_cache_is_not_taken_for_another(make_cache):
    folder = make_cache()
    other = folder.rename(folder.with_name("fake-a-0123456789ab"))
    with pytest.raises(UserError, match=r"manifest\.json: belongs to cache .*, not 0123456789ab"):
        finished(other)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["train-00002.safetensors", "validation-00000.safetensors", "tokens-train-00000.safetensors"]
)
@pytest.mark.parametrize(
    ("damage", "says"), [(shorten, "bytes instead of"), (flip, "SHA-256"), (lambda path: path.unlink(), "missing")]
)
def test_verify_names_each_damaged_file(make_cache, name, damage, says):
    folder = make_cache()
    damage(folder / name)
    (problem,) = verify(folder)
    assert str(folder / name) in problem
    assert says in problem
    if damage is not flip:
        with pytest.raises(UserError, match=f"{name}.*sae cache verify"):
            CacheReader(folder, 10**6, 0)


def broken(data: dict, **changes) -> dict:
    return {**data, **changes}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: broken(data, format="other"), "not an activation cache"),
        (lambda data: broken(data, format_version=99), "version 99, this sae-cli reads up to 1"),
        (lambda data: {key: value for key, value in data.items() if key != "mean"}, "mean"),
        (lambda data: broken(data, mean=[0.0]), "not sound"),
        (lambda data: broken(data, variance="large"), "damaged"),
        (lambda data: broken(data, mean_squared_norm=0.0), "not sound"),
        (lambda data: broken(data, variance=-1.0), "not sound"),
        (lambda data: broken(data, settings=data["settings"] | {"tokens": 1e999}), "settings are not whole numbers"),
        (lambda data: broken(data, settings=data["settings"] | {"shuffle_bytes": -1}), "not whole numbers"),
        (lambda data: broken(data, settings=[8]), "damaged"),
        (lambda data: broken(data, variance=10**400), "a number of 401 digits"),
        (lambda data: broken(data, dtype="int8"), "dtype"),
        (lambda data: broken(data, surprise=1), "surprise"),
        (lambda data: broken(data, train={**data["train"], "rows": 1}), "add up"),
        (lambda data: broken(data, train=[]), "damaged"),
        (lambda data: [], "not an activation cache"),
    ],
)
def test_a_damaged_manifest_is_named(make_cache, change, says):
    folder = make_cache()
    path = folder / "manifest.json"
    path.write_text(json.dumps(change(read_json(path))))
    for read in (finished, read_manifest):
        with pytest.raises(UserError, match=r"manifest\.json: ") as error:
            read(folder)
        assert says in str(error.value)
    assert len(verify(folder)) == 1


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_a_manifest_that_is_no_json(make_cache, text):
    folder = make_cache()
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../train-00000.safetensors", "/etc/passwd", ".hidden", "a/b"])
def test_names_that_lead_out_of_the_folder_are_refused(make_cache, name):
    folder = make_cache()
    path = folder / "manifest.json"
    data = read_json(path)
    data["train"]["shards"][0]["name"] = name
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="unfit file name"):
        read_manifest(folder)


def entry(**changes) -> bytes:
    fields = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8], **changes}
    text = json.dumps({"x": fields}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x10",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        entry(),
        entry(data_offsets=[0, 7]),
        entry(data_offsets=[8, 16]),
        entry(data_offsets=[-8, 0]),
        entry(shape=[2.0, 2]),
        entry(shape=[2**40, 2**40]),
        entry(dtype="F8"),
        entry(shape="ab"),
        header_bytes(shard_tensors(100, 8, "float32")),
        header_bytes(shard_tensors(101, 8, "bfloat16")),
    ],
)
def test_headers_are_checked_before_they_are_believed(make_cache, data):
    folder = make_cache()
    (shard,) = read_manifest(folder).validation.shards[:1]
    path = folder / shard.name
    path.write_bytes(data + bytes(shard.bytes - len(data)))
    with pytest.raises(UserError, match=rf"{shard.name}: damaged"):
        list(CacheReader(folder, 10**6, 0).validation(10))


def test_headers_keep_data_aligned():
    for rows in range(1, 200, 7):
        tensors = shard_tensors(rows, 5, "bfloat16")
        assert len(header_bytes(tensors)) % 8 == 0
        assert file_bytes(tensors) == len(header_bytes(tensors)) + rows * (4 + 4 + 10)
