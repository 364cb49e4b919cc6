"""Gives the site the pages outside docs/, and leads links between them to the right place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "COVERAGE.md",
    "SECURITY.md",
    *(f"benchmarks/{path.name}" for path in sorted((ROOT / "benchmarks").glob("*.md"))),
]
"""Pages outside docs/, by their place in the repository."""
SHOWN = {".py": "python", ".toml": "toml", ".json": "json"}
"""Files that a link leads to as a page of their text."""
LINK = re.compile(r"\[([^][]*)\]\((?!https?:|#|mailto:)([^)#\s]+)((?:#[^)]*)?)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages outside docs/, and the pictures and sources that any page links to."""
    written = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + PAGES
    linked = {target for page in written for target in _targets(page)}
    for place in sorted((linked - {*written, "README.md"}).union(PAGES)):
        source, uri = ROOT / place, _site_place(place)
        if source.is_file() and files.get_file_from_path(uri) is None:
            files.append(_file(source, uri, config))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Leads links from places in the repository to places on the site."""
    uri = page.file.src_uri
    here = _repository_place(uri)

    def led(match: re.Match[str]) -> str:
        text, link, anchor = match.groups()
        place = _led_to(here, link)
        if text.endswith(".md") and not anchor and (ROOT / place).is_file():
            text = _title_of(place)
        return f"[{text}]({os.path.relpath(_site_place(place), Path(uri).parent)}{anchor})"

    return "".join(
        text if fenced else LINK.sub(led, text) for fenced, text in _fenced_and_not(markdown)
    )


def _fenced_and_not(markdown: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces, each with whether it is a block of code."""
    end = 0
    for match in FENCE.finditer(markdown):
        yield False, markdown[end : match.start()]
        yield True, match[0]
        end = match.end()
    yield False, markdown[end:]


def _targets(page: str) -> Iterator[str]:
    """The files of the repository that a page links to."""
    for fenced, text in _fenced_and_not((ROOT / page).read_text()):
        for match in () if fenced else LINK.finditer(text):
            yield _led_to(page, match[2])


def _led_to(page: str, link: str) -> str:
    """The place in the repository that a link on a page leads to."""
    return os.path.normpath(Path(page).parent / link)


def _title_of(page: str) -> str:
    """The first heading of a page, in place of its file's name."""
    return (ROOT / page).read_text().partition("\n")[0].removeprefix("# ")


def _site_place(place: str) -> str:
    """Where a file of the repository is on the site."""
    if place == "README.md":
        return "index.md"
    suffix = Path(place).suffix
    if suffix in {*SHOWN, ".ipynb"}:
        return f"source/{place.removeprefix('docs/')}.md"
    inside = place.startswith("docs/")
    return place.removeprefix("docs/") if inside else f"project/{place}"


def _repository_place(uri: str) -> str:
    """The inverse, for pages."""
    if uri.startswith("project/"):
        return uri.removeprefix("project/")
    if uri.startswith("source/"):
        return f"docs/{uri.removeprefix('source/')}"
    return f"docs/{uri}"


def _file(source: Path, uri: str, config: Any) -> File:
    if source.suffix == ".ipynb":
        return File.generated(config, uri, content=_notebook(source))
    if source.suffix in SHOWN:
        text = f"# {source.name}\n\n```{SHOWN[source.suffix]}\n{source.read_text()}\n```\n"
        return File.generated(config, uri, content=text)
    return File.generated(config, uri, abs_src_path=str(source))


def _notebook(source: Path) -> str:
    """A notebook as a page: its text, and its code in blocks."""
    pieces = []
    for cell in json.loads(source.read_text())["cells"]:
        text = "".join(cell["source"])
        pieces.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(pieces)
