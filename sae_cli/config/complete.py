"""Shell completion of overrides: groups, keys and their values."""

import typer

from sae_cli.config.groups import GROUPS, choices
from sae_cli.config.keys import by_name


def complete(context: typer.Context, incomplete: str) -> list[str]:
    """Return the completions of an unfinished override.

    bash breaks words at `=`, so there the words before the cursor end in `key`, `=` and only the value is completed.
    """
    words = [*(context.params.get("overrides") or ()), *context.args]
    if words and words[-1] == "=":
        return [value for value in _values(words[-2]) if value.startswith(incomplete)]
    if words and "=" not in words[-1] and _values(words[-1]):
        return _values(words[-1])
    key, equals, start = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values(key) if value.startswith(start)]
    names = [*GROUPS, *by_name()]
    return [f"{name}=" for name in names if name.startswith(incomplete)]


def _values(key: str) -> list[str]:
    if key in GROUPS:
        return list(choices(key))
    from sae_cli.config.check import ALLOWED

    switch = key in by_name() and by_name()[key].type == "bool"
    return list(ALLOWED.get(key, ("true", "false") if switch else ()))
