"""The console command `hrsa`, and what the commands share. Imports no torch."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from hrsa_lightning.errors import HRSAError, nearest

T = TypeVar("T")

COMMANDS = {
    "train": "train embedding models side by side and watch how similar they are",
    "mine": "find hard negatives for contrastive pairs",
    "compare": "compare models that are already there, layer by layer",
    "evaluate": "score embedding models on retrieval and MTEB tasks",
    "export": "turn a finished run into a folder that SentenceTransformer loads",
    "report": "put one run, or many, on one page",
    "fetch": "put a recipe's data and backbones in one folder, to train without a network",
    "plan": "print what a recipe needs before any weight is loaded",
}
"""Name and one-line description of each command; each is a module of this package."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (2 for a mistake of the user)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print("hrsa_lightning", importlib.import_module("hrsa_lightning").__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: no command '{name}'.{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    code: int = find_command(name).main(rest)
    return code


def find_command(name: str) -> Any:
    """The module of a command, which has `main(argv)`."""
    command = importlib.import_module(f"hrsa_lightning.{name}")
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"hrsa_lightning.{name}.__main__")
    return command


def program(name: str) -> str:
    """How a command was started, for its usage: `hrsa NAME` or `python -m hrsa_lightning.NAME`."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == "hrsa_lightning":
        return f"python -m hrsa_lightning {name}"
    return f"hrsa {name}" if started.stem == "hrsa" else f"python -m hrsa_lightning.{name}"


def answered(command: Callable[[], int]) -> int:
    """Run a command's work and answer a user's mistake in its own words.

    Args:
        command: Does the work and returns the exit code.

    Returns:
        What `command` returns; 2 after an `HRSAError`, whose message goes to standard error; 130
        when the user interrupts.
    """
    with _lasting_output():
        try:
            return command()
        except HRSAError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


@contextmanager
def _lasting_output() -> Iterator[None]:
    """Print what a locale cannot show by its code, and go on where nobody reads."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    streams = {name: one for name, one in streams.items() if isinstance(one, io.TextIOWrapper)}
    for name, stream in streams.items():
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Output(stream))
    try:
        yield
    finally:
        for name, stream in streams.items():
            _Output(stream).flush()
            setattr(sys, name, stream)


class _Output(io.TextIOBase):
    """A standard stream whose reader may go away: a closed pipe or a full disk ends no run."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unread():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # what follows, and what is left at the end, goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the lines of a page, options and what they do on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, which its usage calls as it was started."""

    def __init__(self, name: str, **texts: Any) -> None:
        super().__init__(prog=program(name), formatter_class=HelpFormatter, **texts)


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def listing(described: Mapping[str, str]) -> str:
    """Names and what they are, a line each, in two columns."""
    width = max(map(len, described), default=0)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in described.items())


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `EncoderOptions` has."""
    add: Any = parser.add_argument
    add("--max-length", type=positive, metavar="N",
        help="most tokens of a text (a run's own, or 512)")  # fmt: skip
    add("--batch-size", type=positive, default=32, metavar="N", help="texts of a forward pass (32)")
    add("--dtype", help="of the weights, such as bfloat16 (a run's own, or float32)")
    add("--device", help="such as cuda:1")


def options_of(kind: type[T], arguments: argparse.Namespace, **others: Any) -> T:
    """A dataclass of options from the arguments of the same names, and others."""
    names = {option.name for option in fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return kind(**{**given, **others})


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, its columns aligned; the first row is the head.

    Cells are taken as plain text, see `markdown_text`.

    Example:
        >>> print("\\n".join(markdown_table([["arm", "mean"], ["a", "0.5"]])))
        | arm | mean |
        |-----|------|
        | a   | 0.5  |
    """
    rows = [[markdown_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def markdown_text(text: str) -> str:
    """A text on one line of Markdown, where it can begin no HTML, link or picture.

    Example:
        >>> markdown_text("<b> [a](b)")
        '&lt;b> [a]\\\\(b)'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
    return " ".join(text.splitlines())


def _usage() -> str:
    more = "hrsa COMMAND --help says more; hrsa --version."
    return f"usage: hrsa COMMAND ...\n\n{listing(COMMANDS)}\n\n{more}"


if __name__ == "__main__":
    sys.exit(main())
