"""Mining as a person would do it with all the texts in memory, one pair at a time."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from hrsa_lightning.mine import MiningOptions
from hrsa_lightning.mine.texts import normalize_text


class GridEncoder:
    """Embeddings decided by the text, negative similarities too; ties are improbable."""

    def __init__(self, dim=8, levels=251, identity="grid", stop_after=math.inf):
        self.dim, self.levels, self.identity = dim, levels, identity
        self.calls, self.stop_after = 0, stop_after

    def encode_queries(self, texts):
        return self._encode([t if isinstance(t, str) else "\n".join(t) for t in texts])

    def encode_passages(self, texts):
        return self._encode(texts)

    def vector(self, text):
        digest = hashlib.sha256(text.encode()).digest()
        values = np.array([byte % self.levels for byte in digest[: self.dim]], dtype=np.float32)
        return values - (self.levels - 1) / 2.5

    def _encode(self, texts):
        self.calls += 1
        if self.calls > self.stop_after:
            raise KeyboardInterrupt
        return np.stack([self.vector(text) for text in texts])


def brute_force(files, encoder, options: MiningOptions):
    """Lines (parsed) that mining must write, in order."""
    pairs = [
        (name, json.loads(line)) for name in files for line in Path(name).read_text().splitlines()
    ]
    answers = {}
    for name, pair in pairs:
        known = answers.setdefault(normalize_text(_text(pair)), set())
        known.update((name, normalize_text(text)) for text in pair["pos"])
    rows = []
    for name, pair in pairs:
        corpus, right = {}, {}  # normalized text -> as first spelled; query -> its answers
        for other, source in pairs:
            if options.corpus == "shared" or other == name:
                for text in (*source["pos"], *source["neg"]):
                    corpus.setdefault(normalize_text(text), text)
                known = right.setdefault(json.dumps(source["query"]), set())
                known.update(map(normalize_text, source["pos"]))
        own = {
            key
            for file, key in answers.get(normalize_text(_text(pair)), ())
            if options.corpus == "shared" or file == name
        }
        own.add(normalize_text(_text(pair)))
        rows.append((name, _mine(pair, corpus, own, right, encoder, options)))
    return _filtered(rows, files, options)


def _text(pair):
    return pair["query"] if isinstance(pair["query"], str) else pair["query"][1]


def _unit(vector):
    return vector / np.linalg.norm(vector.astype(np.float64))


def _mine(pair, corpus, own, right, encoder, options):
    query = pair["query"] if isinstance(pair["query"], str) else "\n".join(pair["query"])
    asked = _unit(encoder.vector(query))

    def similarity(text):
        return float(_unit(encoder.vector(corpus[normalize_text(text)])) @ asked)

    existing = pair["neg"] if options.keep_existing else []
    own = own | {normalize_text(text) for text in existing}
    answers = right[json.dumps(pair["query"])]
    # the library ranks so many, of which it then takes the answers and what is too similar
    width = options.rank_range[1] + max(map(len, right.values()))
    ranked = sorted(corpus, key=similarity, reverse=True)[:width]
    ranked = [key for key in ranked if key not in answers]
    if options.max_relative is not None:
        least = min(map(similarity, answers))
        limit = least - (1 - options.max_relative) * abs(least)
        ranked = [key for key in ranked if similarity(key) <= limit]
    ranked = [key for key in ranked[slice(*options.rank_range)] if key not in own]
    mined = [corpus[key] for key in ranked[: max(0, options.num_negatives - len(existing))]]
    negatives = [*existing, *mined]
    margin = min(map(similarity, pair["pos"])) - max(map(similarity, negatives), default=-math.inf)
    return {**pair, "neg": negatives}, margin


def _filtered(rows, files, options):
    kept = []
    for name in files:
        own = [row for file, row in rows if file == name]
        own = [row for row in own if len(row[0]["neg"]) >= options.min_negatives]
        if options.keep == "below":
            own = [row for row in own if row[1] <= options.margin]
        elif options.keep == "above":
            own = [row for row in own if row[1] > options.margin]
        if options.max_examples is not None:
            largest = sorted(range(len(own)), key=lambda i: -own[i][1])[: options.max_examples]
            own = [own[i] for i in sorted(largest)]
        kept += [pair for pair, _ in own]
    return kept
