"""Files that are either complete or absent: write to a temporary name, fsync, rename."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sae_cli.errors import UserError

HASH, HASH_LENGTH = "content_hash", 16
"""Key under which a JSON file holds the short hash of all else in it, so that no flipped bit is read as a number."""
MOST_HASHES = 16
"""Values that are tried as that hash where none has its name: no file of ours has as many that look like one."""


def replace_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content is that of `path` after the block, atomically; an error leaves no part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open_new(temporary) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # where nothing may be written nothing is there
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have the system's errors in the block name `path`: those of writing name no file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def open_new(path: Path) -> BinaryIO:
    """Begin a file in the place of whatever has its name; a link there is not followed."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented JSON with a hash of its content, atomically. Non-finite numbers are refused."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    sealed = {**value, HASH: short_hash(plain, HASH_LENGTH)}
    replace_atomically(path, (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode())


def parse_json(text: str) -> Any:
    """Return what a JSON text says; ValueError for anything else, for endless nesting, and for too large a number."""
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole_number(digits: str) -> int:
    number = int(digits)
    if number.bit_length() >= 1024:  # what no float holds would fail wherever it is computed with
        raise ValueError(f"a number of {len(digits)} digits")
    return number


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError if it is none, or holds a hash that is not of its content."""
    refuse_special(path)
    value = parse_json(path.read_text(encoding="utf-8"))
    if isinstance(value, dict):
        like = [key for key, other in value.items() if isinstance(other, str) and len(other) == HASH_LENGTH]
        for name in [HASH] if HASH in value else like[:MOST_HASHES]:
            rest = {key: other for key, other in value.items() if key != name}
            # a file without a hash is older, unless the hash stands there under a damaged name
            if (value[name] == short_hash(rest, HASH_LENGTH)) != (name == HASH):
                raise ValueError(f"its content is not what {HASH} says: a disk or an editor changed it")
        value.pop(HASH, None)
    return value


def user_path(given: str | Path) -> Path:
    """Return a path as a user wrote it, with `~` for the home folder; a `~name` of nobody stays as it is."""
    return Path(os.path.expanduser(given))


def refuse_newer(path: Path, version: Any, known: int) -> None:
    """Raise UserError if a file is of a later format version than the last that this program knows."""
    if type(version) is int and version > known:
        raise UserError(f"{path}: format version {version}, this sae-cli reads up to {known}: pip install -U sae-cli")


def refuse_special(path: Path) -> None:
    """Raise ValueError for what is there but no file, such as a device without end or a pipe that nobody writes to."""
    if path.exists() and not path.is_file():
        raise ValueError("not an ordinary file")


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks. Raises ValueError if it is not an ordinary one."""
    refuse_special(path)
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 22))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def short_hash(value: Any, length: int = 12) -> str:
    """Return a short hex hash of a JSON-serialisable value; equal values give equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
