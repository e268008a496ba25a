"""The documentation site: built without a warning and without the network, with every public name of the package."""

import ast
import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason='the site needs pip install -e ".[docs]"')

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site strictly; no warning may be said."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # Material's notice on MkDocs 2 is about the future of MkDocs, not about this site.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = build.stdout + build.stderr
    assert build.returncode == 0, said
    assert not re.search(r"WARNING|ERROR", said), said
    return folder


def test_every_public_name_is_on_the_api_pages(site: Path) -> None:
    names = set(public_names())
    shown = {name for page in (site / "api").rglob("*.html") for name in re.findall(r'id="([\w.]+)"', page.read_text())}
    assert len(names) > 100
    assert sorted(names - shown) == []


def test_shapes_are_shown_as_written(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", "".join(page.read_text() for page in (site / "api").rglob("*.html")))
    assert 'Float[Tensor, "batch 3 height width"]' in html.unescape(text)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    remote = re.compile(r'<(script|img|iframe)[^>]+src="(https?:)?//|<link[^>]+href="(https?:)?//')
    assert [page for page in site.rglob("*.html") if remote.search(page.read_text())] == []


def test_links_and_images_lead_to_files(site: Path) -> None:
    for page in {*site.glob("*.html")} - {site / "404.html"}:
        for target in re.findall(r'(?:href|src)="([^"#:]+)["#]', page.read_text()):
            assert (site / target).exists(), f"{page.name}: {target}"


def public_names() -> Iterator[str]:
    """Yield the dotted names of all public modules, and of their public classes, functions and methods."""
    for path in sorted((ROOT / "posegen").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "._" not in module:
            yield module
            yield from public_members(module, ast.parse(path.read_text()))


def public_members(owner: str, node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield the public classes, functions and methods that a module or a class defines."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
            yield f"{owner}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from public_members(f"{owner}.{child.name}", child)
