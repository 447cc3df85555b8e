from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_cli.config.compose import compose
from sae_cli.config.schema import CacheConfig, Config, SourceConfig, TextConfig
from sae_cli.errors import UserError
from sae_cli.sources import vectors
from sae_cli.sources.vectors import VectorRows, rows_fingerprint

X = np.random.default_rng(0).standard_normal((1000, 6)).astype(np.float32)


def config_of(path, dtype="float32", share=0.2):
    return Config(
        source=SourceConfig(kind="vectors", path=str(path)),
        text=TextConfig(name="none", validation=share),
        cache=CacheConfig(dtype=dtype),
    )


def stream(path, split, start=0, **changes):
    blocks = list(VectorRows(config_of(path, **changes)).rows(split, start))
    return blocks, torch.cat([block.x["vectors"] for block in blocks])[start - blocks[0].start :]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """1,000 rows in two .npy files and a .safetensors file, read 64 rows at a time."""
    monkeypatch.setattr(vectors, "BLOCK", 64)
    np.save(tmp_path / "a.npy", X[:300])
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "b.npy", X[300:310].astype(np.float64))
    save_file({"x": torch.from_numpy(X[310:]), "other": torch.zeros(2, 2)}, tmp_path / "z.safetensors")
    return tmp_path


def test_parts_hold_every_row_once_in_order(folder):
    train, held_out = stream(folder, "train")[1], stream(folder, "validation")[1]
    assert 0.15 < len(held_out) / 1000 < 0.25
    rows = {tuple(row): i for i, row in enumerate(X.tolist())}
    order = [[rows[tuple(row)] for row in part.tolist()] for part in (train, held_out)]
    assert order[0] == sorted(order[0])
    assert order[1] == sorted(order[1])
    assert sorted(order[0] + order[1]) == list(range(1000))
    source = VectorRows(config_of(folder))
    assert source.widths == {"vectors": 6}
    assert [source.count("train"), source.count("validation")] == [len(train), len(held_out)]


def test_restart_anywhere_gives_the_same_rows(folder):
    blocks, full = stream(folder, "train")
    places = torch.cat([torch.stack([block.context_N, block.position_N], 1) for block in blocks])
    assert len(places.unique(dim=0)) == len(full)
    for start in (0, 1, 63, 200, 517, len(full) - 1):
        again, rest = stream(folder, "train", start)
        assert again[0].start <= start
        assert torch.equal(rest, full[start:])
        tail = torch.cat([torch.stack([block.context_N, block.position_N], 1) for block in again])
        assert torch.equal(tail[start - again[0].start :], places[start:])


def test_more_files_leave_the_parts_of_the_others_alone(folder):
    held_out = stream(folder, "validation")[1]
    np.save(folder / "0.npy", X[:50] + 10)
    assert {tuple(row) for row in held_out.tolist()} <= {tuple(row) for row in stream(folder, "validation")[1].tolist()}


def test_bfloat16_files_and_caches(folder, tmp_path):
    path = tmp_path / "only.safetensors"
    save_file({"anything": torch.from_numpy(X).bfloat16()}, path)
    rows = stream(path, "train", dtype="bfloat16")[1]
    assert rows.dtype == torch.bfloat16
    assert {tuple(row) for row in rows.tolist()} <= {tuple(row) for row in torch.from_numpy(X).bfloat16().tolist()}


def test_files_of_either_byte_order(tmp_path):
    parts = []
    for order in "<>":
        (tmp_path / order).mkdir()
        np.save(tmp_path / order / "a.npy", X.astype(f"{order}f4"))
        parts.append(stream(tmp_path / order, "train")[1])
    assert torch.equal(*parts)


def test_fingerprint_follows_contents(folder, tmp_path):
    prints = [rows_fingerprint(config_of(folder), "vectors"), VectorRows(config_of(folder)).fingerprint("vectors")]
    assert prints[0] == prints[1]
    assert rows_fingerprint(config_of(folder, share=0.3), "vectors") != prints[0]
    np.save(folder / "a.npy", X[:300] * 2)
    assert rows_fingerprint(config_of(folder), "vectors") != prints[0]


