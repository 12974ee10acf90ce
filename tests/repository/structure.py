"""What the source files of the packages look like: modules, imports between their folders, lengths of functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("nnunetv2_swinfuse", "pretraining")


@dataclass(frozen=True)
class Module:
    """A source file.

    Attributes:
        path: relative to the repository.
        name: dotted, as it is imported.
        tree: its syntax.
    """

    path: Path
    name: str
    tree: ast.Module

    @property
    def folder(self) -> str:
        """The folder of the module, dotted; the files directly in `pretraining/` are the folder `pretraining`."""
        return ".".join(self.path.parent.parts)


@dataclass(frozen=True, order=True)
class Import:
    """One module of ours imported by another.

    Attributes:
        importer, imported: dotted names.
        lazy: inside a function, so that it runs only when that is called.
    """

    importer: str
    imported: str
    lazy: bool


def modules(root: Path = ROOT) -> list[Module]:
    """All modules of the packages but the empty `__init__.py`, sorted by path."""
    sources = []
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            path = file.relative_to(root)
            parts = path.with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
                if not tree.body:
                    continue
            sources.append(Module(path, ".".join(parts), tree))
    return sources


def internal_imports(sources: list[Module]) -> set[Import]:
    """Imports between modules of the packages; `from package import module` counts as an import of the module."""
    names = {module.name for module in sources}
    return {
        Import(module.name, target, lazy)
        for module in sources
        for node, lazy in _import_nodes(module.tree, False)
        for target in _targets(node, names)
        if target != module.name
    }


def folder_arrows(sources: list[Module]) -> set[tuple[str, str]]:
    """Pairs of folders (importing, imported) that differ, over all imports."""
    folders = {module.name: module.folder for module in sources}
    pairs = {(folders[i.importer], folders[i.imported]) for i in internal_imports(sources) if i.imported in folders}
    return {(importer, imported) for importer, imported in pairs if importer != imported}


def import_cycles(sources: list[Module]) -> list[list[str]]:
    """Groups of modules that import each other directly or indirectly, sorted."""
    graph: dict[str, set[str]] = {module.name: set() for module in sources}
    for edge in internal_imports(sources):
        graph[edge.importer].add(edge.imported)
    reachable = {name: _reachable(graph, name) for name in graph}
    groups = {tuple(sorted(o for o in names if name in reachable[o])) for name, names in reachable.items()}
    return sorted(list(group) for group in groups if group)


def imported_packages(module: Module) -> set[str]:
    """The top-level packages that a module imports, ours included."""
    packages = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.split(".")[0])
    return packages


def function_lengths(sources: list[Module]) -> list[tuple[int, str]]:
    """Lines and dotted name of every function and method, longest first."""
    lengths = []
    for module in sources:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lengths.append((node.end_lineno - node.lineno + 1, f"{module.name}.{node.name}"))
    return sorted(lengths, reverse=True)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports directly or indirectly; itself only in a circle."""
    reached: set[str] = set()
    remaining = list(graph[start])
    while remaining:
        name = remaining.pop()
        if name not in reached:
            reached.add(name)
            remaining += graph.get(name, ())
    return reached


def _import_nodes(node: ast.AST, inside: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside
        else:
            yield from _import_nodes(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def _targets(node: ast.Import | ast.ImportFrom, names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in names)
        return
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        if inner in names:
            yield inner
        elif node.module in names:
            yield node.module
