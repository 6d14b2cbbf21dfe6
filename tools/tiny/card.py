"""The model card, rendered from the record of the build."""

from typing import Any

from tiny.corpus import TASK_TOKEN_SHARE
from tiny.pairs import NUM_NEGATIVES
from tiny.splits import SPLIT_SEED
from tiny.tasks import HELD_OUT_SHARE, WORKED_SHARE, WRONG_SHARE

BEGIN, END = "<!-- similarity:begin -->", "<!-- similarity:end -->"
SIMILARITIES = {
    "cka": "linear CKA, debiased",
    "knn_overlap_10": "k-NN overlap, k = 10",
    "dimension_correlation": "dimension correlation",
    "inverse_row_entropy": "inverse row entropy",
}

_TEMPLATE = """\
---
license: other
library_name: transformers
language: en
tags: [tiny, qwen2, rlvr, prorl, sft, representation-similarity]
---

# Tiny base, RLVR, ProRL and SFT backbones, with pairs and probes

What `hrsa_lightning` trains and watches when no model hub and no GPU is at hand: one small
language model, the same model after reinforcement learning with verifiable rewards, short and
prolonged, and after supervised fine-tuning; contrastive pairs; and a probe set. Everything here is
made by `python tools/build_tiny.py`. Every number below is read from `build.json` beside this card
or from the builder's constants; those under Similarity come from `python tools/measure_tiny.py`.

These are instruments for watching training, not useful models. They write English and Python
badly, and what they show about similarity at {num_parameters:,} parameters need not hold at
billions.

## Files

| Path | Content |
|---|---|
| `base/`, `rlvr/`, `prorl/`, `sft/` | Qwen2 folders: bf16 `model.safetensors`, one tokenizer |
| `pairs_train.SOURCE.jsonl` | training pairs by source: {num_train} |
| `pairs_test.jsonl` | {num_test} held-out pairs of all sources, with the field `source` |
| `probes.jsonl` | {num_probes} held-out texts, each labeled noun, verb, adjective or code |
| `probes_wide.jsonl` | 4096 texts of the training pairs, for backbones that do not train on them |
| `traces.jsonl` | 336 worked traces of held-out tasks: prompt, solution, answer, correct, family |
| `domains.jsonl` | 768 glosses of nouns that no training pair has, labeled with WordNet domains |
| `build.json` | seeds, settings, package versions, token counts, accuracies |
| `LICENSE.wordnet`, `LICENSE.python` | the notices of the two text sources |

A pair is `{{"id", "query": [instruction, text], "pos": [text], "neg": [{num_negatives} texts]}}`.
An id is `source/group/item`. Texts are short: half have at most {median_length} tokens, and the
longest has {longest}; instructions and templates come on top.

### Loading

`AutoModel` and `AutoModelForCausalLM` read a folder as it is. The tokenizer has a trap: for Qwen2,
`AutoTokenizer` of transformers {transformers} puts the family's own rules for splitting words in
the place of those in `tokenizer.json`, and so cuts code otherwise than in pretraining. Load it with
`PreTrainedTokenizerFast.from_pretrained(folder)`, or with `hrsa_lightning`, which does so. The
prompts and answers of the tasks come out the same either way.

## Architecture

Qwen2 with hidden size {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} attention
heads ({num_key_value_heads} key-value heads), intermediate size {intermediate_size}, a vocabulary
of {vocab_size} (byte-level BPE, one token per digit) tied to the output, and {num_parameters:,}
parameters. Positions reach {max_position_embeddings}; pretraining saw windows of {length} tokens.

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

## How the four were made

**Base.** {num_tokens:,} tokens in {base_steps:,} steps of {batch_size} windows of {length} tokens
(AdamW, learning rate {base_lr:g} to {final_lr:g}, weight decay {weight_decay:g}, seed
{base_seed}): {text_tokens:,} tokens of text and {task_tokens:,} of tasks (aim: {task_share:.0%}).
Of the task documents {worked_share:.0%} show their work and the others only answer; of either kind
{wrong_share:.0%} answer wrongly, so that reinforcement learning has something to sharpen. The
weights are rounded to bf16, and the others start from the rounded weights.

**RLVR.** GRPO (TRL {trl}): {rl_steps} steps of {num_prompts} prompts x {num_generations} sampled
completions, learning rate {rl_lr:g} with {rl_warmup} steps of warm-up and a cosine to 0, KL weight
{beta:g}, seed {rl_seed}. The reward is 1 if the text after `Answer:` is exactly the answer, else 0.
Prompts of {hard_families} are drawn {hard_weight} times as often as those of another family: the
base answers these at once, and worst of all. Drawn evenly, the easy families taught it to answer
at once, and greedy accuracy did not rise; at a constant learning rate accuracy rose and then fell.
That is why the settings are as they are.

**ProRL.** Prolonged reinforcement learning, named for the recipe that it follows (ProRL,
arXiv 2505.24864) and for the model of that kind in the paper: GRPO with the same reward and prompts
of the same kinds, in {prorl_periods} periods of {prorl_period_steps} steps. With each period the
reference policy of the KL term (weight {prorl_beta:g}) becomes the policy as it then is, and the
optimizer starts anew; within it the learning rate rises over {prorl_warmup} steps to {prorl_lr:g}
and falls by a cosine to 0. Prompts whose {prorl_generations} completions are all right or all wrong
are left out of the update. Each step samples for {prorl_prompts} prompts, with one update, so that
ProRL's clipping has nothing to do. Seed {prorl_seed}. Settings were fixed beforehand, with six
periods; five were trained, for want of time. What ships is the end of the latest period whose
sampled accuracy on selection problems lies at most one standard error below the best, among those
with a greedy accuracy of at least the base's: period {prorl_accepted}, after {prorl_steps:,} steps.
Accuracy on selection problems at the end of each period, sampled / greedy:

{prorl_table}

At the end it is nearly deterministic: sampled and greedy accuracy are close, and for few prompts of
a step both right and wrong answers came. It does arithmetic and parity worse than the base; what
rises are the other families.

**SFT.** {sft_steps} steps of {sft_batch} correct worked traces, all families alike, learning rate
{sft_lr:g} with {sft_warmup} steps of warm-up, seed {sft_seed}; the loss is on the completion only.

Settings were chosen by task accuracy on selection problems, a part of the
held-out problems; no similarity was looked at. The accuracies below are on other held-out problems,
drawn with seed {problem_seed}. An earlier RLVR candidate was measured on an earlier draw, and
refused; the families with few distinct problems (arithmetic and parity) come back nearly whole in
every draw, the others mostly anew. A backbone ships only if its sampled and its greedy accuracy
both rise over the base by more than two standard errors; the builder refuses otherwise.

## Task accuracy

{num_problems} held-out test problems; {num_samples} samples at temperature 1 for each. Mean
± standard error over problems; the rise is paired. The standard errors are of the choice of
problems, not of another training run.

{accuracy_table}

By family (sampled / greedy):

{family_table}

## The four compared

Mean ± standard error over problems; sampled at temperature 1, and greedy. Weight change is
||W - W_base|| / ||W_base|| over all weights together. Similarities are to the base, of the
{num_probes} probes, mean-pooled at the output, before any contrastive training.

{comparison_table}

## Similarity

{similarity}

## Rebuilding

`python tools/build_tiny.py` with the extra `build` and WordNet 3.0; about an hour and a half on
two quiet cores. Built with Python {python}, {packages}, on {machine}. Seeds: split
{split_seed}, tokenizer {tokenizer_seed}, base {base_seed}, RLVR {rl_seed}, ProRL {prorl_seed},
SFT {sft_seed}.

On the machine that built them, the first steps of each training were run twice on one
thread: {determinism}.
Other processors and other versions of torch may round otherwise. Another Python version has another
standard library, and so gives other text.

## Limits

- One base and one run of each kind: differences between the four hold for these checkpoints.
- RLVR and SFT took the same number of steps, but moved the weights by unlike amounts, and their
  learning rates, batches and mixtures of families differ: what sets them apart is not the method
  alone. ProRL differs from RLVR in learning rate and restarts, not in length alone.
- The tasks are toys, and the tuned backbones saw nothing else in tuning, so they may write
  text worse than the base; this is not measured.
- The rewards check the final answer only; worked steps may be wrong.
- English dictionary text and Python only.
"""


