"""MkDocs hooks: the pages of the files outside `docs/`, and the API reference, one page a module.

Links are written as GitHub needs them, relative to the file that has them. Here they are turned to the site's pages.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "posegen"
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LIST_ITEM = re.compile(r" {0,3}([-*]|\d+\.) ")
LINK = re.compile(r"\]\(([^()\s#:]+)(#[^()\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the API pages to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": _navigation(PACKAGE)})
    config.markdown_extensions.append(ListsAfterText())  # type: ignore[arg-type]
    config.watch += [str(PACKAGE), *(str(ROOT / name) for name in ROOT_PAGES)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`, and rewrite the links of all Markdown pages."""
    for module in _modules(PACKAGE):
        files.append(File.generated(config, _api_page(module), content=_api_text(module)))
    pages = {f"docs/{file.src_uri}": file for file in files.documentation_pages() if file.generated_by is None}
    for source, uri in ROOT_PAGES.items():
        pages[source] = File.generated(config, uri, content=(ROOT / source).read_text())
        files.append(pages[source])
    linked: set[str] = set()
    for source, page in pages.items():
        page.content_string = _site_links(page.content_string, source=source, uri=page.src_uri, linked=linked)
    for path in sorted(linked):
        text = f"# `{path}`\n\n````{Path(path).suffix[1:] or 'text'}\n{(ROOT / path).read_text()}\n````\n"
        uri = f"files/{path.lstrip('.')}.md"
        files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


class ListsAfterText(Extension, Preprocessor):
    """Let a list follow a paragraph without an empty line, as on GitHub."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register after fenced code has been taken out."""
        md.preprocessors.register(self, "lists_after_text", 20)

    def run(self, lines: list[str]) -> list[str]:
        """Insert the empty line that Python-Markdown needs."""
        result: list[str] = []
        for line in lines:
            previous = result[-1] if result else ""
            if LIST_ITEM.match(line) and previous[:1].strip() and not LIST_ITEM.match(previous):
                result.append("")
            result.append(line)
        return result


def _site_links(text: str, *, source: str, uri: str, linked: set[str]) -> str:
    """Turn the links of the file `source` to site pages; collect linked files that are no pages yet in `linked`."""

    def replaced(match: re.Match[str]) -> str:
        path = os.path.normpath(PurePosixPath(source).parent / match[1])
        if not (ROOT / path).exists():
            return match[0]
        target = _site_page(path, linked)
        return f"]({os.path.relpath(target, PurePosixPath(uri).parent)}{match[2] or ''})"

    return LINK.sub(replaced, text)


def _site_page(path: str, linked: set[str]) -> str:
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path) in _modules(PACKAGE):
        return _api_page(ROOT / path)
    if (ROOT / path / "__init__.py") in _modules(PACKAGE):
        return _api_page(ROOT / path / "__init__.py")
    if (ROOT / path).is_file():
        linked.add(path)
    return f"files/{path.lstrip('.')}.md"


def _modules(folder: Path) -> list[Path]:
    """Return the public modules of a package, `__init__.py` files included."""
    return sorted(
        path
        for path in folder.rglob("*.py")
        if path.name == "__init__.py" or not any(part.startswith("_") for part in path.relative_to(folder).parts)
    )


def _api_page(module: Path) -> str:
    name = module.relative_to(PACKAGE).with_suffix(".md")
    return f"api/{name.as_posix()}".replace("__init__", "index")


def _api_text(module: Path) -> str:
    name = ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    contents = ""
    if module.name == "__init__.py":
        contents = "\n".join(_contents(module.parent))
    return f"---\ntitle: {name}\n---\n\n::: {name}\n\n{contents}\n"


def _contents(folder: Path) -> list[str]:
    """List the packages and modules of a folder, each with the first line of its docstring."""
    lines = ["## Modules", ""]
    for module in _children(folder):
        name = module.parent.name if module.name == "__init__.py" else module.stem
        page = os.path.relpath(_api_page(module), PurePosixPath(_api_page(folder / "__init__.py")).parent)
        docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
        lines.append(f"- [`{name}`]({page}): {docstring.partition(chr(10))[0]}".removesuffix(": "))
    return lines


def _children(folder: Path) -> list[Path]:
    modules = _modules(folder)
    packages = [path for path in modules if path.name == "__init__.py" and path.parent.parent == folder]
    return packages + [path for path in modules if path.name != "__init__.py" and path.parent == folder]


def _navigation(folder: Path) -> list[Any]:
    entries: list[Any] = [_api_page(folder / "__init__.py")]
    for module in _children(folder):
        if module.name == "__init__.py":
            entries.append({module.parent.name: _navigation(module.parent)})
        else:
            entries.append({module.stem: _api_page(module)})
    return entries
