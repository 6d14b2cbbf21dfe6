"""Contrastive pairs: records of the layouts people have, and lines of the training format.

Imports no torch: a command answers a bad line before the heavy imports.
"""

import fnmatch
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hrsa_lightning.errors import DataError, cut, nearest, shown
from hrsa_lightning.io.files import is_text

Query = str | tuple[str, str]
"""A query's text, or its (instruction, text)."""

DEFAULT_TEMPLATE = "Instruct: {instruction}\nQuery: "
"""What goes before a query that has an instruction."""

ROLES = ("query", "pos", "neg", "instruction", "pos_ids", "neg_ids")
"""What a column of pairs may be for."""

_QUERIES = (("query", "anchor"), ("question", "sentence1", "premise"))
_POSITIVES = (
    ("pos", "positive", "positive_passages"),
    ("answer", "document", "sentence2", "hypothesis"),
)
"""Names of the column, by preference; two of one group are ambiguous."""

_NEGATIVE = re.compile(r"(?:hard_)?(?:neg|negs|negative|negatives)(?:_([0-9]{1,9}))?")
_JUDGED = ("score", "label", "similarity", "similarity_score", "is_duplicate")
"""What says of two sentences how much alike they are: not every row is a pair of positives."""

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d*)\]")


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """A query with the passages that answer it and passages that nearly do.

    Attributes:
        query: A text, or an instruction and a text.
        positives: Texts that answer it, at least one.
        negatives: Texts that nearly do.
        id: Name of the pair.
        positive_ids: Of each positive, the document that it is a part of; empty where no file says.
        negative_ids: The same of the negatives.
    """

    query: Query
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    id: str | None = None
    positive_ids: tuple[str, ...] = field(default=(), repr=False)
    negative_ids: tuple[str, ...] = field(default=(), repr=False)


class Layout:
    """Which columns of a record are its query, its positives, its negatives and so on.

    Args:
        columns: Names of the columns.
        roles: Columns by role (`ROLES`): a name, a pattern such as `neg_*`, a path into what a
            column holds such as `passages[].text` or `pos[1]`, or a list of these. None recognizes
            the layouts people have: the authors' (`query`, `pos`, `neg`), those of
            sentence-transformers (`anchor`, `positive`, `negative_1` ..., and two columns such as
            `question`, `answer`), `query`, `document`, `negatives`, and Tevatron's passages.
        instruction: For queries that have none in their row.
        judged: Whether rows are filtered, so that a score beside two sentences is accounted for.
        strict: Whether all columns of `roles` have to be there, or the query and a positive.

    Raises:
        DataError: The columns are not known or not there; the second line says what to write.
    """

    def __init__(
        self,
        columns: Sequence[str],
        roles: Mapping[str, Any] | None = None,
        instruction: str | None = None,
        judged: bool = False,
        strict: bool = True,
    ) -> None:
        self.instruction = instruction
        found = _recognized(columns, judged) if roles is None else _mapped(columns, roles, strict)
        self.names = {role: names for role, names in found.items() if names}
        paths = {role: [_Path(name) for name in names] for role, names in found.items()}
        self._query, self._positives, self._negatives = paths["query"], paths["pos"], paths["neg"]
        self._instruction = paths.get("instruction", [])
        self._ids = paths.get("pos_ids", []), paths.get("neg_ids", [])

    def __str__(self) -> str:
        """The columns by role.

        Example:
            >>> print(Layout(["anchor", "positive", "negative_1", "negative_2"]))
            query anchor, pos positive, neg negative_1 ... negative_2
        """
        short = {
            role: names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
            for role, names in self.names.items()
        }
        return ", ".join(f"{role} {names}" for role, names in short.items())

    def parse(self, record: Mapping[str, Any]) -> ContrastivePair:
        """The pair of a record with these columns.

        Raises:
            DataError: A value has the wrong type, or holds an empty text.
        """
        (path,) = self._query
        query = _parse_query(path.read(record), path.name)
        if isinstance(query, str):
            given = next((path.read(record) for path in self._instruction), None)
            if instruction := given or self.instruction:
                query = (check_text(instruction, "instruction"), query)
        positives = _parse_columns(record, self._positives)
        if not positives:
            raise DataError(f'"{self._positives[0].name}" has no text')
        negatives = _parse_columns(record, self._negatives)
        # MEDI's [instruction, text] in the place of passages: one text would be right and wrong.
        if len(positives) == len(negatives) == 2 and positives[0] == negatives[0]:
            pos, neg = self._positives[0].name, self._negatives[0].name
            if not isinstance(query, str):
                raise DataError(
                    f'"{pos}" and "{neg}" both begin with {shown(positives[0])}: expected texts, '
                    f"got [instruction, text]\n  write columns: {{query: {path.name}, "
                    f"pos: '{pos}[1]', neg: '{neg}[1]'}}"
                )
        identifier = record.get("id")
        ids = [
            _parse_ids([path.read(record) for path in paths], role, len(texts))
            for paths, role, texts in zip(
                self._ids, ("pos_ids", "neg_ids"), (positives, negatives), strict=True
            )
        ]
        known = None if identifier is None else _parse_id(identifier, "id")
        return ContrastivePair(query, positives, negatives, known, *ids)