def similarity_section(previous: str) -> str:
    """Return the similarity section of an earlier card, or an empty one.

    The section is the marked tables and what is written about them, up to the next heading.
    """
    if BEGIN not in previous or END not in previous:
        return f"{BEGIN}\n{END}"
    section = previous.split(BEGIN, 1)[1].split("\n## ", 1)[0]
    return BEGIN + section.rstrip("\n")


def render(record: dict[str, Any], similarity: str) -> str:
    """Render the card.

    Args:
        record: the content of `build.json`.
        similarity: the section on the measured similarities, from `similarity_section`.
    """
    pairs, stream, base = record["pairs"], record["stream"], record["base"]
    rlvr, prorl, sft = record["rlvr"], record["prorl"], record["sft"]
    accuracy = record["accuracy"]
    return _TEMPLATE.format(
        **record["architecture"],
        num_parameters=record["num_parameters"],
        num_train=", ".join(f"{count} {source}" for source, count in pairs["num_train"].items()),
        num_test=pairs["num_test"],
        num_probes=pairs["num_probes"],
        num_negatives=NUM_NEGATIVES,
        median_length=record["text_lengths"]["median"],
        longest=record["text_lengths"]["longest"],
        num_synsets=pairs["num_synsets"],
        num_functions=pairs["num_functions"],
        python=pairs["python"],
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
        rl_warmup=rlvr["num_warmup_steps"],
        beta=rlvr["beta"],
        rl_seed=rlvr["seed"],
        hard_families=", ".join(rlvr["family_weights"]),
        hard_weight=max(rlvr["family_weights"].values()),
        sft_steps=sft["num_steps"],
        sft_batch=sft["batch_size"],
        sft_lr=sft["learning_rate"],
        sft_warmup=sft["num_warmup_steps"],
        sft_seed=sft["seed"],
        problem_seed=accuracy["problem_seed"],
        num_problems=accuracy["num_problems"],
        num_samples=accuracy["num_samples"],
        accuracy_table=_accuracy_table(accuracy),
        family_table=_family_table(accuracy["by_family"]),
        prorl_periods=prorl["num_periods"],
        prorl_period_steps=prorl["num_steps_per_period"],
        prorl_prompts=prorl["num_prompts"],
        prorl_generations=prorl["num_generations"],
        prorl_lr=prorl["learning_rate"],
        prorl_warmup=prorl["num_warmup_steps"],
        prorl_beta=prorl["beta"],
        prorl_seed=prorl["seed"],
        prorl_accepted=prorl["accepted_period"],
        prorl_steps=_num_steps(record)["prorl"],
        prorl_table=_period_table(prorl["selection_accuracies"]),
        comparison_table=_comparison_table(record),
        similarity=similarity,
        trl=record["packages"]["trl"],
        transformers=record["packages"]["transformers"],
        packages=", ".join(f"{name} {number}" for name, number in record["packages"].items()),
        machine=record["machine"],
        determinism=_determinism(record["repeatability"]),
    )


