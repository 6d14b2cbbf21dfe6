"""The model card, rendered from the record of the build."""

from typing import Any

from tiny.corpus import TASK_TOKEN_SHARE
from tiny.pairs import NUM_NEGATIVES
from tiny.splits import SPLIT_SEED
from tiny.tasks import FAMILY_WEIGHTS, HELD_OUT_SHARE, WORKED_SHARE, WRONG_SHARE

BEGIN, END = "<!-- similarity:begin -->", "<!-- similarity:end -->"

_TEMPLATE = """\
---
license: other
library_name: transformers
language: en
tags: [tiny, qwen2, rlvr, sft, representation-similarity]
---

# Tiny base, RLVR and SFT backbones, with pairs and probes

What `hrsa_lightning` trains and watches when no model hub and no GPU is at hand: one small
language model, the same model after reinforcement learning with verifiable rewards, and after
supervised fine-tuning; contrastive pairs; and a probe set. Everything here is made by
`python tools/build_tiny.py`, and every number below is read from `build.json` beside this card.

These are instruments for watching training, not useful models. They write English and Python
badly, and what they show about similarity at {num_parameters:,} parameters need not hold at
billions.

## Files

| Path | Content |
|---|---|
| `base/`, `rlvr/`, `sft/` | Qwen2 folders: bf16 `model.safetensors`, and one tokenizer, copied |
| `pairs_train.SOURCE.jsonl` | training pairs by source: {num_train} |
| `pairs_test.jsonl` | {num_test} held-out pairs of all sources, with the field `source` |
| `probes.jsonl` | {num_probes} held-out texts, each labeled noun, verb, adjective or code |
| `build.json` | seeds, package versions, token counts, accuracies |
| `LICENSE.wordnet`, `LICENSE.python` | the notices of the two text sources |

A pair is `{{"id", "query": [instruction, text], "pos": [text], "neg": [{num_negatives} texts]}}`.
An id is `source/group/item`.

## Architecture

Qwen2 with hidden size 128, 4 layers, 4 attention heads (2 key-value heads), intermediate size 384,
a vocabulary of {vocab_size} (byte-level BPE, one token per digit) tied to the output, and
{num_parameters:,} parameters. Positions reach 512; pretraining saw windows of {length} tokens.

## Data and licenses

- WordNet 3.0: {num_synsets:,} synsets with their words, glosses and examples. Free to use and to
  pass on with its notice, `LICENSE.wordnet`.
- The standard library of CPython {python}: {num_functions:,} functions with their docstrings. PSF
  license, `LICENSE.python`. Files with somebody else's copyright notice, tests, and vendored
  packages are left out.
- Tasks made by `tools/tiny/tasks.py`: arithmetic with one-digit numbers, parity, comparison, next
  letter, reversal, counting, largest of four.

Pairs: `definition` asks for the gloss of a term, `example` for a sentence that uses a word in a
given sense, `code` for the function that a docstring's first sentence describes (docstring
removed, the function renamed to `f`, cut at a line border). Hard negatives come from sibling
synsets, or from other functions of the same module. The word of an `example` query often occurs in
its positive; that is how the task is, and it makes that source the easiest to match by words.

### Splits

Siblings under one parent synset, and functions of one module, go to one split, by a hash with seed
{split_seed}; the split follows from the id. Texts of test pairs and probes are in nobody's
training: a group of the test or probe split enters neither the pretraining text nor the training
pairs, and a training group that repeats such a text word for word loses it. {held_out_share:.0%}
of the task problems, by a hash of the question, are held out from pretraining, RL and SFT alike.
Different glosses can still resemble each other across the splits, and words of held-out synsets
occur elsewhere.

## How the three were made

**Base.** {num_tokens:,} tokens in {base_steps:,} steps of {batch_size} windows of {length} tokens
(AdamW, learning rate {base_lr:g} to {final_lr:g}, weight decay {weight_decay:g}, seed
{base_seed}): {text_tokens:,} tokens of text and {task_tokens:,} of tasks (aim: {task_share:.0%}).
Of the task documents {worked_share:.0%} show their work and the others only answer; of either kind
{wrong_share:.0%} answer wrongly, so that reinforcement learning has something to sharpen. The
weights are rounded to bf16, and RLVR and SFT start from the rounded weights.

**RLVR.** GRPO (TRL {trl}): {rl_steps} steps of {num_prompts} prompts x {num_generations} sampled
completions, learning rate {rl_lr:g}, KL weight {beta:g}, seed {rl_seed}. The reward is 1 if the
text after `Answer:` is exactly the answer, else 0. Prompts of arithmetic and parity are drawn
{hard_weight} times as often as those of another family. Drawn evenly, 300 steps (16 completions a
prompt) raised sampled accuracy from .507 to .710 on the selection problems but greedy accuracy not
at all (.739 and .739), because the model learned to answer at once; that checkpoint was refused.
With the weights it learns to show its work. Its accuracy peaks early: at step 120 of a longer run
greedy accuracy on the selection problems was .755, against .779 at step {rl_steps}.

**SFT.** {sft_steps} steps of {sft_batch} correct worked traces, learning rate {sft_lr:g}, seed
{sft_seed}; the loss is on the completion only.

Settings were chosen by task accuracy on a third of the held-out problems; no similarity was looked
at. A backbone ships only if sampled and greedy accuracy on the other two thirds both rise over the
base by more than two standard errors; the builder refuses otherwise.

## Task accuracy

{num_problems} held-out test problems; {num_samples} samples at temperature 1 for each. Mean
± standard error over problems; the rise is paired.

{accuracy_table}

By family (sampled / greedy):

{family_table}

## How far the weights moved

||W - W_base|| / ||W_base|| over all weights together: RLVR {rlvr_change:.4f}, SFT {sft_change:.4f}.

## Similarity

{similarity}

## Rebuilding

`python tools/build_tiny.py` with the extra `build` and WordNet 3.0; about an hour on two quiet
cores. Built with Python {python}, {packages}, on {machine}. Seeds: split
{split_seed}, tokenizer {tokenizer_seed}, base {base_seed}, RLVR {rl_seed}, SFT {sft_seed}.
{determinism}
Another Python version has another standard library, and so gives other text.

## Limits

- One base, one RLVR run, one SFT run: differences between the three hold for these checkpoints.
- The tasks are toys, and the RLVR and SFT backbones saw nothing else in tuning, so they may write
  text worse than the base; this is not measured.
- The rewards check the final answer only; worked steps may be wrong.
- English dictionary text and Python only.
"""

