"""Sample reasoning traces of a chat model, as the paper made its texts (its appendix C).

    python tools/traces.py hub:openai/gsm8k:main@test:500 --model Qwen/Qwen3-32B --out traces.jsonl
    python tools/traces.py hub:HuggingFaceH4/MATH-500@test --question problem \
        --model Qwen/Qwen3-32B --url http://localhost:8000/v1 --out math.jsonl
    python tools/traces.py embedded:tiny/traces.jsonl --question prompt --model embedded:tiny/sft \
        --user '{problem}\n' --max-tokens 48 --out tiny.jsonl

Without --url the model runs here, through transformers' `generate`; with it, the address of an
OpenAI-compatible server does (its key: the variable OPENAI_API_KEY). A line of OUT has prompt,
solution, answer, expected and correct. The paper (arXiv 2601.21192) asked another model whether a
trace is right; here its last answer is compared with the expected one, where there is one, else
`correct` is null. A call that was stopped goes on with what is missing. Probes of what came out:

    {preset: paper_tokens, path: traces.jsonl, filter: {correct: true}}
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from hrsa_lightning.cli import HelpFormatter, answered, positive
from hrsa_lightning.errors import ConfigError, DataError, first_line
from hrsa_lightning.io.files import read_json, write_json
from hrsa_lightning.io.json_lines import read_json_lines
from hrsa_lightning.io.sources import TextEntry

SYSTEM = "You are a helpful and rigorous math reasoning assistant."
USER = (
    "You are an expert competition math solver. Read the problem carefully and solve it step by "
    "step.\n\nProblem: {problem}"
)
_MARKERS = (r"####\s*(.+)", r"(?i)\banswer\s*(?:is|:)\s*(.+)")
_RETRIES = 5


class Problem(NamedTuple):
    """One problem; `expected` is None where nothing says what is right."""

    id: int
    text: str
    expected: str | None


class Reply(NamedTuple):
    """What a model wrote, and whether it came to an end."""

    text: str
    finished: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    about, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=details, formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add("problems", metavar="SOURCE", help="as probes: a file, hub:NAME[:CONFIG][@SPLIT[:N]], ...")
    add("--question", default="question", help="column of the problem (%(default)s)")
    add("--answer", default="answer", help="column of the right answer (%(default)s)")
    add("--model", required=True, help="hub id or folder; with --url, its name there")
    add("--url", help="address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    add("--out", type=Path, default=Path("traces.jsonl"), help="(%(default)s)")
    add("--temperature", type=float, default=0.6, help="0 is greedy (%(default)s)")
    add("--top-p", type=float, default=0.95, help="(%(default)s)")
    add("--max-tokens", type=positive, default=8000, help="most new tokens (%(default)s)")
    add("--no-thinking", action="store_true", help="where the chat template can leave it out")
    add("--system", default=SYSTEM, help="the system prompt, by default the paper's")
    add("--user", default=USER, help="the user's, with {problem} in it, by default the paper's")
    add(
        "--batch-size", type=positive, default=8, help="problems at once, or requests (%(default)s)"
    )
    add("--dtype", default="auto", help="of the weights (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    user = arguments.user.replace("\\n", "\n")
    if "{problem}" not in user:
        raise ConfigError(f"--user: expected a text with {{problem}}, got {arguments.user!r}")
    settings = {key: value for key, value in vars(arguments).items() if key != "batch_size"}
    settings["out"] = arguments.out.name
    problems = read_problems(arguments.problems, arguments.question, arguments.answer)
    done = _begin(arguments.out, settings)
    missing = [problem for problem in problems if problem.id not in done]
    model: Any = _Server if arguments.url else _Local
    batches = [
        missing[i : i + arguments.batch_size] for i in range(0, len(missing), arguments.batch_size)
    ]
    with tqdm(total=len(problems), initial=len(done), unit="trace", disable=None) as bar:
        ask = model(arguments) if missing else None
        for batch in batches:
            chats = [user.replace("{problem}", problem.text) for problem in batch]
            lines = [
                record_of(problem, reply)
                for problem, reply in zip(batch, ask(chats, batch[0].id), strict=True)
            ]
            with arguments.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            bar.update(len(batch))
    print(summary([line.value for line in read_json_lines(arguments.out)]))
    return 0


def read_problems(source: str, question: str, answer: str) -> list[Problem]:
    """Problems of a source, with the answers that are expected where it has them.

    Raises:
        DataError: There is no such source or column.
    """
    entry = TextEntry.of({"path": source, "text": question})
    texts = entry.read().texts
    try:
        answers = TextEntry.of({"path": source, "text": answer}).read().texts
    except DataError as error:
        if "no column" not in str(error):
            raise
        answers = []
    expected = [stated_answer(text) or text.strip() for text in answers] or [None] * len(texts)
    return [
        Problem(n, text, right) for n, (text, right) in enumerate(zip(texts, expected, strict=True))
    ]


def _begin(out: Path, settings: Mapping[str, Any]) -> set[int]:
    """Ids of what an earlier call with the same settings left; its last line may be cut off."""
    record = out.with_name(f"{out.name}.settings.json")
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, settings)
        return set()
    known = read_json(record) if record.exists() else {}
    if odd := [key for key in settings if known.get(key) != settings[key]]:
        raise ConfigError(
            f"--out {out}: has traces with another {odd[0]} ({known.get(odd[0])!r}); choose another"
        )
    lines = list(read_json_lines(out, ended_only=True))
    os.truncate(out, lines[-1].end if lines else 0)
    return {line.value["id"] for line in lines}


def record_of(problem: Problem, reply: Reply) -> dict[str, Any]:
    """The line of one trace."""
    answer = final_answer(reply.text) if reply.finished else None
    right = None if problem.expected is None else is_right(answer, problem.expected)
    return {
        "id": problem.id,
        "prompt": problem.text,
        "solution": reply.text,
        "answer": answer,
        "expected": problem.expected,
        "correct": right,
        "finished": reply.finished,
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """The row of the paper's table 11: how many traces, how many of them right."""
    judged = [line for line in lines if line["correct"] is not None]
    right = sum(line["correct"] for line in judged)
    share = f" ({right / len(judged):.1%})" if judged else ""
    return f"{len(lines)} traces, {right} of {len(judged)} right{share}"