class _Path:
    """Where a value lies in a record: `passages[].text` is the text of each of its passages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.column = re.split(r"[.\[]", name, maxsplit=1)[0]
        rest = name[len(self.column) :]
        self._steps = [match.groups() for match in _STEP.finditer(rest)]
        if "".join(match[0] for match in _STEP.finditer(rest)) != rest or not self.column:
            raise DataError(f"columns: expected a path such as passages[].text, got {shown(name)}")

    def read(self, record: Mapping[str, Any]) -> Any:
        """What is there; None where the column is empty."""
        value = record.get(self.column)
        return value if not self._steps else self._follow(value, self._steps)

    def _follow(self, value: Any, steps: list[tuple[Any, ...]]) -> Any:
        if not steps or value is None:
            return value
        (key, index), rest = steps[0], steps[1:]
        try:
            if key is not None:
                return self._follow(value[key], rest)
            if index:
                return self._follow(value[int(index)], rest)
            return [self._follow(item, rest) for item in value]
        except (KeyError, IndexError, TypeError):
            raise DataError(f'"{self.name}" is not there, found {_kind(value)}') from None


def _recognized(columns: Sequence[str], judged: bool) -> dict[str, list[str]]:
    """The columns of a known layout by role."""
    query = _preferred(columns, _QUERIES, "query")
    positive = _preferred(columns, _POSITIVES, "pos")
    numbered = sorted(
        (-1 if match[1] is None else int(match[1]), name)
        for name in columns
        if (match := _NEGATIVE.fullmatch(name))
    )
    roles = {"query": [query], "pos": [positive], "neg": [name for _, name in numbered]}
    for role, passages in (("pos", "positive_passages"), ("neg", "negative_passages")):
        if passages in columns and positive == "positive_passages":
            roles[role] = [passages]
            roles[f"{role}_ids"] = [f"{passages}[].docid"]
        elif f"{role}_ids" in columns:
            roles[f"{role}_ids"] = [f"{role}_ids"]
    if "instruction" in columns:
        roles["instruction"] = ["instruction"]
    told = [name for name in _JUDGED if name in columns]
    if told and not judged and not roles["neg"]:
        raise DataError(
            f'which rows are positives says the column "{told[0]}"; expected a filter\n'
            f"  write filter: {{{told[0]}: {{min: 0.8}}}} or {{{told[0]}: [values of positives]}}"
        )
    return roles


def _preferred(columns: Sequence[str], groups: Sequence[Sequence[str]], role: str) -> str:
    for names in groups:
        found = [name for name in names if name in columns]
        if len(found) > 1:
            raise DataError(
                f'expected "{found[0]}" or "{found[1]}", got both\n'
                f"  write columns: {{query: NAME, pos: NAME, neg: NAME}} to choose"
            )
        if found:
            return found[0]
    known = ", ".join(f'"{name}"' for names in groups for name in names)
    raise DataError(
        f"{known}: none is a column, found {shown(sorted(columns))}\n"
        "  write columns: {query: NAME, pos: NAME, neg: NAME}, neg where there is one"
    )


def _mapped(columns: Sequence[str], roles: Mapping[str, Any], strict: bool) -> dict[str, list[str]]:
    """The columns that a mapping names, patterns replaced by what they match, in natural order."""
    found: dict[str, list[str]] = {"query": [], "pos": [], "neg": []}
    for role, names in roles.items():
        found[role] = []
        for name in [names] if isinstance(names, str) else names:
            column = _Path(name).column
            matching = fnmatch.filter(columns, column) if "*" in column else [column]
            matching.sort(key=lambda text: [(len(part), part) for part in re.split("_", text)])
            missing = not matching or any(text not in columns for text in matching)
            if missing and not strict and role not in ("query", "pos"):
                continue
            if missing:
                raise DataError(
                    f"columns.{role}: no column {shown(name)}.{nearest(column, columns)}\n"
                    f"  the columns are {cut(', '.join(sorted(columns)), 200)}"
                )
            found[role] += [text + name[len(column) :] for text in matching]
    return found


def parse_pair(record: object) -> ContrastivePair:
    """Turn a record of a known layout into a pair, see `Layout`.

    Wherever one text is expected for a passage, a list is accepted too, and the other way round.
    With `pos_ids` and `neg_ids`, lists as long as `pos` and `neg`, passages of one document are
    never taken for each other's negatives.

    Raises:
        DataError: If a column is missing, has the wrong type, or holds an empty text.

    Example:
        >>> parse_pair({"query": ["Find the answer", "2 + 2?"], "pos": ["4"], "neg": ["5"]})
        ContrastivePair(query=('Find the answer', '2 + 2?'), positives=('4',), negatives=('5',), \
id=None)
        >>> parse_pair({"anchor": "2 + 2?", "positive": "4", "negative_1": "5", "negative_2": "3"})
        ContrastivePair(query='2 + 2?', positives=('4',), negatives=('5', '3'), id=None)
    """
    return layout_of(record).parse(cast(Mapping[str, Any], record))


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries, the corpus they search, and what answers them.

    Attributes:
        queries: Texts, or (instruction, text), each once.
        corpus: Passages, each once.
        relevance: Of each query, the rows of `corpus` that answer it.
    """

    queries: tuple[Query, ...]
    corpus: tuple[str, ...]
    relevance: tuple[tuple[int, ...], ...]

    @classmethod
    def from_pairs(cls, pairs: Iterable[ContrastivePair]) -> "RetrievalSet":
        """Pool all positives and negatives into one corpus.

        Equal passages are one row of the corpus, equal queries one query to which the positives of
        all of them are relevant. Order is that of first appearance.

        Example:
            >>> pairs = [ContrastivePair("a?", ("a",), ("b",)), ContrastivePair("b?", ("b",))]
            >>> RetrievalSet.from_pairs(pairs)
            RetrievalSet(queries=('a?', 'b?'), corpus=('a', 'b'), relevance=((0,), (1,)))
        """
        corpus: dict[str, int] = {}
        relevance: dict[Query, dict[int, None]] = {}
        for pair in pairs:
            rows = [corpus.setdefault(text, len(corpus)) for text in pair.positives]
            relevance.setdefault(pair.query, {}).update(dict.fromkeys(rows))
            for text in pair.negatives:
                corpus.setdefault(text, len(corpus))
        return cls(tuple(relevance), tuple(corpus), tuple(map(tuple, relevance.values())))


