"""Pages of the site that live elsewhere in the repository: recipes, changes, benchmarks, rules for contributors.

A hook of mkdocs (mkdocs.yml). There is one text of each page, with the links that GitHub follows; when the site is
built they are turned into those between its pages. What a page links to that is no page (results, examples, settings)
comes along as the file that it is. A link to nothing stays as it is, and a strict build ends with it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/LOG.md": "benchmarks/log.md",
    "recipes/README.md": "recipes/index.md",
    **{
        f"recipes/{page.parent.name}/README.md": f"recipes/{page.parent.name}.md"
        for page in ROOT.glob("recipes/*/*.md")
    },
}
"""Where a page lives in the repository -> where it stands in the site. docs/X stands at X."""

_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_NESTED = re.compile(r"^  (?=- )", re.MULTILINE)
"""An item within an item as GitHub takes it; the site's Markdown wants four columns."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_OUTSIDE = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere, and the files that any page links to."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for source, uri in PAGES.items():
        texts[source] = (ROOT / source).read_text()
        files.append(File.generated(config, uri, content=texts[source]))
    for source, text in texts.items():
        for target in links(text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if (ROOT / path).is_file() and files.get_file_from_path(place(path)) is None:
                files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of the repository into those of the site."""
    uri = page.file.src_uri
    source = next((source for source, there in PAGES.items() if there == uri), f"docs/{uri}")
    return _NESTED.sub("    ", rewritten(markdown, lambda target: moved(target, source)))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Nothing is fetched from elsewhere: the site works without a network, and tells nobody who reads it."""
    if found := _OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri}: loads from another host: {found[0]}")
    return output


def place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    return PAGES.get(path, path.removeprefix("docs/"))


def moved(target: str, source: str) -> str:
    """The link `target` of the page at `source` in the repository, as the site's page has to have it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).is_file():
        return target
    return posixpath.relpath(place(path), posixpath.dirname(place(source)) or ".")


def links(text: str) -> Iterator[str]:
    """Targets of links and pictures within the repository, those in code left out."""
    for match in _LINK.finditer(_FENCED.sub("", text)):
        yield match[1]


def rewritten(text: str, change: Callable[[str], str]) -> str:
    """The text with `change` of each of its links; code stays as it is."""
    parts, end = [], 0
    for fenced in _FENCED.finditer(text):
        parts += [_LINK.sub(lambda match: change(match[1]), text[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, _LINK.sub(lambda match: change(match[1]), text[end:])])
