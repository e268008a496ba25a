"""Rules of the code base: imports point one way, models run without Ray, sizes, the public namespace."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "posegen"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Modules that load neither Ray nor MLflow, directly: all of a room, or one file.
WITHOUT_RAY = (
    "batch", "stage", "catalog", "inference", "storage", "data", "nets", "losses", "systems", "report",
    "training/step", "training/checkpoints", "training/loop", "training/task",
    "evaluation/metrics", "evaluation/scoring", "evaluation/comparison",
)  # fmt: skip
WITH_RAY = ("data/shards/preparing",)


def rows() -> list[list[str]]:
    """The rows of imports in docs/overview.md, lowest first: names of rooms and modules of `posegen`."""
    table = (ROOT / "docs" / "overview.md").read_text().partition("## Imports point one way")[2].partition("\n## ")[0]
    return [re.findall(r"`([\w/]+)`", line) for line in table.splitlines() if re.match(r"\| \d", line)]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def within(name: str, rooms: tuple[str, ...] | list[str]) -> bool:
    return any(name == room or name.startswith(f"{room}/") for room in rooms)


def row_of(name: str) -> int:
    """The row of a module; the longest matching entry wins. Fails for a module in none."""
    matching = [(len(room), row) for row, rooms in enumerate(rows()) for room in rooms if within(name, [room])]
    assert matching, f"{name} is in no row of docs/overview.md"
    return max(matching)[1]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_modules(path: Path) -> set[str]:
    """Modules of `posegen` that a file imports, as `room/module`."""
    names = {name.removeprefix("posegen.").replace(".", "/") for name in imports(path) if name.startswith("posegen.")}
    return {name for name in names if (PACKAGE / f"{name}.py").is_file()}


MODULES_WITHOUT_FACES = [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("path", MODULES_WITHOUT_FACES, ids=name_of)
def test_imports_point_one_way(path: Path):
    own = row_of(name_of(path))
    upward = [name for name in imported_modules(path) if row_of(name) > own]
    assert not upward, f"{name_of(path)} imports upward: {upward}"


def test_no_circular_imports():
    graph = {name_of(path): imported_modules(path) for path in MODULES_WITHOUT_FACES}
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert not graph, f"in or behind a circle: {sorted(graph)}"


@pytest.mark.parametrize("path", MODULES_WITHOUT_FACES, ids=name_of)
def test_models_data_and_pages_load_without_ray_and_mlflow(path: Path):
    if within(name_of(path), WITHOUT_RAY) and name_of(path) not in WITH_RAY:
        assert not {name.split(".")[0] for name in imports(path)} & {"ray", "mlflow"}


def test_nothing_imports_torchvision():
    for path in MODULES:
        assert "torchvision" not in {name.split(".")[0] for name in imports(path)}, path


def test_training_knows_no_system():
    for path in MODULES:
        if within(name_of(path), ("training",)):
            assert not any(name.startswith("posegen.systems") for name in imports(path)), path


def test_the_public_names_are_the_namespace():
    posegen = importlib.import_module("posegen")
    assert sorted(posegen.__all__) == dir(posegen)
    for name in posegen.__all__:
        assert getattr(posegen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = posegen.nothing


def test_importing_has_no_effects(tmp_path: Path):
    """Every module of the package is imported in an empty folder: nothing is made there, no Ray is started."""
    names = [".".join(("posegen", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = f"import importlib, ray\nfor n in {names}: importlib.import_module(n)\nassert not ray.is_initialized()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": str(PACKAGE.parent)})
    assert not list(tmp_path.iterdir())


OLD_WORDS = {
    "picture", "pictures", "judge", "judges", "judged", "chooser", "outlook", "recipe", "journal", "saver", "filling",
}  # fmt: skip


def words_of(identifier: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_identifiers_use_the_words_of_the_glossary(path: Path):
    tree = ast.parse(path.read_text())
    named = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    named += [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    named += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    old = sorted({name for name in named if words_of(name) & OLD_WORDS})
    assert not old, f"{name_of(path)}: {old}; see the glossary in CONTRIBUTING.md"


def entries(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name != "__pycache__")


def test_rooms_and_files_and_functions_are_small():
    rooms = {PACKAGE, *(path.parent for path in MODULES)}
    large = [
        f"{room}: {len(entries(room))} entries" for room in rooms if len(entries(room)) > 16 + 2 * (room == PACKAGE)
    ]
    for path in MODULES:
        text = path.read_text()
        large += [f"{path}: {text.count(chr(10))} lines"] if text.count("\n") > 450 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                large += [f"{path}: {node.name} has {lines} lines"] if lines > 55 else []
    assert not large
