"""Documents, one string each, from the bundled sample, local files or Hugging Face datasets."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_cli.assets import WIKI
from sae_cli.config.schema import TextConfig
from sae_cli.errors import UserError, suggest
from sae_cli.files import sha256_of, short_hash
from sae_cli.sources import Split

BUNDLED = {"bundled:wiki": WIKI}
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


def documents(text: TextConfig, split: Split) -> Iterator[str]:
    """Yield the documents of one part, streaming; documents without a visible character are dropped.

    A document belongs to the validation part if the SHA-256 of its text, read as a number in [0, 1), is below
    `text.validation`; so the parts do not depend on the order of the documents. Raises UserError if a file or field
    is missing or broken, and if the part turns out empty.
    """
    total = found = 0
    for document in _all_documents(text):
        if not document.strip():
            continue
        total += 1
        if is_validation(document, text.validation) == (split == "validation"):
            found += 1
            yield document
        if total == text.max_documents:
            break
    if not total:
        raise UserError(f"text={text.name}: {_where(text)} holds no text: give another text.path or text.dataset")
    if not found:
        raise UserError(
            f"text={text.name}: none of the {total} documents of {_where(text)} falls into the {split} part: "
            f"change text.validation (now {text.validation}) or give more documents"
        )


def is_validation(document: str, share: float) -> bool:
    """Return whether a document belongs to the validation part, from its text alone."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64 < share


def text_fingerprint(text: TextConfig) -> str:
    """Return a short hash of everything that decides the documents and their parts.

    Local files count with their names and contents, a dataset of a hub with its name, subset, split and revision.
    """
    folder = Path(_where(text)).expanduser()
    content: Any = [text.dataset, text.subset, text.split, text.revision]
    if text.path:
        content = content_hash(*_files(text))
    elif folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = [content_hash(folder, files), text.subset, text.split]
    return short_hash([content, text.field, text.validation, text.max_documents])


def content_hash(root: Path, files: Iterable[Path]) -> str:
    """Return the hex SHA-256 over the files' names relative to `root` and their contents, in the given order."""
    total = hashlib.sha256()
    for path in files:
        stat = path.stat()
        name = path.relative_to(root).as_posix() if path != root else path.name
        total.update(f"{name}\n{_known_hash(path.resolve(), stat.st_size, stat.st_mtime_ns)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _known_hash(path: Path, size: int, changed: int) -> str:
    """Hash a file once per process; its size and time of change tell whether it is still the same."""
    return sha256_of(path)


def _where(text: TextConfig) -> str:
    """Return the path or dataset, exactly one of which must be given."""
    if bool(text.path) == bool(text.dataset):
        given = "both are given" if text.path else "neither is given"
        raise UserError(f"text={text.name}: set either text.path or text.dataset ({given})")
    return text.path or text.dataset


def _all_documents(text: TextConfig) -> Iterator[str]:
    if _where(text) != text.path:
        yield from _dataset_documents(text)
        return
    for path in _files(text)[1]:
        try:
            yield from READERS[_suffix(path)](path, text.field)
        except (OSError, EOFError, ValueError) as error:  # broken gzip, not UTF-8, not parquet
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"text.path: cannot read {path}: {reason}") from error


def _files(text: TextConfig) -> tuple[Path, list[Path]]:
    """Return the root and the files of text.path: the file itself, or those with a known suffix in the folder."""
    if text.path.startswith("bundled:"):
        if text.path not in BUNDLED:
            raise UserError(f"text.path={text.path} is not bundled.{suggest(text.path, BUNDLED)}")
        return BUNDLED[text.path], [BUNDLED[text.path]]
    root = Path(text.path).expanduser()
    if root.is_dir():
        files = sorted(path for path in root.rglob("*") if _suffix(path) and path.is_file())
        if not files:
            raise UserError(f"text.path={root} holds no {', '.join(SUFFIXES)} file")
        return root, files
    if not root.exists():
        beside = [str(path) for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise UserError(f"text.path={root} does not exist.{suggest(str(root), beside)}")
    if not _suffix(root):
        raise UserError(f"text.path={root}: unknown kind of file; give {', '.join(SUFFIXES)} or a folder of these")
    return root, [root]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _read_txt(path: Path, field: str) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    opener = gzip.open if _suffix(path) == ".jsonl.gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"text.path: {path} line {number} is not JSON ({error.msg})") from error
            if not isinstance(record, dict):
                raise UserError(f"text.path: {path} line {number} is not a JSON object with a key {field!r}")
            yield _value(record, field, f"{path} line {number}")


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            _value(dict.fromkeys(file.schema_arrow.names), field, str(path))
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield _value({field: value}, field, str(path))


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl, ".parquet": _read_parquet}


def _value(record: dict[str, Any], field: str, where: str) -> str:
    """Return the document in a record; null counts as empty."""
    if field not in record:
        keys = list(record)
        raise UserError(f"text.field={field}: {where} has the keys {', '.join(keys) or 'none'}.{suggest(field, keys)}")
    value = record[field]
    if not isinstance(value, str | None):
        raise UserError(f"text.field={field}: {where} holds {type(value).__name__}, not text")
    # JSON can carry lone surrogates, which no tokenizer takes.
    return (value or "").encode(errors="replace").decode()


def _dataset_documents(text: TextConfig) -> Iterator[str]:
    import datasets

    name = text.dataset
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").is_file():  # written by save_to_disk
            records: Iterable[Any] = datasets.load_from_disk(str(folder))
        else:
            records = datasets.load_dataset(
                str(folder) if folder.exists() else name,
                text.subset or None,
                split=text.split,
                revision=text.revision or None,
                streaming=True,
            )
        for number, record in enumerate(records):
            yield _value(record, text.field, f"{name} row {number}")
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # the library's errors share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"text.dataset={name}: cannot read split {text.split!r} ({reason}): check text.dataset, text.subset, "
            "text.split and the network, or use local files with text.path"
        ) from error
