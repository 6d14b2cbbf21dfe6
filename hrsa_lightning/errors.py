"""Every exception and warning of the package, in one tree.

```
Exception
└── HRSAError                 anything the package raises on purpose
    ├── ConfigError           a recipe or an override is wrong (also a ValueError)
    ├── DataError             a data file or a batch is wrong (also a ValueError)
    └── BackboneError         a model cannot be loaded or used as asked (also a ValueError)
        └── EncoderError      it is an encoder, where a decoder is expected

UserWarning
└── HRSAWarning               the run goes on, but a number or a feature is missing
```

The commands turn an `HRSAError` into its message and exit code 2; a library user may catch it as
`ValueError`. `functional`, `metrics` and `losses` stand alone and raise plain `ValueError` and
`TypeError`.
"""

import difflib
from collections.abc import Iterable


class HRSAError(Exception):
    """Base of all errors that the package raises on purpose."""


class ConfigError(HRSAError, ValueError):
    """A recipe, a preset or an override on the command line is wrong."""


class DataError(HRSAError, ValueError):
    """A data file or a batch does not have the expected form."""


class BackboneError(HRSAError, ValueError):
    """A backbone cannot be loaded, or cannot be used in the way that was asked."""


class EncoderError(BackboneError):
    """The backbone is an encoder, where a decoder is expected."""


class HRSAWarning(UserWarning):
    """The run goes on, but a value or a feature is missing."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or the empty string."""
    matches = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def shown(value: object) -> str:
    """A value as it stands in a message: as Python writes it, and cut where it is long."""
    return cut(repr(value))


def cut(text: str, limit: int = 60) -> str:
    """A text, such as a key, on one line of a message.

    Example:
        >>> cut("a" * 100, limit=10)
        'aaaaaaa...'
    """
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut, or the name of its class where it has none.

    Example:
        >>> first_line(ValueError("no such name: " + "a" * 5000))[-10:]
        'aaaaaaa...'
    """
    return cut(next(iter(str(error).strip().splitlines()), type(error).__name__), limit=400)


def check_counts(**values: int | None) -> None:
    """Refuse an argument that is no number from 1 to ten million; `None` passes.

    Example:
        >>> check_counts(batch_size=0)
        Traceback (most recent call last):
        ...
        hrsa_lightning.errors.ConfigError: batch_size: expected a number from 1 to 10,000,000, got 0
    """
    for name, value in values.items():
        if value is not None and not 1 <= value <= 10_000_000:
            raise ConfigError(f"{name}: expected a number from 1 to 10,000,000, got {value}")
