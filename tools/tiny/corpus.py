"""The base model's training text: WordNet, standard library and tasks, packed to one stream."""

import logging
import random
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from tiny.splits import split_of
from tiny.stdlib import Function
from tiny.tasks import draw_problem, noisy_completion
from tiny.wordnet import Synset

logger = logging.getLogger(__name__)

TASK_TOKEN_SHARE = 0.3
MAX_FUNCTION_CHARS = 1500
_CORPUS_SEED = 4242


def text_documents(
    synsets: Sequence[Synset],
    functions: Sequence[Function],
    held_out: set[str],
    rng: random.Random,
) -> list[str]:
    """Return one document per training synset and function, shuffled, in varied forms.

    Args:
        synsets: every synset; groups of the test and probe splits are left out.
        functions: every function; modules of the test and probe splits are left out.
        held_out: lower-cased texts that must not occur even where a training group repeats them.
        rng: decides forms and order.
    """
    names = {synset.key: synset.lemmas[0] for synset in synsets}
    documents = [
        _synset_document(synset, names, held_out, rng)
        for synset in synsets
        if split_of("wordnet", synset.group) == "train" and synset.gloss.lower() not in held_out
    ]
    for function in functions:
        texts = (function.summary.lower(), function.body.lower())
        if split_of("stdlib", function.module) == "train" and held_out.isdisjoint(texts):
            documents.append(_function_document(function))
    rng.shuffle(documents)
    return documents


def _synset_document(
    synset: Synset, names: dict[str, str], held_out: set[str], rng: random.Random
) -> str:
    lemma = rng.choice(synset.lemmas)
    others = [other for other in synset.lemmas if other != lemma]
    form = rng.randrange(3)
    if form == 0:
        parts = [f"{lemma} ({synset.part_of_speech}): {synset.gloss}."]
    elif form == 1:
        parts = [f"{synset.gloss}: {lemma}."]
    else:
        parts = [f"The {synset.part_of_speech} {lemma} means {synset.gloss}."]
    if others and rng.random() < 0.7:
        parts.append(f"Also called {', '.join(others)}.")
    if synset.parent not in (None, synset.key) and rng.random() < 0.7:
        parts.append(f"See {names[str(synset.parent)]}.")
    parts += [f'"{text}"' for text in synset.examples if text.lower() not in held_out]
    return " ".join(parts)


def _function_document(function: Function) -> str:
    return f"# {function.module}\n{function.source[:MAX_FUNCTION_CHARS]}"


def task_documents(rng: random.Random) -> Iterator[str]:
    """Yield endless training problems with a noisy completion each."""
    while True:
        problem = draw_problem(rng, held_out=False)
        yield problem.prompt + noisy_completion(problem, rng)


def token_stream(
    tokenizer: Tokenizer,
    synsets: Sequence[Synset],
    functions: Sequence[Function],
    held_out: set[str],
    num_tokens: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """Return the token ids of the whole pretraining run, and counts of what they are made of.

    Each pass over the texts draws their forms anew. Tasks are mixed in by a coin weighted with
    their share of tokens so far, so that the mixture is even all along.
    """
    eos = tokenizer.token_to_id("<|endoftext|>")
    rng = random.Random(_CORPUS_SEED)
    tasks = task_documents(rng)
    stream: list[int] = []
    counts = {"text_tokens": 0, "task_tokens": 0, "text_documents": 0, "task_documents": 0}
    while len(stream) < num_tokens:
        documents = text_documents(synsets, functions, held_out, rng)
        for encoding in tokenizer.encode_batch(documents):
            while counts["task_tokens"] < TASK_TOKEN_SHARE * len(stream):
                _append(stream, tokenizer.encode(next(tasks)).ids, eos, counts, "task")
            _append(stream, encoding.ids, eos, counts, "text")
            if len(stream) >= num_tokens:
                break
        logger.info("token stream: %d of %d tokens", len(stream), num_tokens)
    return np.array(stream[:num_tokens], dtype=np.uint16), counts


def _append(stream: list[int], ids: list[int], eos: int, counts: dict[str, int], kind: str) -> None:
    stream.extend(ids)
    stream.append(eos)
    counts[f"{kind}_tokens"] += len(ids) + 1
    counts[f"{kind}_documents"] += 1
