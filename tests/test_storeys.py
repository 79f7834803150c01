"""The house: a storey imports only from those above it, and no two files import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCVIT = ("errors", "files", "hardware", "documents", "model", "data", "training", "inference", "evaluation", "cli")
KD = (
    "losses",
    "config",
    "teacher",
    "student",
    "batches",
    "sweep",
    "objective",
    "distill",
    "documents",
    "cifar10",
    "cli",
)
FILES = sorted(file for package in ("docvit", "kd") for file in (ROOT / package).rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in FILES}


def imports_of(file: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it the import stands, but for `if TYPE_CHECKING`."""
    found = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typed = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= whole or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


def storey_of(module: str, storeys: tuple[str, ...]) -> int:
    parts = module.split(".")
    return storeys.index(parts[1]) if len(parts) > 1 and parts[1] in storeys else len(storeys)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_from_storeys_above_it_alone(module):
    package = module.split(".")[0]
    storeys = {"docvit": DOCVIT, "kd": KD}[package]
    for imported in imports_of(MODULES[module]):
        if imported == "docvit":
            continue  # it imports nothing until it is asked for a name
        if imported.split(".")[0] == package:
            assert storey_of(imported, storeys) <= storey_of(module, storeys), f"{module} imports {imported}"
        else:
            assert package == "kd", f"{module} imports {imported}: docvit never imports kd"


def test_every_file_has_a_storey():
    for module in MODULES:
        package, _, rest = module.partition(".")
        if rest and rest != "__main__":
            assert rest.split(".")[0] in {"docvit": DOCVIT, "kd": KD}[package], module


def test_no_files_import_each_other_in_a_circle():
    graph = {module: imports_of(file) - {module} for module, file in MODULES.items() if file.name != "__init__.py"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
