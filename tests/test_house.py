"""The house rules that a machine can check (CONTRIBUTING.md says why they are as they are).

Read from the source alone: nothing of the package is imported. What ruff and mypy check is not repeated here.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Bottom to top. A module imports from its own folder and from lower floors, never sideways or up.
FLOORS = (
    {"schema", "checks", "forks"},
    {"kernels"},
    {"backend"},
    {"decoding"},
    {"verifiers"},
    {"search"},
    {"memory", "nano"},
    {"evals"},
)
HEIGHT = {folder: height for height, floor in enumerate(FLOORS) for folder in floor}
NOT_SHIPPED = {"tests", "benchmarks", "build", "dist", "out", "runs"}

FOLDERS = sorted(
    folder
    for folder in ROOT.iterdir()
    if folder.is_dir() and folder.name[0] != "." and folder.name not in NOT_SHIPPED and any(folder.rglob("*.py"))
)
MODULES = sorted([*ROOT.glob("*.py"), *(module for folder in FOLDERS for module in folder.rglob("*.py"))])


def place(module: Path) -> str:
    """The floor's name for a module: its folder, or its own name in the root."""
    return module.relative_to(ROOT).with_suffix("").parts[0]


def each_module(*, but: frozenset[str] | set[str] = frozenset()) -> pytest.MarkDecorator:
    modules = [module for module in MODULES if place(module) not in but]
    return pytest.mark.parametrize("module", modules, ids=[str(module.relative_to(ROOT)) for module in modules])


def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), module)


def imports(module: Path, nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str, bool]]:
    """Each import as (line, first component of what is imported, relative). ``from .. import a, b`` gives two."""
    package = module.relative_to(ROOT).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0], False
        elif isinstance(node, ast.ImportFrom):
            inside = package[: len(package) - node.level + 1] if node.level else ()
            path = [*inside, *(node.module.split(".") if node.module else ())]
            for first in {path[0]} if path else {alias.name for alias in node.names}:
                yield node.lineno, first, node.level > 0


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: all but function bodies."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import_time(child)


@each_module(but={"__init__", "conf"})
def test_imports_point_down(module: Path) -> None:
    here = place(module)
    assert here in HEIGHT, f"{here}/ is on no floor: add it to FLOORS"
    for line, target, relative in imports(module, ast.walk(parse(module))):
        assert target != "forethought", f"line {line}: imports inside the package are relative"
        if relative and target not in (here, "__version__"):
            assert HEIGHT.get(target, len(FLOORS)) < HEIGHT[here], f"line {line}: {here} imports {target}, which is not below it"


@each_module(but={"evals"})
def test_only_evals_knows_hydra(module: Path) -> None:
    tree = parse(module)
    used = {target for _, target, relative in imports(module, ast.walk(tree)) if not relative}
    assert not used & {"hydra", "omegaconf"}
    loaded = {target for _, target, relative in imports(module, at_import_time(tree)) if not relative}
    assert "datasets" not in loaded, "a heavy import that most runs never need: inside the function that uses it"


@each_module()
def test_module_says_what_it_is(module: Path) -> None:
    docstring = ast.get_docstring(parse(module)) or ""
    assert len(docstring.splitlines()) >= 2 or len(docstring) >= 80, "what it computes, exactly or not, and what it does not do"


@each_module()
def test_nothing_probes_with_hasattr(module: Path) -> None:
    used = {node.id for node in ast.walk(parse(module)) if isinstance(node, ast.Name)}
    assert "hasattr" not in used, "a type says what its values have"


def test_folders_are_namespaces() -> None:
    """transformers imports a package called ``kernels`` where it finds one; a folder without ``__init__.py`` it leaves alone.

    ``conf`` has one because Hydra looks configs up in a regular package.
    """
    assert [folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()] == ["conf"]


def test_no_root_name_shadows_the_standard_library() -> None:
    """Every python started in the root folder would import ours instead."""
    names = {path.stem for path in ROOT.glob("*.py")} | {folder.name for folder in ROOT.iterdir() if folder.is_dir()}
    assert not names & set(sys.stdlib_module_names)


def test_tests_mirror_the_tree() -> None:
    folders = {folder.name for folder in FOLDERS} - {"conf"}  # configs are composed by the tests of evals
    tested = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")}
    assert folders <= tested, "no tests"
    assert tested <= folders | {"benchmarks"}, "tests of nothing"