def test_problems_are_named(folder):
    bad = X.copy()
    bad[77, 2] = np.nan
    np.save(folder / "bad.npy", bad)
    with pytest.raises(UserError, match=r"bad\.npy row 77 is not finite in float32: remove the row$"):
        [stream(folder / "bad.npy", split) for split in ("train", "validation")]
    np.save(folder / "bad.npy", X * 1e5)
    with pytest.raises(UserError, match=r"bad\.npy row \d+ is not finite in float16.*cache\.dtype=bfloat16"):
        stream(folder / "bad.npy", "train", dtype="float16")
    np.save(folder / "bad.npy", X[:, :5])
    with pytest.raises(UserError, match=r"a\.npy has width 6 but .*bad\.npy has 5"):
        VectorRows(config_of(folder))
    np.save(folder / "bad.npy", X[0])
    with pytest.raises(UserError, match=r"shape \(6,\)"):
        VectorRows(config_of(folder))
    np.save(folder / "bad.npy", np.arange(6).reshape(2, 3))
    with pytest.raises(UserError, match="holds int64"):
        VectorRows(config_of(folder))
    (folder / "bad.npy").write_bytes(b"plain")
    with pytest.raises(UserError, match=r"cannot read .*bad\.npy"):
        VectorRows(config_of(folder))
    save_file({"p": torch.zeros(2, 2), "q": torch.zeros(2, 2)}, folder / "two.safetensors")
    with pytest.raises(UserError, match=r"holds p \(2, 2\), q \(2, 2\); name the one .*'x'"):
        VectorRows(config_of(folder / "two.safetensors"))
    with pytest.raises(UserError, match=r"no such file or folder\. Did you mean .*a\.npy"):
        VectorRows(config_of(folder / "aa.npy"))
    np.save(folder / "one.npy", X[:1])
    with pytest.raises(UserError, match=r"none of its 1 rows falls into the validation part"):
        stream(folder / "one.npy", "validation", share=1e-9)


def test_pt_files_are_read_by_name_and_no_pickle_is_run(tmp_path):
    x, place = torch.from_numpy(X), tmp_path / "a.pt"
    for content in (x, {"vectors": x, "other": x[:, :2], "step": 3}, {"mine": x}, x.T.contiguous().T):
        torch.save(content, place)
        rows = torch.cat([stream(place, split)[1] for split in ("train", "validation")])
        torch.testing.assert_close(rows.sort(0).values, x.sort(0).values, rtol=0, atol=0)
    for content, says in (
        (torch.nn.Linear(6, 6), "no pickle is run"),
        (x[:1].expand(10**9, 6), "holds no array"),  # a file of 24 bytes of numbers that claims a billion rows
        ([x], "holds no array"),
        ({"p": x, "q": x}, r"holds p \(1000, 6\), q \(1000, 6\)"),
        (x.view(50, 20, 6), r"shape \(50, 20, 6\).*save x\.reshape\(-1, 6\)"),
    ):
        torch.save(content, place)
        with pytest.raises(UserError, match=says) as error:
            VectorRows(config_of(place))
        assert "\n" not in str(error.value)


def test_a_packed_pt_file_is_not_read_as_other_numbers(tmp_path):
    torch.save({"x": torch.from_numpy(X)}, tmp_path / "a.pt")
    with ZipFile(tmp_path / "a.pt") as plain, ZipFile(tmp_path / "packed.pt", "w", ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        # what follows is as long as the numbers, so that a map of them would not end beyond the file
        packed.writestr("a/more", X.tobytes(), ZIP_STORED)
    with pytest.raises(UserError, match="no pickle is run"):
        VectorRows(config_of(tmp_path / "packed.pt"))


def test_the_group_takes_every_row(tmp_path):
    assert compose(["source=vectors", f"source.path={tmp_path}"]).cache.tokens == 0
    assert compose(["source=vectors", f"source.path={tmp_path}", "cache.tokens=7"]).cache.tokens == 7
