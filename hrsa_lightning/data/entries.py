"""One entry of `data.train`: where pairs lie, which of them, and what their columns are for.

Imports no torch and reads no file: an entry is checked before anything is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrsa_lightning.errors import DataError, nearest, shown
from hrsa_lightning.io.pairs import ROLES
from hrsa_lightning.io.sources import SourceEntry, is_texts


@dataclass(frozen=True)
class PairEntry(SourceEntry):
    """A source of contrastive pairs; in a recipe a mapping, or just its `path`.

    Attributes:
        columns: Columns by role, see `io.pairs.Layout`; by default they are recognized.
        instruction: Of queries that have none in their row or in an instruction column.
        negatives: "error" or "drop" in place of `data.missing_negatives`.
        weight: How often batches come from this source, see `data.weights`.
        rows: Pairs that there are, as recorded when the recipe was written; for `plan`.

    Raises:
        DataError: A value is none of these; the message begins with its key.
    """

    columns: Mapping[str, Any] | None = None
    instruction: str | None = None
    negatives: str | None = None
    weight: float | None = None
    rows: int | None = None

    numbers = ("limit", "rows")

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.weight
        if weight is not None and (isinstance(weight, bool | str) or not 0 <= weight <= 1e9):
            raise DataError(f"weight: expected a value in [0, 1e9], got {shown(weight)}")
        if self.negatives not in (None, "error", "drop"):
            raise DataError(f"negatives: expected error or drop, got {shown(self.negatives)}")
        self._check_columns()

    def _check_columns(self) -> None:
        if self.columns is None:
            return
        if not isinstance(self.columns, Mapping):
            raise DataError(
                f"columns: expected a mapping such as {{query: NAME, pos: NAME}}, got "
                f"{shown(self.columns)}"
            )
        for role, names in self.columns.items():
            if role not in ROLES:
                raise DataError(
                    f"columns: expected roles {', '.join(ROLES)}, got {shown(role)}."
                    f"{nearest(str(role), ROLES)}"
                )
            if not is_texts(names) or (role == "query" and not isinstance(names, str)):
                raise DataError(f"columns.{role}: expected a column's name, got {shown(names)}")
        for role in ("query", "pos"):
            if not self.columns.get(role):
                raise DataError(f"columns.{role}: expected a column's name, got none")
