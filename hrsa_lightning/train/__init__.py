"""The command that trains embedding models and measures how similar they are."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command from Python; returns the exit code (2 for a mistake of the user)."""
    from hrsa_lightning.train.__main__ import main as run  # which `python -m` must find unloaded

    return run(argv)
