"""HTML pages of one file each: no network access, nothing to install, and data are never interpreted as markup."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mrg.files import replacing


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    # Always autoescape: a report may contain `<script>`, quotes or anything else.
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_template(name: str) -> str:
    """Text of a file of `mrg/pages/templates`, such as a script."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Render a template of `mrg/pages/templates`; values are escaped unless they are `markupsafe.Markup`.

    Raises:
        jinja2.UndefinedError: If the template uses a value that is missing.
    """
    return _environment().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template into a file, which is replaced as a whole."""
    text = render(template, **values)
    with replacing(path) as file:
        file.write(text.encode())
