"""The rules of the house, kept by tests: imports point one way, what runs without Ray, what nobody may import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "posegen"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the ground up; a module imports from its own row and the rows above it.
ROWS = (
    ("amounts", "batch", "fields", "files", "side_by_side", "storage", "weights", "node_facts", "preemption"),
    ("alone",),
    ("data", "losses", "nets"),
    ("stage",),
    ("systems",),
    ("catalog",),
    ("cluster", "doctor"),
    ("examination",),
    ("train",),
    ("plan", "synthesize", "estimator"),
    ("metrics",),
    ("evaluate", "report"),
    ("display",),
    ("compare", "outlook", "pipeline"),
    ("sweep",),
    ("options", "sweep_options"),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ROWS) for room in rooms}
WITHOUT_RAY = (
    "alone",
    "amounts",
    "batch",
    "fields",
    "files",
    "weights",
    "losses",
    "nets",
    "stage",
    "systems",
    "catalog",
    "synthesize",
    "estimator",
    "metrics",
    "report",
)


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


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path):
    if room(path) == "__init__":
        return
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("posegen.")}
    upward = [name for name in inside if LEVEL[name] > LEVEL[room(path)]]
    assert not upward, f"{path.name} ({room(path)}) imports upward: {upward}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_models_data_and_pictures_run_without_ray_and_mlflow(path: Path):
    alone = room(path) in WITHOUT_RAY or (room(path) == "data" and path.name != "shards.py")
    alone = alone or path.relative_to(PACKAGE).as_posix() in ("train/step.py", "train/checkpoint.py", "train/loop.py")
    if alone:
        assert not {name.split(".")[0] for name in imports(path)} & {"ray", "mlflow"}


def test_nothing_imports_torchvision():
    for path in MODULES:
        assert "torchvision" not in {name.split(".")[0] for name in imports(path)}, path


def test_systems_are_not_known_to_training():
    for path in MODULES:
        if room(path) == "train":
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
    names = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib, ray\nfor n in {names}: importlib.import_module(n)\nassert not ray.is_initialized()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": str(PACKAGE.parent)})
    assert not list(tmp_path.iterdir())
