"""Read the synsets of WordNet 3.0 from its `data.*` files (format: man page wndb(5WN))."""

import re
from dataclasses import dataclass
from pathlib import Path

POS_FILES = {
    "noun": "data.noun",
    "verb": "data.verb",
    "adjective": "data.adj",
    "adverb": "data.adv",
}
_PARENT_SYMBOLS = ("@", "@i", "&")
_EXAMPLE = re.compile(r'"([^"]+)"')
_SYNTAX_MARKER = re.compile(r"\((?:a|p|ip)\)$")


@dataclass(frozen=True)
class Synset:
    """One sense: its words, its gloss, and the synset that it is a kind of.

    Attributes:
        key: first letter of the part of speech and the offset, as `n00001740`.
        part_of_speech: a key of `POS_FILES`.
        lemmas: the words, spaces instead of underscores.
        gloss: the definition without its example sentences.
        examples: the example sentences.
        parent: key of the first hypernym (of the head word, for satellite adjectives), or `None`.
    """

    key: str
    part_of_speech: str
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    parent: str | None

    @property
    def group(self) -> str:
        """Key shared by sibling synsets: the parent, or the synset itself where it has none."""
        return self.parent or self.key


def parse_line(line: str, part_of_speech: str) -> Synset:
    """Parse one line of a `data.*` file.

    Args:
        line: the line, from the offset to the gloss.
        part_of_speech: a key of `POS_FILES`.
    """
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    letter = part_of_speech[0] if part_of_speech != "adverb" else "r"
    num_words = int(fields[3], 16)
    words = [_SYNTAX_MARKER.sub("", word) for word in fields[4 : 4 + 2 * num_words : 2]]
    start = 4 + 2 * num_words
    num_pointers = int(fields[start])
    pointers = [fields[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(num_pointers)]
    is_satellite = fields[2] == "s"
    parents = [
        letter + offset
        for symbol, offset, _, _ in pointers
        if symbol in _PARENT_SYMBOLS and (symbol != "&" or is_satellite)
    ]
    key = letter + fields[0]
    parent = parents[0] if parents else None
    if fields[2] == "a":
        parent = key
    return Synset(
        key=key,
        part_of_speech=part_of_speech,
        lemmas=tuple(dict.fromkeys(word.replace("_", " ") for word in words)),
        gloss=_definition(gloss),
        examples=tuple(example.strip() for example in _EXAMPLE.findall(gloss)),
        parent=parent,
    )


def _definition(gloss: str) -> str:
    """Return the part of a gloss before its first quoted example."""
    return " ".join(gloss.split('"', 1)[0].split()).rstrip("; ,:-")


def read_synsets(folder: Path) -> list[Synset]:
    """Read every synset of a WordNet folder, in file order.

    Args:
        folder: holds `data.noun`, `data.verb`, `data.adj` and `data.adv`.
    """
    synsets = []
    for part_of_speech, name in POS_FILES.items():
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                synsets.append(parse_line(line, part_of_speech))
    return synsets


def read_licence(folder: Path) -> str:
    """Return the licence notice that opens every WordNet file, without its line numbers."""
    lines = (folder / "data.noun").read_text(encoding="utf-8").splitlines()
    notice = [re.sub(r"^ *\d+ ", "", line).rstrip() for line in lines if line.startswith("  ")]
    return "\n".join(notice).strip() + "\n"
