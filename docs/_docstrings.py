"""Brings docstrings into the forms that the reference renders; used by mkdocs.yml."""

from typing import Any

import griffe


class Readable(griffe.Extension):
    """Without it, griffe takes doctests under `Example:` for quotations, and roles for text."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute that is read."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = text.replace(":math:`", "`")
