"""The pages' templates: everything is escaped, and what is not given is an error."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2


def template(name: str, filters: Mapping[str, Callable[..., str]]) -> jinja2.Template:
    """A page's template of this folder, with filters of its own."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
