"""Folders and files behind URLs (s3://, gs://, ...): the part of pathlib.Path that the store needs, by fsspec."""

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sae_cli.errors import UserError

RANGE_BYTES = 4 << 20
"""Most bytes of one request."""
PAUSES = (1.0, 4.0, 15.0)
"""Seconds before a read that failed in the middle of work is tried again."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}},
}
REMEDIES = {
    "NoCredentialsError": "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PermissionError": "access denied: check the credentials and what they allow",
    "FileNotFoundError": "no such bucket or file: create the bucket or mend the URL",
    "EndpointConnectionError": "cannot be reached: check the network and AWS_ENDPOINT_URL",
    "ConnectTimeoutError": "cannot be reached: check the network and AWS_ENDPOINT_URL",
    "ImportError": "needs another package: pip install 'sae-cli[s3]' for s3://, gcsfs for gs://",
}


def place(root: str | Path) -> Path:
    """Return where a path or URL leads. What stands for a URL has only those methods of a Path that RemotePath has.

    Raises UserError if the URL's file system is unknown or not installed.
    """
    protocol, _, rest = str(root).partition("://")
    if not rest:
        return Path(root)
    if protocol == "file":
        return Path(rest)
    import fsspec

    url = str(root).rstrip("/")
    if protocol not in fsspec.available_protocols():
        raise UserError(f"{url}: unknown kind of URL; use s3://, gs:// or another that fsspec knows")
    with _told(url):
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **OPTIONS.get(protocol, {}))
    return cast(Path, RemotePath(system, path, url))


def is_remote(path: Path) -> bool:
    """Return whether a path that `place` gave stands for a URL."""
    return isinstance(path, RemotePath)


class RemotePath:
    """A folder or file behind a URL. Errors are UserErrors that name it, but for a file that is absent."""

    def __init__(self, system: Any, path: str, url: str, size: int | None = None) -> None:
        self.system, self.path, self.url, self.size = system, path, url, size

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.system, f"{self.path}/{name}", f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.system, self.path.rpartition("/")[0], self.url.rpartition("/")[0])

    def exists(self) -> bool:
        """Return whether there is a file."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    is_file = exists

    def stat(self) -> Any:
        """Return an object with `st_size`. Raises FileNotFoundError."""
        if self.size is None:
            with _told(self.url, FileNotFoundError):
                found = self.system.info(self.path)
            if found["type"] != "file":
                raise FileNotFoundError(self.url)
            self.size = found["size"]
        return SimpleNamespace(st_size=self.size)

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield the files of a folder, by one listing; none if there is no such folder."""
        return self._files(lambda: self.system.ls(self.path, detail=True))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yield the files below that fit a pattern."""
        return self._files(lambda: self.system.glob(f"{self.path}/{pattern}", detail=True).values())

    def _files(self, listing: Callable[[], Iterable[dict[str, Any]]]) -> Iterator["RemotePath"]:
        with _told(self.url, FileNotFoundError):
            try:
                found = list(listing())
            except FileNotFoundError:
                return
        for entry in found:
            if entry["type"] == "file":
                below = entry["name"].removeprefix(self.system._strip_protocol(self.path)).lstrip("/")
                yield RemotePath(self.system, entry["name"], f"{self.url}/{below}", entry["size"])

    def open(self, mode: str = "rb", buffering: int = 0) -> "RemoteFile":
        """Return an unbuffered stream to read from; nothing is read yet."""
        return RemoteFile(self)

    def read_bytes(self) -> bytes:
        """Return the whole file, by several requests at a time where the file system can. Raises FileNotFoundError."""
        size = self.stat().st_size
        starts = range(0, size, RANGE_BYTES)
        ends = [min(start + RANGE_BYTES, size) for start in starts]
        with _told(self.url):
            return b"".join(self.system.cat_ranges([self.path] * len(ends), list(starts), ends, on_error="raise"))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole file as text. Raises FileNotFoundError."""
        return self.read_bytes().decode(encoding)

    def upload(self, file: Path) -> None:
        """Write a copy of a local file: it appears when it is complete."""
        with _told(self.url):
            self.system.put_file(str(file), self.path)

    def try_writing(self) -> None:
        """Write a file into this folder and remove it."""
        with _told(self.url):
            self.system.pipe_file(f"{self.path}/.probe", b"")
            self.system.rm_file(f"{self.path}/.probe")


class RemoteFile(io.RawIOBase):
    """A file that is read by ranges of at most RANGE_BYTES; a read that fails is tried again for a while."""

    def __init__(self, path: RemotePath) -> None:
        self.file, self.position = path, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, whence
        self.position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        with _told(self.file.url):
            size = _steady(self.file.stat).st_size
            end = min(self.position + min(len(buffer), RANGE_BYTES), size)
            if self.position >= end:
                return 0
            data = _steady(partial(self.file.system.cat_file, self.file.path, start=self.position, end=end))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _steady(request: Callable[[], Any]) -> Any:
    """Return what a request gives; one that fails is repeated after each of PAUSES."""
    for pause in PAUSES:
        try:
            return request()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            time.sleep(pause)
    return request()


@contextmanager
def _told(url: str, *passed: type[BaseException]) -> Iterator[None]:
    """Turn what any file system raises into a UserError that names the URL; those in `passed` go through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, *passed)):
            raise
        links = (error, error.__cause__, error.__context__)
        names = {base.__name__ for link in links for base in type(link).__mro__}
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = next((text for name, text in REMEDIES.items() if name in names), "try the same command again")
        raise UserError(f"{url}: {remedy} ({reason})") from error
