"""HTML pages of one file each: no network, nothing to install, text from data never becomes markup."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    # Autoescaping is on whatever a template is called: a report may hold `<script>`, quotes or anything else.
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill a template of `mrg/pages/templates`; values are escaped unless they are `markupsafe.Markup`.

    Raises:
        jinja2.UndefinedError: If the template uses a value that is not given.
    """
    return _environment().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render into a file; an old page stays whole, and is what a browser sees, until the new one is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(render(template, **values), encoding="utf-8")
    temporary.replace(path)
