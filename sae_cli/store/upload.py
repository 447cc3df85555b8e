"""Caches behind URLs are written to local folders, from where each file is uploaded as soon as it is finished."""

import logging
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from sae_cli.errors import UserError
from sae_cli.files import read_json, write_json
from sae_cli.store.format import MANIFEST, SPLITS, StoredFile, check_sizes
from sae_cli.store.remote import RemotePath

log = logging.getLogger(__name__)

UPLOADED = "uploaded.json"
"""In the local folder: SHA-256 of what was uploaded from it, by file name."""
PAUSE, AFTER_FAILURE = 1.0, 30.0
"""Seconds between looks for finished files."""


@contextmanager
def uploading(folders: Iterable[Path], staging: Path) -> Iterator[None]:
    """While the block writes caches to folders of the same names in `staging`, upload what is finished of them.

    At the end the rest follows, the manifest last, and the local copies are removed; those that were whole before stay.
    Where the block or an upload fails, the next call goes on. Raises UserError naming the URL, before the block begins
    if the server cannot be reached or does not let us write.
    """
    uploads, done = [_Upload(staging / folder.name, cast(RemotePath, folder)) for folder in folders], threading.Event()

    def watch() -> None:
        pause = PAUSE
        while not done.wait(pause):
            try:
                for upload in uploads:
                    upload.push()
                pause = PAUSE
            except UserError as error:
                log.warning("%s; writing goes on, and uploading is tried again", error)
                pause = AFTER_FAILURE

    watcher = threading.Thread(target=watch, name="sae-upload", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    for upload in uploads:
        upload.finish()


class _Upload:
    """One cache on its way."""

    def __init__(self, local: Path, remote: RemotePath) -> None:
        self.local, self.remote = local, remote
        self.stays = (local / MANIFEST).exists() and not (local / UPLOADED).exists()
        remote.try_writing()
        self.sizes = {path.name: path.stat().st_size for path in remote.iterdir()}
        self.sent: dict[str, str] = {}
        with suppress(FileNotFoundError, ValueError):
            self.sent = read_json(local / UPLOADED)

    def files(self) -> dict[str, StoredFile]:
        """Return the finished files, by name, that the writer's records list."""
        found = []
        for path in self.local.glob("[mp]*.json"):
            with suppress(FileNotFoundError, ValueError):  # the writer says so where a record is damaged
                data = read_json(path)
                found += [file for split in SPLITS for key in ("shards", "tokens") for file in data[split][key]]
        return {file["name"]: StoredFile(**file) for file in found}

    def push(self) -> None:
        """Upload the finished files that are not on the server."""
        todo = [
            file
            for name, file in self.files().items()
            if (self.sent.get(name), self.sizes.get(name)) != (file.sha256, file.bytes)
        ]
        with ThreadPoolExecutor(4, "sae-upload") as pool:
            for file, _ in zip(todo, pool.map(self._send, todo), strict=True):
                self.sent[file.name], self.sizes[file.name] = file.sha256, file.bytes
                write_json(self.local / UPLOADED, self.sent)

    def _send(self, file: StoredFile) -> None:
        (self.remote / file.name).upload(self.local / file.name)

    def finish(self) -> None:
        """If the cache is whole, upload the rest of it and then the manifest."""
        if not (self.local / MANIFEST).exists():
            return
        log.info("uploading the rest of %s", self.remote)
        self.push()
        check_sizes(cast(Path, self.remote), self.files().values())
        (self.remote / MANIFEST).upload(self.local / MANIFEST)
        if self.stays:
            (self.local / UPLOADED).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.local)
