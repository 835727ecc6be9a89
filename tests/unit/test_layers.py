"""The layer table of docs/architecture.md as data, and the rules that keep files small and imports cheap.

A file may import from lower rows and from its own package. Packages of one row are strangers; a plain module of a row
(errors.py, units.py)
may be imported by the packages beside it. ``__init__.py`` files hold a docstring and nothing else.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "casemate"

# Top row first; the names are packages or modules directly below src/casemate.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "daemon", "oci"}),
    frozenset(
        {
            "app",
            "assess",
            "reports",
            "images",
            "contents",
            "scans",
            "risks",
            "risk_reports",
            "attests",
            "challenges",
            "measures",
            "provisions",
            "releases",
        }
    ),
    frozenset({"report", "audit", "cell", "release"}),
    frozenset({"engine", "scenarios"}),
    frozenset({"plan", "controls", "provision", "measure", "harden", "surface", "scan"}),
    frozenset({"spec", "facts", "jail", "image", "evidence"}),
    frozenset({"errors", "units", "installed", "sys", "bpf"}),
)

# Soft bound 400 (style): past this one, split by subject. Data files (tables, no code) do not count.
MAX_LINES = 450
# A function fits a screen. The probe's functions are lists of attempts.
MAX_FUNCTION_LINES = 60
LISTS_IN_FUNCTIONS = "jail/probe/"

# Heavy or optional libraries: imported inside the function that needs them, so that a launch and --help stay quick.
LAZY = frozenset(
    {
        "rich",
        "cryptography",
        "pyseccomp",
        "shtab",
        "argparse",
        "sqlite3",
        "asyncio",
        "http",
        "urllib",
        "email",
        "ssl",
        "lxml",
        "elftools",
        "jinja2",
        "xml",
        "cbor2",
        "dcap_qvl",
        "h11",
        "hyperscan",
        "joserfc",
        "pysequoia",
        "securesystemslib",
        "sigstore",
        "sigstore_models",
        "tuf",
        "zstandard",
        "yaml",
    }
)
# Where such a library may be imported at the top, and why.
LAZY_ALLOWED: dict[str, frozenset[str]] = {
    "cli/": frozenset({"argparse"}),  # the command line is made of it
}
# Standard library, plus what the project declares; anything else is not there after an installation.
DECLARED = frozenset(
    """msgspec rich cryptography pyseccomp shtab lxml elftools jinja2 cbor2 dcap_qvl hyperscan joserfc pysequoia
    h11 securesystemslib sigstore sigstore_models tuf zstandard yaml""".split()  # noqa: SIM905
)

FILES = sorted(SOURCE.rglob("*.py"))


def _row(name: str) -> int | None:
    return next((number for number, names in enumerate(ROWS) if name in names), None)


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, runs at import time) of each import; relative ones are made absolute."""
    lazy: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_type_checking(node):
            lazy.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node not in lazy
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            if module == "casemate":
                for alias in node.names:
                    yield f"casemate.{alias.name}", node.lineno, node not in lazy
            else:
                yield module, node.lineno, node not in lazy


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def faults_of(relative: Path, text: str) -> list[str]:
    """Return the layer faults of one file, as readable lines."""
    faults: list[str] = []
    own = relative.parts[0].removesuffix(".py")
    row = _row(own)
    if relative.parts == ("__init__.py",):
        row = 0
    elif row is None:
        return [f"{relative}: {own} has no row in the layer table"]
    tree = ast.parse(text, str(relative))
    for module, line, at_import in _imports(tree, ("casemate", *relative.parts[:-1])):
        top, _, rest = module.partition(".")
        if top == "casemate":
            target = rest.partition(".")[0]
            target_row = _row(target)
            if target_row is None:
                faults.append(f"{relative}:{line}: imports {module}, which has no row in the layer table")
            elif target != own and (target_row < row or (target_row == row and target not in ("errors", "units"))):
                faults.append(
                    f"{relative}:{line}: imports {module} from {'a higher' if target_row < row else 'its own'} row"
                )
            continue
        if top not in sys.stdlib_module_names and top not in DECLARED:
            faults.append(f"{relative}:{line}: imports {top}, which pyproject.toml does not declare")
        allowed = next(
            (names for prefix, names in LAZY_ALLOWED.items() if str(relative).startswith(prefix)), frozenset[str]()
        )
        if at_import and top in LAZY - allowed:
            faults.append(
                f"{relative}:{line}: imports {top} at module level; import it inside the function that needs it"
            )
    return faults


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 50


