"""Texts to compare models on: worked traces of held-out tasks, and glosses by WordNet domain."""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tiny.pairs import MAX_CHARS
from tiny.splits import split_of
from tiny.tasks import held_out_problems, worked
from tiny.wordnet import parse_line

NUM_TRACES_PER_FAMILY = 48
NUM_TEXTS_PER_DOMAIN = 96
DOMAINS = ("act", "animal", "artifact", "body", "communication", "food", "person", "plant")
_SEED = 20260

# Numbers of the lexicographer files that WordNet keeps nouns of a domain in: lexnames(5WN).
_LEXICOGRAPHER_FILES = {
    4: "act",
    5: "animal",
    6: "artifact",
    8: "body",
    10: "communication",
    13: "food",
    18: "person",
    20: "plant",
}


def draw_traces() -> list[dict[str, object]]:
    """Worked traces of held-out problems, in the form that `tools/traces.py` writes."""
    traces: list[dict[str, object]] = [
        {
            "prompt": problem.prompt.strip(),
            "solution": worked(problem),
            "answer": problem.answer,
            "correct": True,
            "family": problem.family,
        }
        for problem in held_out_problems(NUM_TRACES_PER_FAMILY, seed=_SEED)
    ]
    random.Random(_SEED).shuffle(traces)
    return traces


def draw_domains(folder: Path, excluded: set[str]) -> list[dict[str, object]]:
    """Glosses of nouns outside of the training split, each labeled with its domain.

    Args:
        folder: WordNet's, with `data.noun`.
        excluded: Lower-cased texts of the training pairs.
    """
    found: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        synset = parse_line(line, "noun")
        domain = _LEXICOGRAPHER_FILES.get(int(line.split()[1]))
        fits = 8 <= len(synset.gloss) <= MAX_CHARS and synset.gloss.lower() not in excluded
        if domain and fits and split_of("wordnet", synset.group) != "train":
            identifier = f"{domain}/{synset.group}/{synset.key}"
            found[domain].append({"id": identifier, "text": synset.gloss, "label": domain})
    rng = random.Random(f"{_SEED}:domains")
    drawn = [text for domain in DOMAINS for text in _distinct(rng, found[domain])]
    rng.shuffle(drawn)
    return drawn


def _distinct(rng: random.Random, texts: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    distinct = list({str(text["text"]).lower(): text for text in texts}.values())
    return rng.sample(distinct, NUM_TEXTS_PER_DOMAIN)