def pair_line(pair: ContrastivePair) -> str:
    """A pair as a line of the training format, which `parse_pair` reads.

    Example:
        >>> print(pair_line(ContrastivePair(("do", "q"), ("a",), ("b",), None, ("7",))), end="")
        {"query": ["do", "q"], "pos": ["a"], "neg": ["b"], "pos_ids": ["7"]}
    """
    record: dict[str, Any] = {} if pair.id is None else {"id": pair.id}
    query = pair.query if isinstance(pair.query, str) else list(pair.query)
    record |= {"query": query, "pos": list(pair.positives), "neg": list(pair.negatives)}
    for key, ids in (("pos_ids", pair.positive_ids), ("neg_ids", pair.negative_ids)):
        if ids:
            record[key] = list(ids)
    return json.dumps(record, ensure_ascii=False) + "\n"


def layout_of(record: object) -> Layout:
    """The known layout of a record by its columns.

    Raises:
        DataError: It is none, or no record.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object with query and pos, got {_kind(record)}")
    return _known_layout(tuple(record))


@functools.lru_cache(maxsize=256)
def _known_layout(columns: tuple[str, ...]) -> Layout:
    return Layout(columns)


def _parse_ids(values: Sequence[object], column: str, count: int) -> tuple[str, ...]:
    ids: list[str] = []
    for value in values:
        if value is None:
            continue
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(f'"{column}" must be a list of ids, got {_kind(value)}')
        ids += [_parse_id(entry, column) for entry in value]
    if ids and len(ids) != count:
        raise DataError(f'"{column}" has {len(ids)} ids for {count} texts')
    return tuple(ids)


def _parse_id(value: object, column: str) -> str:
    if isinstance(value, str | int) and is_text(text := str(value)):
        return text
    raise DataError(f'"{column}" must be a text or a whole number, got {_kind(value)}')


def _parse_query(value: object, column: str) -> Query:
    if isinstance(value, str):
        return check_text(value, column)
    if not isinstance(value, Sequence) or len(value) != 2:
        raise DataError(f'"{column}" must be a text or [instruction, text], got {_kind(value)}')
    instruction, text = value
    text = check_text(text, f"{column}[1]")
    # An empty instruction is how the authors write a query without one.
    return (check_text(instruction, f"{column}[0]"), text) if instruction else text


def _parse_columns(record: Mapping[str, Any], paths: Sequence[_Path]) -> tuple[str, ...]:
    texts: list[str] = []
    for path in paths:
        value = path.read(record)
        if isinstance(value, str):
            texts.append(check_text(value, path.name))
        elif isinstance(value, Sequence):
            texts += [
                check_text(_passage(item), f"{path.name}[{n}]") for n, item in enumerate(value)
            ]
        elif value is not None:  # how tables of columns spell "fewer negatives here"
            kind = _kind(value)
            raise DataError(f'"{path.name}" must be a text or a list of texts, got {kind}')
    return tuple(texts)


def _passage(item: Any) -> Any:
    """The text of a passage, behind its title where Tevatron's form has one."""
    if not isinstance(item, Mapping) or "text" not in item:
        return item
    title = item.get("title")
    return f"{title} {item['text']}" if title else item["text"]


def check_text(value: object, column: str) -> str:
    """Return `value` if it is a text that a tokenizer can take, else raise `DataError`."""
    if not isinstance(value, str):
        raise DataError(f'"{column}" must be a text, got {_kind(value)}')
    if not value or value.isspace():
        raise DataError(f'"{column}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'"{column}" has half of a surrogate pair (\\ud800-\\udfff)') from None
    return value


def _kind(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{type(value).__name__} {value!r:.40}"