def final_answer(text: str) -> str | None:
    r"""What `stated_answer` finds behind the thoughts of a text, or else its last number.

    >>> final_answer(r"so \boxed{\frac{1}{2}}."), final_answer("1 + 1 = 2\n#### 2")
    ('\\frac{1}{2}', '2')
    >>> final_answer("<think>no, the answer is 3</think> The answer is 1,004.")
    '1,004'
    """
    text = text.rpartition("</think>")[2]
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    return stated_answer(text) or (numbers[-1].rstrip(",") if numbers else None)


def stated_answer(text: str) -> str | None:
    """The last answer that a text states: boxed, or else behind `####` or "answer"."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for end in range(begin, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[begin + 1 : end].strip()
    for marker in _MARKERS:
        if found := re.findall(marker, text):
            return str(found[-1]).strip().rstrip(".")
    return None


def is_right(answer: str | None, expected: str) -> bool:
    r"""Whether two answers are the same, as numbers or once spelled alike.

    >>> is_right("$1,004.0$", "1004"), is_right(r"\dfrac{1}{2}", r"\frac12"), is_right(None, "1")
    (True, True, False)
    """
    if answer is None:
        return False
    ours, theirs = _plain(answer), _plain(expected)
    return ours == theirs or (_number(ours) is not None and _number(ours) == _number(theirs))


def _plain(answer: str) -> str:
    answer = re.sub(r"\\(?:text|mathrm|mbox)\{([^}]*)\}", r"\1", answer)
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    answer = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"\\(?:left|right|!|,|;| )|\\\$|[$\s]|\^\{?\\circ\}?|\\?%", "", answer)
    return re.sub(r"(?<=\d),(?=\d{3})", "", answer).rstrip(".").lower()


def _number(answer: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}", answer)
    try:
        if fraction:
            return Fraction(int(fraction[1] + "1") * int(fraction[2]), int(fraction[3]))
        return Fraction(answer)
    except (ValueError, ZeroDivisionError):
        return None


class _Local:
    """A model on this machine."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from hrsa_lightning.io.pretrained import read_tokenizer
        from hrsa_lightning.models.paths import resolve_backbone

        source = resolve_backbone(arguments.model)
        try:
            self._tokenizer = read_tokenizer(source)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=arguments.dtype, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {arguments.model}: {first_line(error)}") from error
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._tokenizer.padding_side = "left"
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._arguments = arguments

    def __call__(self, chats: Sequence[str], first: int) -> list[Reply]:
        import torch

        given = self._arguments
        torch.manual_seed(given.seed + first)
        batch = self._tokenizer(
            [self._prompt(chat) for chat in chats],
            padding=True,
            return_tensors="pt",
            add_special_tokens=not self._tokenizer.chat_template,
        ).to(self._model.device)
        sampled = given.temperature > 0
        options = {"temperature": given.temperature, "top_p": given.top_p, "top_k": 0}
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=given.max_tokens,
                do_sample=sampled,
                pad_token_id=self._tokenizer.pad_token_id,
                **(options if sampled else {}),
            )
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}
        rows = output[:, batch["input_ids"].shape[1] :].tolist()
        texts = self._tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            Reply(text, not ends.isdisjoint(row)) for text, row in zip(texts, rows, strict=True)
        ]

    def _prompt(self, chat: str) -> str:
        if not self._tokenizer.chat_template:
            return chat
        prompt: str = self._tokenizer.apply_chat_template(
            _messages(self._arguments.system, chat),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=not self._arguments.no_thinking,
        )
        return prompt


