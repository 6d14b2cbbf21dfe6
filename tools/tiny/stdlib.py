"""Read functions with docstrings from the standard library of the running interpreter."""

import ast
import copy
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tests, vendored or generated code, and folders that are not the PSF's own prose.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class Function:
    """One function of the standard library.

    Attributes:
        module: dotted module name.
        qualname: name inside the module, with its classes.
        summary: first sentence of the docstring, or an empty string.
        source: normalized source with the docstring.
        body: normalized source without the docstring, the function itself renamed to `f`.
    """

    module: str
    qualname: str
    summary: str
    source: str
    body: str


def stdlib_path() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_functions(folder: Path) -> list[Function]:
    """Read the functions of every module below a folder, in sorted order of their paths.

    Files that carry a copyright notice of somebody else than the Python Software Foundation are
    left out, so that one licence covers what is shipped.
    """
    functions: list[Function] = []
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if _SKIPPED_FOLDERS.intersection(relative.parts) or relative.name.startswith(
            _SKIPPED_PREFIXES
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if not _has_foreign_copyright(text):
            parts = relative.with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            functions.extend(_functions_of(module, text))
    return functions


def _has_foreign_copyright(text: str) -> bool:
    lowered = text.lower()
    return any(
        "copyright" in line and "python software foundation" not in line
        for line in lowered.splitlines()
    )


def _functions_of(module: str, text: str) -> Iterator[Function]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        tree = ast.parse(text)
    for qualname, node in _walk(tree, ""):
        docstring = ast.get_docstring(node) or ""
        yield Function(
            module, qualname, _first_sentence(docstring), ast.unparse(node), _anonymous(node)
        )


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, f"{prefix}{child.name}.")


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.strip().split("\n\n", 1)[0].split())
    return paragraph.split(". ", 1)[0].rstrip(".")


def _anonymous(node: ast.FunctionDef) -> str:
    """Return the source without docstring and decorators, the function renamed to `f`.

    The name often repeats the docstring's words, which would make retrieval a string match.
    """
    bare = copy.deepcopy(node)
    if ast.get_docstring(bare) is not None:
        bare.body = bare.body[1:] or [ast.Pass()]
    bare.name = "f"
    bare.decorator_list = []
    return ast.unparse(ast.fix_missing_locations(bare))
