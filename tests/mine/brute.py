"""Mining as a person would do it with all the texts in memory, one pair at a time."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from hrsa_lightning.mine import MiningOptions
from hrsa_lightning.mine.texts import normalize_text


class GridEncoder:
    """Embeddings from a coarse grid, decided by the text: ties and negative similarities abound."""

    def __init__(self, dim=4, levels=3, identity="grid", stop_after=math.inf):
        self.dim, self.levels, self.identity = dim, levels, identity
        self.calls, self.stop_after = 0, stop_after

    def encode_queries(self, texts):
        return self._encode([t if isinstance(t, str) else "\n".join(t) for t in texts])

    def encode_passages(self, texts):
        return self._encode(texts)

    def vector(self, text):
        digest = hashlib.sha256(text.encode()).digest()
        values = np.array([byte % self.levels for byte in digest[: self.dim]], dtype=np.float32)
        return values - (self.levels - 1) / 2 + 0.125

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
    for _, pair in pairs:
        key = normalize_text(_text(pair))
        answers.setdefault(key, {key}).update(map(normalize_text, pair["pos"]))
    rows = []
    for name, pair in pairs:
        corpus = {}  # normalized text -> as first spelled
        for other, source in pairs:
            if options.corpus == "shared" or other == name:
                for text in (*source["pos"], *source["neg"]):
                    corpus.setdefault(normalize_text(text), text)
        row = _mine(pair, corpus, answers[normalize_text(_text(pair))], encoder, options)
        rows.append((name, row))
    return _filtered(rows, files, options)


def _text(pair):
    return pair["query"] if isinstance(pair["query"], str) else pair["query"][1]


def _unit(vector):
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length).astype(np.float32).astype(np.float64)


def _mine(pair, corpus, own, encoder, options):
    query = pair["query"] if isinstance(pair["query"], str) else "\n".join(pair["query"])
    asked = _unit(encoder.vector(query))

    def similarity(text):
        spelled = corpus[normalize_text(text)]
        return float((_unit(encoder.vector(spelled)) * asked).sum())

    existing = pair["neg"] if options.keep_existing else []
    own = own | {normalize_text(text) for text in existing}
    ranked = [text for key, text in corpus.items() if key not in own]
    ranked.sort(key=similarity, reverse=True)  # stable: earlier passages first
    positive = min(similarity(text) for text in pair["pos"])
    ranked = ranked[slice(*options.rank_range)]
    if options.max_relative is not None:
        limit = positive - (1 - options.max_relative) * abs(positive)
        ranked = [text for text in ranked if similarity(text) <= limit]
    mined = ranked[: max(0, options.num_negatives - len(existing))]
    negatives = [*existing, *mined]
    margin = positive - max(map(similarity, negatives), default=-math.inf)
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
