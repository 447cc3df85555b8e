"""Documents, one string each, from the bundled sample, local files or Hugging Face datasets."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO

from sae_cli.assets import WIKI
from sae_cli.config.schema_data import TextConfig
from sae_cli.errors import UserError, suggest
from sae_cli.files import parse_json, sha256_of, short_hash, user_path
from sae_cli.sources import Split

BUNDLED = {"bundled:wiki": WIKI}
LONGEST = 1 << 28
"""Characters of a line: a small packed file could unpack to more than any memory holds."""
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


def documents(text: TextConfig, split: Split) -> Iterator[str]:
    """Yield the documents of one part, streaming; documents without a visible character are dropped.

    A document belongs to the validation part if the SHA-256 of its text, read as a number in [0, 1), is below
    `text.validation`; so the parts do not depend on the order of the documents. A .txt file is one document, or with
    `text.cut` as many as `_pieces` makes of it. Raises UserError if a file or field is missing or broken, and if the
    part turns out empty.
    """
    total = found = 0
    for record, where in _records(text):
        document = _value(record, text.field, where)
        if not document.strip():
            continue
        total += 1
        number = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
        if (number < text.validation) == (split == "validation"):
            found += 1
            yield document
        if total == text.max_documents:
            break
    if not total:
        raise UserError(f"text={text.name}: {_where(text)} holds no text: give another text.path or text.dataset")
    if not found:
        change = f"{'raise' if split == 'validation' else 'lower'} text.validation (now {text.validation})"
        raise UserError(
            f"text={text.name}: none of the {total} documents of {_where(text)} falls into the {split} part: {change}, "
            f"give more documents, or cut .txt files into more (text.cut={text.cut // 2 or 4000})"
        )


def text_fingerprint(text: TextConfig) -> str:
    """Return a short hash of everything that decides the documents and their parts.

    Local files count with their names and contents, a dataset of a hub with its name, subset, split and revision.
    """
    folder = user_path(_where(text))
    content: Any = [text.dataset, text.subset, text.split, text.revision]
    if text.path:
        content = content_hash(*_files(text))
    elif folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = [content_hash(folder, files), text.subset, text.split]
    return short_hash([content, text.field, text.validation, text.max_documents, *([text.cut] if text.cut else [])])


def dataset_commit(text: TextConfig) -> str:
    """Return the commit of a hub's dataset that text.revision names now; "" for files and where the hub is silent."""
    if not text.dataset or user_path(text.dataset).exists():
        return ""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(text.dataset, revision=text.revision or None, timeout=10).sha or ""
    except Exception:  # no network, no such name: reading it says so, where the hub's cache does not hold it
        return ""


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


def _files(text: TextConfig) -> tuple[Path, list[Path]]:
    """Return the root and the files of text.path: the file itself, or those with a known suffix in the folder."""
    if text.path.startswith("bundled:"):
        if text.path not in BUNDLED:
            raise UserError(f"text.path={text.path} is not bundled.{suggest(text.path, BUNDLED)}")
        return BUNDLED[text.path], [BUNDLED[text.path]]
    root = user_path(text.path)
    if root.is_dir():
        files = sorted(path for path in root.rglob("*") if _suffix(path) and path.is_file())
        if not files:
            raise UserError(f"text.path={root} holds no {', '.join(SUFFIXES)} file")
        return root, files
    if not root.exists():
        beside = [str(path) for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise UserError(f"text.path={root} does not exist.{suggest(str(root), beside)}")
    if not _suffix(root):
        raise UserError(
            f"text.path={root}: unknown kind of file; give {', '.join(SUFFIXES)} or a folder of these, or a folder of "
            ".csv or .json to text=hf text.dataset=FOLDER"
        )
    return root, [root]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _records(text: TextConfig) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every record and where it stands, for messages."""
    if _where(text) == text.dataset:
        yield from _dataset_records(text)
        return
    for path in _files(text)[1]:
        try:
            yield from _file_records(path, text.field, text.cut)
        except (OSError, EOFError, ValueError, zlib.error, LookupError, TypeError, NotImplementedError) as error:
            # broken gzip, not UTF-8, not parquet or one of a kind that is unknown
            raise UserError(f"text.path: cannot read {path}: {_reason(error)}") from error


def _file_records(path: Path, field: str, cut: int) -> Iterator[tuple[dict[str, Any], str]]:
    suffix = _suffix(path)
    if suffix == ".txt" and cut:
        with path.open(encoding="utf-8-sig") as file:
            yield from (({field: piece}, str(path)) for piece in _pieces(file, cut))
    elif suffix == ".txt":
        yield {field: path.read_text(encoding="utf-8")}, str(path)
    elif suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                yield dict.fromkeys(names), str(path)
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                yield from ((record, str(path)) for record in batch.to_pylist())
    else:
        with (gzip.open if suffix == ".jsonl.gz" else open)(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(iter(partial(lines.readline, LONGEST), ""), 1):
                if len(line) == LONGEST:
                    raise UserError(f"text.path: {path} line {number} is longer than {LONGEST:,} characters")
                if not line.strip():
                    continue
                try:
                    record = parse_json(line)
                except ValueError as error:
                    raise UserError(f"text.path: {path} line {number} is not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise UserError(f"text.path: {path} line {number} is not a JSON object with a key {field!r}")
                yield record, f"{path} line {number}"


def _pieces(file: TextIO, cut: int) -> Iterator[str]:
    """Yield a text, read as it is needed, in pieces of at most `cut` characters.

    A piece ends in its second half: after the last empty line there, else the last line, else the last space, else, as
    in languages without spaces, after `cut` characters.
    """
    rest = ""
    while rest := rest + file.read(cut - len(rest)):
        ends = [found + len(mark) for mark in ("\n\n", "\n", " ") if (found := rest.rfind(mark, cut // 2)) >= 0]
        end = ends[0] if ends and len(rest) == cut else cut
        yield rest[:end]
        rest = rest[end:]


def _dataset_records(text: TextConfig) -> Iterator[tuple[dict[str, Any], str]]:
    import datasets

    folder = user_path(text.dataset)
    try:
        if (folder / "state.json").is_file():  # written by save_to_disk
            records: Iterable[Any] = datasets.load_from_disk(str(folder))
        else:
            name, subset = str(folder) if folder.exists() else text.dataset, text.subset or None
            revision = text.revision or None
            records = datasets.load_dataset(name, subset, split=text.split, revision=revision, streaming=True)
        for number, record in enumerate(records):
            yield record, f"{text.dataset} row {number}"
    except Exception as error:  # the library's errors share no base class
        raise UserError(
            f"text.dataset={text.dataset}: cannot read split {text.split!r} ({_reason(error)}): check text.dataset, "
            "text.subset, text.split and the network, or use local files with text.path"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start} is {error.object[error.start]:#x}); save it as UTF-8"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _value(record: dict[str, Any], field: str, where: str) -> str:
    """Return the document in a record; null counts as empty."""
    if field not in record:
        keys = list(record)
        raise UserError(
            f"text.field={field}: {where} has the keys {', '.join(keys) or 'none'}: give one.{suggest(field, keys)}"
        )
    value = record[field]
    if not isinstance(value, str | None):
        raise UserError(f"text.field={field}: {where} holds {type(value).__name__}, not text")
    # JSON can carry lone surrogates, which no tokenizer takes.
    return (value or "").encode(errors="replace").decode()
