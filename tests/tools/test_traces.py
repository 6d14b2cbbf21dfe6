"""Traces are sampled, judged and resumed, from a model here or behind an address."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
import traces

from hrsa_lightning.io.sources import TextEntry

TINY = ["embedded:tiny/traces.jsonl", "--question", "prompt", "--model", "embedded:tiny/sft"]
TINY += ["--user", "{problem}\\n", "--max-tokens", "40", "--temperature", "0"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {n} + 1?", "answer": f"easy\n#### {n + 1}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Server(BaseHTTPRequestHandler):
    """Adds one to the number in the question, and fails now and then."""

    asked: ClassVar[list[dict]] = []
    failures = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        cls.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        if cls.failures > 0:
            cls.failures -= 1
            self.send_error(503)
            return
        number = int(body["messages"][1]["content"].partition("What is ")[2].split()[0])
        answer = number + 1 if number != 3 else 0
        message = {"reasoning_content": "9, or 8?", "content": f"So \\boxed{{{answer}}}."}
        reply = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    Server.asked, Server.failures = [], 0
    monkeypatch.setattr(traces, "_waits", lambda: iter((0.0, None)))
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_asked_as_the_paper_asked(problems, address, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Server.failures = 1  # passing
    out = tmp_path / "out" / "traces.jsonl"
    command = [str(problems), "--model", "m", "--url", address, "--out", str(out)]
    assert traces.main(command) == 0
    assert "5 traces, 4 of 5 right (80.0%)" in capsys.readouterr().out
    lines = read(out)
    assert [line["id"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["correct"] for line in lines] == [True, True, True, False, True]
    assert lines[0] == {
        "id": 0,
        "prompt": "What is 0 + 1?",
        "solution": "<think>\n9, or 8?\n</think>\n\nSo \\boxed{1}.",
        "answer": "1",
        "expected": "1",
        "correct": True,
        "finished": True,
    }
    asked = Server.asked[-1]
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0.6, 0.95, 8000)
    assert (asked["path"], asked["key"]) == ("/v1/chat/completions", "Bearer secret")
    system, user = (message["content"] for message in asked["messages"])
    assert system == traces.SYSTEM
    assert user.startswith("You are an expert competition math solver.")
    entry = TextEntry.of({"preset": "paper_tokens", "path": str(out), "filter": {"correct": True}})
    assert len(entry.read().texts) == 4


def test_a_stopped_call_goes_on(problems, address, tmp_path):
    out = tmp_path / "traces.jsonl"
    command = [str(problems), "--model", "m", "--url", address, "--out", str(out)]
    assert traces.main(command) == 0
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"id": 2, "prom')
    Server.asked.clear()
    assert traces.main([*command, "--batch-size", "2"]) == 0
    assert out.read_text() == whole
    assert len(Server.asked) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temperature", "1"], "has traces with another temperature (0.6)"),
        (["--user", "Solve it."], "--user: expected a text with {problem}"),
        (["--question", "problem"], 'no column "problem"'),
    ],
)
def test_mistakes_get_one_line(more, message, problems, address, tmp_path, capsys):
    command = [str(problems), "--model", "m", "--url", address]
    command += ["--out", str(tmp_path / "traces.jsonl")]
    assert traces.main(command) == 0
    assert traces.main([*command, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_refusing_server_is_told(problems, address, tmp_path, capsys):
    Server.failures = 99
    out = tmp_path / "traces.jsonl"
    assert traces.main([str(problems), "--model", "m", "--url", address, "--out", str(out)]) == 2
    assert f"--url {address}/chat/completions: 503" in capsys.readouterr().err


def test_a_backbone_here(tmp_path, monkeypatch):
    monkeypatch.setattr(
        traces, "read_problems", lambda *a, read=traces.read_problems: read(*a)[:16]
    )
    out = tmp_path / "traces.jsonl"
    assert traces.main([*TINY, "--out", str(out), "--batch-size", "16"]) == 0
    lines = read(out)
    assert sum(line["correct"] for line in lines) >= 8  # .82 of held-out problems, greedily
    assert all(line["solution"].startswith("Work: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>maybe \\boxed{3}</think> It is 4.", "4"),
        ("\\boxed{\\frac{a}{b}} and done", "\\frac{a}{b}"),
        ("first\n#### 1,234\n", "1,234"),
        ("Work: a b\nAnswer: b a", "b a"),
        ("nothing", None),
    ],
)
def test_answers_are_found(text, answer):
    assert traces.final_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("1,004", "1004", True),
        ("0.5", "\\frac{1}{2}", True),
        ("\\dfrac{3}{4}", "\\frac34", True),
        ("90^\\circ", "90", True),
        ("\\text{Evelyn}", "evelyn", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", True),
        ("12", "21", False),
        ("x+1", "x-1", False),
        (None, "1", False),
    ],
)
def test_answers_are_compared(answer, expected, right):
    assert traces.is_right(answer, expected) is right
