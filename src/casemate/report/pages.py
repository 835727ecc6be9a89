"""Our pages out of their templates: one set of rules for escaping, whatever the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The page: everything is escaped, and a name that nobody gives is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("casemate.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