def test_imports_follow_the_layer_table() -> None:
    assert [fault for path in FILES for fault in faults_of(path.relative_to(SOURCE), path.read_text())] == []


def _shape_faults(relative: Path, text: str) -> list[str]:
    """What is wrong with the shape of one file: docstring, length, functions that do not fit a screen."""
    tree = ast.parse(text)
    faults = [] if ast.get_docstring(tree) else [f"{relative}: a file starts with a docstring"]
    if relative.name == "__init__.py" and len(tree.body) != 1:
        faults.append(f"{relative}: __init__.py holds a docstring and nothing else")
    if not relative.stem.endswith("_data") and len(text.splitlines()) > MAX_LINES:
        faults.append(f"{relative}: more than {MAX_LINES} lines; split it by subject")
    if not str(relative).startswith(LISTS_IN_FUNCTIONS):
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        faults += [
            f"{relative}:{function.lineno}: the body of {function.name} has more than {MAX_FUNCTION_LINES} lines"
            for function in functions
            if _body_lines(function) > MAX_FUNCTION_LINES
        ]
    return faults


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_and_functions_are_small_enough_and_files_say_what_they_are() -> None:
    assert [fault for path in FILES for fault in _shape_faults(path.relative_to(SOURCE), path.read_text())] == []


def test_the_shape_checker_sees_each_fault() -> None:
    long = "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES + 1)
    assert len(_shape_faults(Path("a.py"), "x = 1")) == 1
    assert len(_shape_faults(Path("a/__init__.py"), '"""It."""\nx = 1')) == 1
    assert len(_shape_faults(Path("a.py"), '"""It."""\n' + "x = 1\n" * MAX_LINES)) == 1
    assert len(_shape_faults(Path("a.py"), f'"""It."""\n{long}')) == 1
    assert _shape_faults(Path("a_data.py"), '"""It."""\n' + "x = 1\n" * MAX_LINES) == []
    assert _shape_faults(Path("a.py"), '"""It."""\n' + long.replace("    x = 1\n", '    """It."""\n', 1)) == []


def test_every_row_of_the_architecture_document_is_in_the_table() -> None:
    document = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    block = document.split("\n\n    6  ")[1].split("\n\n")[0].splitlines()
    rows = [line[3 if number else 0 :].split("   ")[0].split() for number, line in enumerate(block)]
    found = {
        word.removesuffix("/").removesuffix(".py") for words in rows for word in words if word.endswith(("/", ".py"))
    }
    assert {"errors", "sys", "spec", "plan", "engine", "app", "cli"} <= found
    for name in found:
        assert _row(name) is not None, f"{name} stands in docs/architecture.md and not in ROWS"
    for words in rows:
        numbers = {_row(word.removesuffix("/").removesuffix(".py")) for word in words if word.endswith(("/", ".py"))}
        assert len(numbers) == 1, f"{words} stand in one row of docs/architecture.md and in several of ROWS"


@pytest.mark.parametrize(
    ("relative", "text", "word"),
    [
        ("facts/a.py", "from casemate.engine import start", "higher row"),
        ("facts/a.py", "def f():\n    import casemate.engine.start", "higher row"),
        ("facts/a.py", "from casemate.jail import rules", "its own row"),
        ("facts/a.py", "from casemate import jail", "its own row"),
        ("facts/a.py", "from ..jail import rules", "its own row"),
        ("sys/a.py", "import casemate.bpf.evaluate", "its own row"),
        ("errors.py", "from casemate.sys import libc", "its own row"),
        ("facts/a.py", "import rich.table", "at module level"),
        ("facts/a.py", "if True:\n    import cryptography", "at module level"),
        ("facts/a.py", "import toml", "does not declare"),
        ("facts/a.py", "import casemate.unheard", "no row"),
        ("unheard/a.py", "", "no row"),
    ],
)
def test_the_checker_sees_each_fault(relative: str, text: str, word: str) -> None:
    faults = faults_of(Path(relative), text)
    assert len(faults) == 1
    assert word in faults[0]


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        ("facts/a.py", "from casemate.facts.root import Root\nfrom .root import Root\nimport msgspec, os.path"),
        ("facts/a.py", "def f():\n    import rich"),
        ("sys/a.py", "from casemate.errors import HostError\nfrom casemate import units"),
        ("engine/a.py", "from casemate.plan import model\nfrom casemate.sys import libc"),
        ("cli/a.py", "import argparse\nfrom casemate.app import run"),
    ],
)
def test_the_checker_accepts_what_is_allowed(relative: str, text: str) -> None:
    assert faults_of(Path(relative), text) == []