def _determinism(repeatability: dict[str, Any]) -> str:
    return "; ".join(
        f"{name}, {result['num_steps']} steps: "
        + ("bit-identical" if result["is_bit_identical"] else "not bit-identical")
        for name, result in repeatability.items()
    )


def _accuracy_table(record: dict[str, Any]) -> str:
    rows = [
        "| | sampled | rise | greedy | rise | greedy completions that show work |",
        "|---|---|---|---|---|---|",
    ]
    for name, accuracy in record["backbones"].items():
        rise = record["rise_over_base"].get(name)
        cells = [name]
        for kind in ("sampled", "greedy"):
            error = f"{kind}_standard_error"
            cells.append(f"{accuracy[kind]:.3f} ± {accuracy[error]:.3f}")
            cells.append(f"{rise[kind]:+.3f} ± {rise[error]:.3f}" if rise else "")
        rows.append(f"| {' | '.join(cells)} | {accuracy['greedy_worked_share']:.0%} |")
    return "\n".join(rows)


def _num_steps(record: dict[str, Any]) -> dict[str, int]:
    prorl = record["prorl"]
    return {
        "rlvr": record["rlvr"]["num_steps"],
        "prorl": prorl["accepted_period"] * prorl["num_steps_per_period"],
        "sft": record["sft"]["num_steps"],
    }


def _period_table(accuracies: list[dict[str, float]]) -> str:
    names = ["base", *(f"period {number}" for number in range(1, len(accuracies)))]
    cells = [f"{a['sampled']:.3f} / {a['greedy']:.3f}" for a in accuracies]
    return "\n".join([_row(names), _row(["---"] * len(names)), _row(cells)])


def _comparison_table(record: dict[str, Any]) -> str:
    accuracy, names = record["accuracy"], list(record["accuracy"]["backbones"])
    steps, changes = _num_steps(record), record["relative_weight_change"]
    rows = {
        "steps from the base": [f"{steps[name]:,}" if name in steps else "" for name in names],
        "weight change": [f"{changes[name]:.4f}" if name in changes else "" for name in names],
    }
    for problems, key in (("selection", "selection"), ("test", "backbones")):
        for kind in ("sampled", "greedy"):
            rows[f"{kind} accuracy, {problems} problems"] = [
                f"{of_one[kind]:.3f} ± {of_one[f'{kind}_standard_error']:.3f}"
                for of_one in accuracy[key].values()
            ]
    for metric, title in SIMILARITIES.items():
        values = (record["similarity"].get(name) for name in names)
        rows[title] = [f"{value[metric]:.4f}" if value else "" for value in values]
    head = [_row(["", *names]), _row(["---"] * (1 + len(names)))]
    return "\n".join([*head, *(_row([title, *cells]) for title, cells in rows.items())])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _family_table(by_family: dict[str, Any]) -> str:
    rows = [
        f"| | problems | {' | '.join(by_family)} |",
        "|---" * (2 + len(by_family)) + "|",
    ]
    for family, values in by_family["base"].items():
        cells = [
            f"{of_family[family]['sampled']:.3f} / {of_family[family]['greedy']:.3f}"
            for of_family in by_family.values()
        ]
        rows.append(f"| {family} | {values['num_problems']} | {' | '.join(cells)} |")
    return "\n".join(rows)
