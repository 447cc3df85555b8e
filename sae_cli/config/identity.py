"""Run identity is content: what a run is called follows from what it would compute."""

from typing import Any

from sae_cli.config.convert import to_dict
from sae_cli.config.schema import NOT_SEMANTIC, PER_MEMBER, SCHEMA_VERSION, Config
from sae_cli.files import short_hash

TRAIN_NOT_SEMANTIC = ("log_every", "checkpoint_every", "sparse", "memory_bytes", "parallel")
LATER: dict[str, dict[str, Any]] = {"sae": {"freeze_decoder": False}, "orthogonality": {"search_rows": 0}}
"""Keys that came after the first runs: at these values they are left out, so that older runs keep their ids."""


def semantic(config: Config, source_fingerprint: str) -> dict[str, Any]:
    """Return the part of a configuration that decides the trained weights."""
    part = {key: value for key, value in to_dict(config).items() if key not in NOT_SEMANTIC}
    part["train"] = {key: value for key, value in part["train"].items() if key not in TRAIN_NOT_SEMANTIC}
    for section, keys in LATER.items():
        part[section] = {key: value for key, value in part[section].items() if key not in keys or value != keys[key]}
    part["source"] = source_fingerprint
    part["mix_bytes"] = config.cache.mix_bytes
    part["schema"] = SCHEMA_VERSION
    return part


def run_id(config: Config, source_fingerprint: str) -> str:
    """Return the run's id: a short hash of the semantic configuration; the same point has the same id anywhere."""
    return short_hash(semantic(config, source_fingerprint), 10)


def stack_key(config: Config, source_fingerprint: str) -> str:
    """Return the hash that points must share to be members of one stack."""
    part = semantic(config, source_fingerprint)
    for key in PER_MEMBER:
        *sections, last = key.split(".")
        holder = part
        for section in sections:
            holder = holder[section]
        holder.pop(last)
    part["work"] = [config.device, *(getattr(config.train, key) for key in TRAIN_NOT_SEMANTIC)]
    return short_hash(part, 10)