_DETERMINISM = """\
Whether a second build gives the same weights bit for bit has not been measured."""


def similarity_section(previous: str) -> str:
    """Return the marked section of an earlier card, or an empty one."""
    if BEGIN not in previous or END not in previous:
        return f"{BEGIN}\n{END}"
    return BEGIN + previous.split(BEGIN, 1)[1].split(END, 1)[0] + END


def render(record: dict[str, Any], similarity: str) -> str:
    """Render the card.

    Args:
        record: the content of `build.json`.
        similarity: the marked section with the measured similarities.
    """
    pairs, stream, base = record["pairs"], record["stream"], record["base"]
    rlvr, sft = record["rlvr"], record["sft"]
    return _TEMPLATE.format(
        num_parameters=record["num_parameters"],
        num_train=", ".join(f"{count} {source}" for source, count in pairs["num_train"].items()),
        num_test=pairs["num_test"],
        num_probes=pairs["num_probes"],
        num_negatives=NUM_NEGATIVES,
        num_synsets=pairs["num_synsets"],
        num_functions=pairs["num_functions"],
        python=pairs["python"],
        vocab_size=record["tokenizer"]["vocab_size"],
        tokenizer_seed=record["tokenizer"]["seed"],
        split_seed=SPLIT_SEED,
        held_out_share=HELD_OUT_SHARE,
        worked_share=WORKED_SHARE,
        wrong_share=WRONG_SHARE,
        task_share=TASK_TOKEN_SHARE,
        num_tokens=base["num_tokens"],
        text_tokens=stream["text_tokens"],
        task_tokens=stream["task_tokens"],
        base_steps=base["num_steps"],
        batch_size=base["batch_size"],
        length=base["length"],
        base_lr=base["learning_rate"],
        final_lr=base["final_learning_rate"],
        weight_decay=base["weight_decay"],
        base_seed=base["seed"],
        rl_steps=rlvr["num_steps"],
        num_prompts=rlvr["num_prompts"],
        num_generations=rlvr["num_generations"],
        rl_lr=rlvr["learning_rate"],
        beta=rlvr["beta"],
        rl_seed=rlvr["seed"],
        hard_weight=FAMILY_WEIGHTS["arithmetic"],
        sft_steps=sft["num_steps"],
        sft_batch=sft["batch_size"],
        sft_lr=sft["learning_rate"],
        sft_seed=sft["seed"],
        num_problems=rlvr["accuracy"]["base"]["num_problems"],
        num_samples=rlvr["num_samples"],
        accuracy_table=_accuracy_table(rlvr, sft),
        family_table=_family_table(rlvr, sft),
        rlvr_change=rlvr["relative_weight_change"],
        sft_change=sft["relative_weight_change"],
        similarity=similarity,
        trl=record["packages"]["trl"],
        packages=", ".join(f"{name} {number}" for name, number in record["packages"].items()),
        machine=record["machine"],
        determinism=_DETERMINISM,
    )


def _accuracy_table(rlvr: dict[str, Any], sft: dict[str, Any]) -> str:
    rows = [
        "| | sampled | rise | greedy | rise | greedy completions that show work |",
        "|---|---|---|---|---|---|",
    ]
    measured = {
        "base": (rlvr["accuracy"]["base"], None),
        "rlvr": (rlvr["accuracy"]["rlvr"], rlvr["rise_over_base"]),
        "sft": (sft["accuracy"]["sft"], sft["rise_over_base"]),
    }
    for name, (accuracy, rise) in measured.items():
        cells = [name]
        for kind in ("sampled", "greedy"):
            cells.append(f"{accuracy[kind]:.3f} ± {accuracy[f'{kind}_standard_error']:.3f}")
            cells.append(
                f"{rise[kind]:+.3f} ± {rise[f'{kind}_standard_error']:.3f}" if rise else ""
            )
        rows.append(f"| {' | '.join(cells)} | {accuracy['greedy_worked_share']:.0%} |")
    return "\n".join(rows)


def _family_table(rlvr: dict[str, Any], sft: dict[str, Any]) -> str:
    families = {
        "base": rlvr["accuracy_by_family"]["base"],
        "rlvr": rlvr["accuracy_by_family"]["rlvr"],
        "sft": sft["accuracy_by_family"]["sft"],
    }
    rows = ["| | base | rlvr | sft |", "|---|---|---|---|"]
    for family in families["base"]:
        cells = [
            f"{values[family]['sampled']:.3f} / {values[family]['greedy']:.3f}"
            for values in families.values()
        ]
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(rows)
