"""Open the source that a configuration names; caches are made when missing and reused when they match."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_cli.config.convert import to_dict
from sae_cli.config.schema import Config
from sae_cli.errors import UserError
from sae_cli.files import short_hash
from sae_cli.sources import ActivationSource, RowSource, Split

log = logging.getLogger(__name__)

SYNTHETIC = (
    "three_features",
    "features",
    "chanin",
    "sharkey",
    "tms",
    "tree",
    "sanity",
    "synthbench",
    "hierarchical",
)
CACHED = ("language_model", "vectors")
SOURCES = (*CACHED, *SYNTHETIC)


def hook_names(config: Config) -> list[str]:
    """Return the hooks that `sae cache` stores, the training hook first; `vectors` for the vectors source."""
    if config.source.kind == "vectors":
        return ["vectors"]
    return list(dict.fromkeys([config.model.hook, *config.cache.hooks]))


def cache_folders(config: Config) -> dict[str, Path]:
    """Return where the cache of each hook is or will be; reads no weights."""
    from sae_cli.store.find import cache_fingerprint, cache_folder

    if config.source.kind == "vectors":
        from sae_cli.sources.vectors import rows_fingerprint

        name = Path(config.source.path).stem
    else:
        from sae_cli.sources.language_model import rows_fingerprint

        name = config.model.name
    prints = {hook: cache_fingerprint(rows_fingerprint(config, hook), config.cache) for hook in hook_names(config)}
    return {hook: cache_folder(config.cache.dir, name, hook, value) for hook, value in prints.items()}


def open_rows(config: Config, device: str) -> RowSource:
    """Return the stream that the cache writer reads; loads the language model."""
    if config.source.kind == "vectors":
        from sae_cli.sources.vectors import VectorRows

        return VectorRows(config)
    from sae_cli.sources.language_model import LanguageModelRows

    return LanguageModelRows(config, device)


def refuse_synthetic(config: Config) -> None:
    """Raise UserError for sources that have no cache."""
    if config.source.kind in SYNTHETIC:
        raise UserError(f"source={config.source.kind} draws rows as they are needed and has no cache; run `sae train`")


def ensure_cache(config: Config, share: int | None = None) -> list[Path]:
    """Return the folder of every hook's cache, making what is missing in one pass over the text.

    share: write this one of the cache.parts shares only; it may leave caches that are not finished.
    """
    from sae_cli.device import choose_device
    from sae_cli.progress import RowProgress
    from sae_cli.store.remote import is_remote
    from sae_cli.store.upload import uploading
    from sae_cli.store.writer import write_caches

    folders = cache_folders(config)
    missing = missing_caches(config)
    for hook in folders.keys() - missing.keys():
        log.info("using the cache %s", folders[hook])
    if any(map(is_remote, missing.values())):
        first, *hooks = missing
        cache = replace(config.cache, dir=config.cache.staging, hooks=hooks)
        staged = replace(config, model=replace(config.model, hook=first), cache=cache)
        if cache.parts > 1 and missing_caches(staged):
            raise UserError(
                f"cache.parts={cache.parts} with cache.dir={config.cache.dir}: let workers write to a folder that all "
                "see (the same command with cache.dir=FOLDER), then upload it with this one and cache.staging=FOLDER"
            )
        with uploading(missing.values(), Path(cache.dir)):
            ensure_cache(staged)
    elif wanted := [one for one in shares_left(config) if share in (None, one)]:
        log.info("writing %s", ", ".join(map(str, missing.values())))
        source = open_rows(config, choose_device(config.device))
        for one in wanted:
            with RowProgress() as progress:
                write_caches(source, config.cache, missing, progress.update, one)
    return list(folders.values())


def missing_caches(config: Config) -> dict[str, Path]:
    """Return the folders of the caches that are not finished, by hook. Raises UserError for sources without one."""
    from sae_cli.store.find import finished

    refuse_synthetic(config)
    return {hook: folder for hook, folder in cache_folders(config).items() if not finished(folder)}


def shares_left(config: Config) -> list[int]:
    """Return which of the cache.parts shares are to be written yet; the last, if only the manifest is missing."""
    from sae_cli.store.writer import complete, read_progress

    missing, shares = missing_caches(config), range(config.cache.parts)
    found = (
        [read_progress(folder, share, config.cache, folder.name.rsplit("-", 1)[-1]) for folder in missing.values()]
        for share in shares
    )
    left = [share for share, states in zip(shares, found, strict=True) if not all(map(complete, states))]
    return left or [shares[-1]] * bool(missing)


_fingerprints: dict[str, str] = {}
"""Fingerprints by the settings that decide them, so that a sweep hashes the model and the text once."""


def source_fingerprint(config: Config) -> str:
    """Return the fingerprint of the training data, without reading weights or activations."""
    if config.source.kind in SYNTHETIC:
        from sae_cli.sources.synthetic import fingerprint

        return fingerprint(config.source)
    settings = to_dict(config)
    key = short_hash([settings[part] for part in ("model", "text", "source", "cache")])
    if key not in _fingerprints:
        (folder,) = cache_folders(training_part(config)).values()
        _fingerprints[key] = folder.name.rsplit("-", 1)[-1]
    return _fingerprints[key]


def check_unchanged(config: Config, fingerprint: str, path: Path) -> None:
    """Raise UserError if the model, its tokenizer, the text or the vectors are not those that a run was trained on."""
    if config.source.kind in CACHED and (now := source_fingerprint(config)) != fingerprint:
        names = f"source.path={config.source.path}"
        if config.source.kind == "language_model":
            names = f"the weights or tokenizer of model.path={config.model.path}, or text={config.text.name},"
        raise UserError(
            f"{path}: {names} changed since it was trained (fingerprint {fingerprint}, now {now}): put back what it "
            "was trained on, or train again"
        )


def training_part(config: Config) -> Config:
    """Return the configuration without further hooks: training reads one."""
    return replace(config, cache=replace(config.cache, hooks=[]))


def source_width(config: Config) -> int | None:
    """Return the width D of the training data if it is known without loading a model, else None."""
    if config.source.kind in SYNTHETIC:
        return 3 if config.source.kind == "three_features" else config.source.width
    from sae_cli.store.find import finished
    from sae_cli.store.format import read_manifest

    (folder,) = cache_folders(training_part(config)).values()
    if finished(folder):
        return read_manifest(folder).width
    if config.source.kind == "language_model":
        from sae_cli.sources.language_model import residual_width

        return residual_width(config.model)
    return None


def plan_cache(config: Config) -> list[dict[str, Any]]:
    """Return folder, hook, exact bytes, rows and state (done | new) of each cache; loads the model for its widths."""
    from sae_cli.store.find import finished, plan_bytes

    refuse_synthetic(config)
    source = open_rows(config, "cpu")
    rows: dict[Split, int] = {"train": config.cache.tokens, "validation": config.cache.validation_tokens}
    context = rows_per_context = 0
    if config.source.kind == "language_model":
        context = config.model.context
        rows_per_context = context - int(config.model.prepend_bos and config.model.drop_bos)
    elif not config.cache.tokens:
        rows = {split: source.count(split) for split in rows}  # type: ignore[attr-defined]
        rows["validation"] = min(rows["validation"], config.cache.validation_tokens)
    return [
        {
            "hook": hook,
            "folder": str(folder),
            "rows": sum(rows.values()),
            "bytes": plan_bytes(source.widths[hook], config.cache, context, rows_per_context, rows),
            "state": "done" if finished(folder) else "new",
        }
        for hook, folder in cache_folders(config).items()
    ]


def open_source(config: Config, device: str) -> ActivationSource:
    """Return the source to train on or to evaluate with; makes the cache first if there is none."""
    if config.source.kind in SYNTHETIC:
        from sae_cli.sources.synthetic import SyntheticSource

        return SyntheticSource(config.source, config.train.data_seed, config.cache.validation_tokens)
    from sae_cli.store.loader import CacheReader

    (folder,) = ensure_cache(training_part(config))
    return CacheReader(folder, config.cache.mix_bytes, config.train.data_seed)
