"""What mkdocs.yml needs beside its plugins: docstrings, formulas, links to files outside."""

import posixpath
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$([,.;:)]*)", re.DOTALL)
_MODULE = re.compile(r"^::: (hrsa_lightning\.\w+)$", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]+)\)")


class Readable(griffe.Extension):
    """Without it, griffe takes doctests under `Example:` for quotations, and roles for text."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute that is read."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = text.replace(":math:`", "`")

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """A function in a module of its own name is what the package means by that name."""
        for package in pkg.modules.values():
            for name, module in list(package.modules.items()):
                if name in (package.exports or ()) and name in module.functions:
                    function = module.functions[name]
                    package.members[name] = function
                    function.parent = package
        _spell_extraction(pkg)


def _spell_extraction(pkg: griffe.Module) -> None:
    """`**extraction` stands for arguments of an `Extractor`, as signatures say at run time."""
    module = pkg["similarity.extraction"]
    taken = module["Extractor.__init__"].parameters
    for path in ("similarity.evaluator", "callbacks.similarity", "callbacks.recorder"):
        for cls in pkg[path].classes.values():
            init = cls.members.get("__init__")
            if init is not None and "extraction" in init.parameters:
                del init.parameters["extraction"]
                for name in module["ExtractionArguments"].attributes:
                    init.parameters.add(taken[name])


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Formulas become MathML, which needs no script; files outside of `docs/` are named by path.

    Names in the overview of a page of the reference lead to their place on it.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def name_outside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        return f"{link[1]} (`{path.removeprefix('../')}`)" if path.startswith("../") else link[0]

    if module := _MODULE.search(markdown):
        markdown = _ROW.sub(rf"| [`\1`][{module[1]}.\1] |", markdown)
    parts = _CODE.split(_LINK.sub(name_outside, markdown))
    parts[::2] = [_FORMULA.sub(_mathml, part) for part in parts[::2]]
    return "".join(parts)


def _mathml(formula: re.Match[str]) -> str:
    block, inline, mark = formula.groups()
    if block:
        return str(convert(block, display="block"))
    # Markdown takes <math> at the beginning of a line for a paragraph of its own. A mark stays with
    # what it follows.
    return f'<span class="formula">{convert(inline)}{mark}</span>'
