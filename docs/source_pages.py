"""Makes links from the docs to files of the repository work in the site as they do where the repository is read.

A link such as `../configs/demo.yaml` leaves the docs. The site gets a page for each file that is linked so, which shows
it, and the link leads there. No address of the repository is needed, and a link to a file that is gone fails the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(#.*\n)*(python|pip|mrg|torchrun|vllm|mkdocs|srun|[A-Z_]+=\S+) ")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file of the repository that a page links to.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    root = Path(config.config_file_path).parent
    linked = {path for page in list(files.documentation_pages()) for path in LINK.findall(page.content_string)}
    for path in sorted(linked):
        files.append(File.generated(config, _page(path), content=_shown(path, (root / path).read_text("utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to those pages and colour commands; pages of the docs lie in one folder, those of files stay."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    return BLOCK.sub(_coloured, LINK.sub(lambda m: f"]({_page(m[1])})", markdown))


def _coloured(block: re.Match[str]) -> str:
    """A block of code, as commands of a shell if it has no language and its first command is one."""
    if not block["language"] and COMMAND.match(block["text"]):
        return f"```bash\n{block['text']}```"
    return block[0]


def _page(path: str) -> str:
    return f"source/{path}.md"


def _shown(path: str, text: str) -> str:
    language = LANGUAGES.get(Path(path).suffix, "text")
    # More backticks than any file holds in a row, so that none of them ends the block.
    return f"---\ntitle: {path}\nsearch: {{exclude: true}}\n---\n# {path}\n``````{language}\n{text}\n``````\n"
