"""What can be evaluated, and on which data: runs, exported SAEs, SAEs of other libraries."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sae_cli.config.compose import compose
from sae_cli.config.schema import Config, EvalConfig
from sae_cli.dictionary.artifact import SAE, SHAPES, load_sae
from sae_cli.errors import UserError
from sae_cli.interop.layouts import recognise
from sae_cli.interop.reading import open_sae
from sae_cli.runs.directory import RunDirectory, find_runs
from sae_cli.sources.language_model import model_fingerprint
from sae_cli.sources.registry import check_unchanged, source_fingerprint

log = logging.getLogger(__name__)

DATA = ("model", "text", "source", "cache", "experiment")
"""Groups and sections whose overrides say what an SAE without a run is evaluated on."""


@dataclass
class Subject:
    """An SAE and what it is evaluated on."""

    path: Path
    """Its folder, which gets eval.json."""
    sae: SAE
    config: Config
    """Its data, model and evaluation settings; of a run the whole point."""
    fingerprint: str
    """Of the data."""


def open_subjects(paths: Sequence[Path], words: Sequence[str] = (), force: bool = False) -> list[Subject]:
    """Return the subjects at paths, in order: runs, folders of runs, exported SAEs and those of other libraries.

    An SAE that is no run has the data of the overrides `words`, or else that of the first run. Runs take overrides of
    eval.* only; unusable ones are logged and skipped. UserError: an SAE that cannot be read, has no data or (without
    force) names another model or hook than its data's; nothing is left.
    """
    for word in words:
        if re.split(r"[.=]", word)[0] not in (*DATA, "eval"):
            raise UserError(f"{word}: `sae eval` takes overrides of eval.* and of data ({', '.join(DATA)})")
    data = [word for word in words if not word.startswith(("eval.", "eval="))]
    found = {path: [] if is_sae(path) else find_runs(path) for path in paths}
    runs = [run for inside in found.values() for run in inside]
    if data and all(found.values()):
        raise UserError(f"{data[0]}: runs take overrides of eval.* only; training is done")
    subjects = {s.path: s for s in open_runs(runs, _settings(runs[0].config, words) if runs and words else None)}
    for path in (path for path, inside in found.items() if not inside):
        config, fingerprint = _data(words, data, [subjects[run.path] for run in runs if run.path in subjects])
        subjects[path] = Subject(path, _open_sae(path, config, force), config, fingerprint)
    order = dict.fromkeys(p for path, inside in found.items() for p in ([run.path for run in inside] or [path]))
    return [subjects[path] for path in order if path in subjects]


def open_runs(runs: Sequence[RunDirectory], settings: EvalConfig | None = None) -> list[Subject]:
    """Return the finished runs, with `settings` in place of their own; others are logged. UserError if none is left."""
    subjects, problems = [], []
    for run in runs:
        try:
            state = run.status["state"]
            if state != "done":
                raise UserError(f"{run.path}: its state is {state}, not done; finish it with sae train or sae sweep")
            config = replace(run.config, eval=settings or run.config.eval)
            check_unchanged(config, run.fingerprint, run.path)
            subjects.append(Subject(run.path, _finite(load_sae(run.path), run.path), config, run.fingerprint))
        except UserError as problem:
            log.warning("skipped: %s", problem)
            problems.append(problem)
    if runs and not subjects:
        raise UserError(f"none of the {len(runs)} runs can be evaluated: {problems[0]}")
    return subjects


def is_sae(path: Path) -> bool:
    """Return whether a folder is an SAE without a run: an exported one or another library's."""
    exported = (path / "cfg.json").exists() and (path / "sae.safetensors").exists()
    return not (path / "config.yaml").exists() and (exported or recognise(path) is not None)


def _open_sae(path: Path, config: Config, force: bool) -> SAE:
    """Return the SAE in a folder; UserError if its metadata tell of other data and force is not given."""
    sae = _finite(open_sae(path), path)
    problem = _other_origin(sae.metadata, config)
    if problem and not force:
        raise UserError(f"{path}: {problem}; give its data (model=NAME model.hook=HOOK), or --force")
    return sae


def _data(words: Sequence[str], data: Sequence[str], runs: Sequence[Subject]) -> tuple[Config, str]:
    """Return configuration and fingerprint of what SAEs without a run are evaluated on."""
    if data:
        config = compose(list(words))
        return config, source_fingerprint(config)
    if runs:
        return runs[0].config, runs[0].fingerprint
    raise UserError("an SAE without a run needs data: add overrides (model=tiny text=wiki), or a run that has them")


def _settings(config: Config, words: Sequence[str]) -> EvalConfig:
    """Return a run's evaluation settings under overrides."""
    words = [word for word in words if word.startswith(("eval.", "eval="))]
    own = [f"eval.{key}={value}" for key, value in asdict(config.eval).items()]
    # A choice of the group stands for all of its values.
    return compose([*([] if any(word.startswith("eval=") for word in words) else own), *words]).eval


def _finite(sae: SAE, path: Path) -> SAE:
    if not all(bool(tensor.isfinite().all()) for tensor in (*(getattr(sae, n) for n in SHAPES), *sae.stored.values())):
        raise UserError(f"{path}: its weights are not finite")
    return sae


def _other_origin(metadata: dict[str, Any], config: Config) -> str:
    """Return where the model, its weights or the hook that an SAE names differ from its data's, or an empty string."""
    model, kind = config.model, config.source.kind
    own = {"model_name": (model.path, model.name), "hook_name": (model.hook,)}
    for key, named in ((key, metadata.get(key)) for key in own):
        if named and kind not in ("language_model", "vectors"):
            return f"it is of {named}, its data of source={kind}"
        if named and kind == "language_model" and _plain(named) not in map(_plain, own[key]):
            return f"it is of {named}, its data of {own[key][-1]}"
    if kind == "language_model" and "model_fingerprint" in metadata:
        known, now = metadata["model_fingerprint"], model_fingerprint(model)
        # a folder is known by its content, a model of a hub by its revision, which says nothing of a folder
        if ("@" in known) == ("@" in now) and known.split("@")[-1] != now.split("@")[-1]:
            return f"it is of other weights, another tokenizer or another revision of {own['model_name'][0]}"
        if (processing := metadata.get("model_processing")) != model.processing:
            return f"it is of model.processing={processing}, its data of {model.processing}"
    return ""


def _plain(name: str) -> str:
    """Return a model's or a hook's name without owner, punctuation and case, hooks between layers by one name."""
    name = re.split("[/:]", name.lower())[-1].replace("hook_resid_pre", "hook_in")
    return re.sub(r"[^a-z0-9]", "", name.replace("hook_resid_post", "hook_out"))
