"""HTML from the Jinja templates in templates/: what is put into them is escaped, what is missing raises."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_cli import __version__

LOADER = PackageLoader("sae_cli.reporting")
ENVIRONMENT = Environment(
    loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def render(template: str, **values: Any) -> Markup:
    """Return a filled template; any exception that a value of the wrong kind makes it raise."""
    return Markup(ENVIRONMENT.get_template(template).render(values))


def script_json(value: Any) -> Markup:
    """Return JSON in which no `<` is left, so nothing in the data can end its script element."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _file(name: str) -> Markup:
    return Markup(LOADER.get_source(ENVIRONMENT, name)[0])


ENVIRONMENT.globals |= {"file": _file, "made": f"sae {__version__}"}
ENVIRONMENT.filters["three"] = lambda value: "" if value is None else f"{value:.3f}"
