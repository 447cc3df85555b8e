"""Files are complete or absent, also where there is no space, and errors of the system name them."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.errors import of_system
from sae_cli.files import naming, parse_json, replace_atomically, replacing


def _full(written: int) -> None:
    assert written
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    replace_atomically(file, b"old")
    with pytest.raises(OSError, match=r"a\.json"), replacing(file) as stream:
        _full(stream.write(b"new"))
    with pytest.raises(KeyboardInterrupt), replacing(file):
        raise KeyboardInterrupt
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_json_is_refused_that_no_computer_could_count_with() -> None:
    assert parse_json(f'{{"seed": {2**64 - 1}, "x": -1e3}}') == {"seed": 2**64 - 1, "x": -1000.0}
    assert parse_json('{"loss": NaN, "id": "' + 400 * "1" + '"}')["id"] == 400 * "1"
    with pytest.raises(ValueError, match="a number of 309 digits"):
        parse_json(f'{{"x": [{10**308 * 9}, {10**308}]}}')
    with pytest.raises(ValueError, match="digits"):
        parse_json(5000 * "1")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(100_000 * "[")


def test_a_full_device_is_named() -> None:
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space") as caught, naming(full), full.open("wb", buffering=0) as stream:
        stream.write(b"x")
    assert of_system(caught.value) == (
        "/dev/full: no space left on the disk: free some, then the same command goes on where it stopped "
        "(No space left on device)"
    )


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "may not be written or read"),
        (errno.EACCES, "may not be written or read"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "so long a name"),
        (errno.ELOOP, "in a circle"),
    ],
)
def test_what_people_can_mend_has_a_fix(monkeypatch: pytest.MonkeyPatch, number: int, says: str) -> None:
    def broken(paths: list[Path]) -> None:
        raise OSError(number, "reason", "runs/a/status.json")

    monkeypatch.setattr("sae_cli.reporting.collect.collect", broken)
    result = CliRunner().invoke(app, ["show", "runs"])
    assert result.exit_code == 2
    assert result.output.startswith("error: runs/a/status.json: ")
    assert says in result.output
    assert result.output.count("\n") == 1


def test_other_errors_are_not_taken_for_these() -> None:
    assert of_system(OSError(errno.ENOENT, "no such file", "x")) == ""
    assert of_system(ValueError("x")) == ""
