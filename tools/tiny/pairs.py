"""Contrastive pairs and probes drawn from WordNet and from the standard library."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny.splits import split_of
from tiny.stdlib import Function
from tiny.wordnet import Synset

INSTRUCTIONS = {
    "definition": "Find the definition of the term",
    "example": "Find a sentence that uses the word in this sense",
    "code": "Find the function that does this",
}
NUM_TRAIN = {"definition": 2400, "example": 2100, "code": 1500}
NUM_TEST = {"definition": 200, "example": 200, "code": 150}
NUM_WIDE_PROBES = 4096
NUM_PROBES_PER_LABEL = 128
NUM_NEGATIVES = 3
MAX_PER_GROUP = 6
MAX_CHARS = 320
_PAIR_SEED = 20260
_KINDS = {"noun": "a kind of", "verb": "a way to", "adjective": "similar to"}


@dataclass(frozen=True)
class Item:
    """A query with its positive, before negatives are drawn from its group."""

    source: str
    group: str
    name: str
    query: str
    positive: str

    @property
    def identifier(self) -> str:
        """Id of the pair: `source/group/item`."""
        return f"{self.source}/{self.group}/{self.name}"


def definition_items(synsets: Sequence[Synset]) -> list[Item]:
    """Term and what it is a kind of -> gloss. Siblings share the parent, so the term decides."""
    by_key = {synset.key: synset for synset in synsets}
    items = []
    for synset in synsets:
        if synset.parent is None or synset.parent == synset.key:
            continue
        parent = by_key[synset.parent].lemmas[0]
        kind = _KINDS[synset.part_of_speech]
        query = f"{', '.join(synset.lemmas[:3])} ({kind} {parent})"
        items.append(Item("definition", synset.group, synset.key, query, synset.gloss))
    return items


def example_items(synsets: Sequence[Synset]) -> list[Item]:
    """Word and gloss -> example sentence."""
    return [
        Item(
            "example",
            synset.group,
            synset.key,
            f"{synset.lemmas[0]}: {synset.gloss}",
            synset.examples[0],
        )
        for synset in synsets
        if synset.examples
    ]


def code_items(functions: Sequence[Function]) -> list[Item]:
    """First sentence of a docstring -> source of the function."""
    return [
        Item("code", function.module, function.qualname, function.summary, shorten(function.body))
        for function in functions
        if len(function.summary.split()) >= 3 and len(function.body) >= 40
    ]


def shorten(source: str) -> str:
    """Cut a source at the last line border within `MAX_CHARS`."""
    if len(source) <= MAX_CHARS:
        return source
    return source[:MAX_CHARS].rsplit("\n", 1)[0]


def unique_items(items: Iterable[Item]) -> list[Item]:
    """Drop items that are too long or too short, and every repeated query or positive.

    A text that occurs twice could be another query's negative while it answers it too.
    """
    seen: set[str] = set()
    kept = []
    for item in items:
        texts = {item.query.lower(), item.positive.lower()}
        lengths = [len(item.query), len(item.positive)]
        if min(lengths) < 8 or max(lengths) > MAX_CHARS or len(texts) < 2 or texts & seen:
            continue
        seen |= texts
        kept.append(item)
    return kept


def draw_pairs(items: Sequence[Item], split: str, num_pairs: int) -> list[dict[str, object]]:
    """Draw pairs of one source and one split, with hard negatives from the same group.

    Args:
        items: candidates of one source.
        split: `"train"` or `"test"`.
        num_pairs: how many to draw at most.

    Returns:
        Lines `{"id", "query": [instruction, text], "pos": [text], "neg": [text, text, text]}`,
        and `"source"` in the test split, which mixes the sources.
    """
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    source = items[0].source
    corpus = "stdlib" if source == "code" else "wordnet"
    rng = random.Random(f"{_PAIR_SEED}:{source}:{split}")
    pairs: list[dict[str, object]] = []
    for group, members in groups.items():
        if len(members) <= NUM_NEGATIVES or split_of(corpus, group) != split:
            continue
        # Modules are few, so a module may give more pairs than a group of synsets.
        limit = 40 if source == "code" else MAX_PER_GROUP
        for item in rng.sample(members, min(limit, len(members))):
            others = [other.positive for other in members if other is not item]
            pair: dict[str, object] = {
                "id": item.identifier,
                "query": [INSTRUCTIONS[source], item.query],
                "pos": [item.positive],
                "neg": rng.sample(others, NUM_NEGATIVES),
            }
            pairs.append(pair | {"source": source} if split == "test" else pair)
    rng.shuffle(pairs)
    return pairs[:num_pairs]


def draw_probes(
    synsets: Sequence[Synset], functions: Sequence[Function], excluded: set[str]
) -> list[dict[str, object]]:
    """Draw texts of the probe split with a label: noun, verb, adjective or code.

    Args:
        synsets: every synset.
        functions: every function.
        excluded: lower-cased texts that must not be drawn.
    """
    texts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for synset in synsets:
        if split_of("wordnet", synset.group) == "probe" and 8 <= len(synset.gloss) <= MAX_CHARS:
            identifier = f"{synset.part_of_speech}/{synset.group}/{synset.key}"
            texts[synset.part_of_speech].append((identifier, synset.gloss))
    for function in functions:
        if split_of("stdlib", function.module) == "probe" and len(function.body) >= 40:
            identifier = f"code/{function.module}/{function.qualname}"
            texts["code"].append((identifier, shorten(function.body)))
    rng = random.Random(f"{_PAIR_SEED}:probes")
    probes: list[dict[str, object]] = []
    for label in ("noun", "verb", "adjective", "code"):
        distinct = {
            text.lower(): (identifier, text)
            for identifier, text in texts[label]
            if text.lower() not in excluded
        }
        for identifier, text in rng.sample(list(distinct.values()), NUM_PROBES_PER_LABEL):
            probes.append({"id": identifier, "text": text, "label": label})
    rng.shuffle(probes)
    return probes


def widen_probes(train: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """Draw probes from the training pairs, for backbones that train on other data.

    Held-out Procrustes fits on half of the probes, and needs more of them there than features.

    Args:
        train: lines of the sources `definition` and `code`.
    """
    parts = {"n": "noun", "v": "verb", "a": "adjective"}
    distinct: dict[str, dict[str, object]] = {}
    for line in train:
        source, group, _ = str(line["id"]).split("/", 2)
        positives, negatives = line["pos"], line["neg"]
        assert isinstance(positives, list)
        assert isinstance(negatives, list)
        for number, text in enumerate([*positives, *negatives]):
            label = "code" if source == "code" else parts[group[0]]
            probe = {"id": f"{line['id']}/{number}", "text": text, "label": label}
            distinct.setdefault(text.lower(), probe)
    rng = random.Random(f"{_PAIR_SEED}:probes_wide")
    return rng.sample(list(distinct.values()), NUM_WIDE_PROBES)


def held_out_texts(lines: Iterable[dict[str, object]]) -> set[str]:
    """Collect the lower-cased texts of test pairs and probes."""
    texts: set[str] = set()
    for line in lines:
        if "text" in line:
            texts.add(str(line["text"]).lower())
        else:
            query, positives, negatives = line["query"], line["pos"], line["neg"]
            assert isinstance(query, list)
            assert isinstance(positives, list)
            assert isinstance(negatives, list)
            texts.update(text.lower() for text in [query[1], *positives, *negatives])
    return texts


def write_jsonl(path: Path, lines: Iterable[object]) -> None:
    """Write one JSON object a line, in UTF-8."""
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )


def assemble(
    synsets: Sequence[Synset], functions: Sequence[Function]
) -> tuple[dict[str, list[dict[str, object]]], list[dict[str, object]], list[dict[str, object]]]:
    """Draw the training pairs by source, the test pairs and the probes, disjoint as texts.

    Groups keep the splits apart; where two groups share a text word for word, the training pair
    or the probe that repeats a held-out text is dropped.
    """
    candidates = {
        "definition": unique_items(definition_items(synsets)),
        "example": unique_items(example_items(synsets)),
        "code": unique_items(code_items(functions)),
    }
    test: list[dict[str, object]] = []
    for source, items in candidates.items():
        test += draw_pairs(items, "test", NUM_TEST[source])
    test_texts = held_out_texts(test)
    probes = draw_probes(synsets, functions, excluded=test_texts)
    held_out = test_texts | held_out_texts(probes)
    train = {}
    for source, items in candidates.items():
        clean = [
            item
            for item in items
            if held_out.isdisjoint((item.query.lower(), item.positive.lower()))
        ]
        train[source] = draw_pairs(clean, "train", NUM_TRAIN[source])
    return train, test, probes
