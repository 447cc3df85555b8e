"""The sections that need the language model and its text: first letters and sparse probing."""

import logging
from typing import Any

from sae_cli.config.schema import Config, EvalConfig
from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.absorption import first_letter
from sae_cli.evaluation.probing import probing_tasks, sparse_probing
from sae_cli.evaluation.words import word_activations
from sae_cli.sources.language_model import LanguageModel

log = logging.getLogger(__name__)


def task_sections(saes: list[SAE], model: LanguageModel, config: Config, settings: EvalConfig) -> list[dict[str, Any]]:
    """Return `first_letter` and `probing` of each SAE, as far as settings ask for them.

    All SAEs share one forward pass for each.
    """
    sections: list[dict[str, Any]] = [{} for _ in saes]
    hook = config.model.hook
    if settings.words:
        words, x_ND = word_activations(model, hook, settings.words)
        log.info("first letters: %d words", len(words))
        for section, part in zip(sections, first_letter(saes, words, x_ND), strict=True):
            section["first_letter"] = part
    if settings.probe_rows:
        tasks = probing_tasks(model, config.text, hook, settings.probe_rows)
        log.info("probing: %s", ", ".join(f"{name} {len(task.x_ND)} rows" for name, task in tasks.items()))
        for section, part in zip(sections, sparse_probing(saes, tasks), strict=True):
            section["probing"] = part
    return sections