class _Server:
    """A model behind an OpenAI-compatible address."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._pool = ThreadPoolExecutor(arguments.batch_size)

    def __call__(self, chats: Sequence[str], first: int) -> Iterable[Reply]:
        return list(self._pool.map(self._ask, chats, range(first, first + len(chats))))

    def _ask(self, chat: str, number: int) -> Reply:
        given = self._arguments
        body = {
            "model": given.model,
            "messages": _messages(given.system, chat),
            "temperature": given.temperature,
            "top_p": given.top_p,
            "max_tokens": given.max_tokens,
            "seed": given.seed + number,
        }
        if given.no_thinking:  # thinking is what servers of such models do by themselves
            body["chat_template_kwargs"] = {"enable_thinking": False}
        (choice,) = self._post(body)["choices"]
        message = choice["message"]
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        text = (f"<think>\n{thought}\n</think>\n\n" if thought else "") + (message["content"] or "")
        return Reply(text, choice.get("finish_reason") == "stop")

    def _post(self, body: Mapping[str, Any]) -> Any:
        address = f"{self._arguments.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        for wait in _waits():
            try:
                request = Request(address, json.dumps(body).encode(), headers)
                with urlopen(request, timeout=3600) as answer:
                    return json.load(answer)
            except HTTPError as error:
                passing = error.code == 429 or error.code >= 500
                reason = f"{error.code} {error.read(300).decode(errors='replace')}"
            except (URLError, OSError, ValueError) as error:
                passing, reason = True, first_line(error)
            if not passing or wait is None:
                raise ConfigError(f"--url {address}: {reason}")
            time.sleep(wait)
        raise AssertionError


def _waits() -> Iterator[float | None]:
    """Seconds before each further try; None at the last."""
    yield from (2.0**n for n in range(_RETRIES - 1))
    yield None


def _messages(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


if __name__ == "__main__":
    sys.exit(main())
