"""Brings the documents that lie outside docs/ onto the site, and makes every link between documents work there.

The README is the first page. Each notebook of examples/ is a page too, with the results that are stored in it. A
document links to another as it lies in the repository. On the site a link to a document leads to its page; a link to a
file that is no page of the site, such as a source, becomes the file's name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {  # document: its page
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/README.md": "bench.md",
}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FIRST = "examples/purify-and-detect.md"  # where a link to the folder leads
WORKER = "https://unpkg.com/iframe-worker/shim"  # which the theme loads; a copy lies beside this file
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal
LINK = re.compile(r"(?<!!)\[([^\]]*(?:!\[[^\]]*\]\([^)]*\))?[^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^):\s]+)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The documents outside docs/ become pages."""
    for document, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    for notebook in NOTEBOOKS:
        text, resources = MarkdownExporter().from_filename(str(notebook))
        for name, content in resources["outputs"].items():  # its pictures
            text = text.replace(f"]({name})", f"]({notebook.stem}-{name})")
            files.append(File.generated(config, f"examples/{notebook.stem}-{name}", content=content))
        files.append(File.generated(config, f"examples/{notebook.stem}.md", content=ESCAPE.sub("", text)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files, **kwargs: Any) -> str:
    """Links as the site needs them. Code is left alone."""
    documents = {page: document for document, page in OUTSIDE.items()}
    here = page.file.src_uri
    lies = documents.get(here, f"docs/{here}")  # in the repository

    def target(link: str) -> str | None:
        """What a link of this document is from its page; None where the site has no such file."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(lies), link))
        uri = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if path == "examples":
            uri = FIRST
        elif path.startswith("examples/") and path.endswith(".ipynb"):
            uri = path.removesuffix(".ipynb") + ".md"
        if files.get_file_from_path(uri) is None:
            return link if not (ROOT / path).exists() else None  # a dead link is left for mkdocs to warn of
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    def picture(found: re.Match[str]) -> str:
        return f"![{found[1]}]({target(found[2]) or found[2]})"

    def link(found: re.Match[str]) -> str:
        there = target(found[2])
        return found[1] if there is None else f"[{found[1]}]({there}{found[3] or ''})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, PICTURE.sub(picture, part)) for part in parts)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """No page asks another host for anything."""
    return output.replace(WORKER, posixpath.relpath("website/iframe-worker.js", posixpath.dirname(page.url) or "."))
