"""What the parsers of several commands have in common. Imports no torch."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrsa_lightning.encoders import EncoderOptions


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the lines of a page, options and what they do on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `encoder_options` reads."""
    add: Any = parser.add_argument
    add("--max-length", type=positive, metavar="N",
        help="most tokens of a text (a run's own, or 512)")  # fmt: skip
    add("--batch-size", type=positive, default=32, metavar="N", help="texts of a forward pass (32)")
    add("--dtype", help="of the weights, such as bfloat16 (a run's own, or float32)")
    add("--device", help="such as cuda:1")


def encoder_options(arguments: argparse.Namespace) -> "EncoderOptions":
    """How the models of a command run."""
    from hrsa_lightning.encoders import EncoderOptions

    return EncoderOptions(
        max_length=arguments.max_length,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )
