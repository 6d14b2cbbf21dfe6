"""The command, and what it writes, from folders to files."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hrsa_lightning.report import __main__ as report
from tests.report.runs import STEADY, value, write_run

PAIR = "rlvr_vs_base"


class Tables(HTMLParser):
    """Every table of a page: caption to rows of (texts, values)."""

    def __init__(self, text):
        super().__init__()
        self.tables = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        if tag == "table":
            self.caption, self.rows = "", []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append(["", None])
        elif tag == "data":
            self.rows[-1][-1][1] = float(dict(attrs)["value"])

    def handle_data(self, data):
        if self._inside == "caption":
            self.caption += data.strip()
        elif self._inside in ("th", "td", "data") and data.strip():
            self.rows[-1][-1][0] += data

    def handle_endtag(self, tag):
        self._inside = ""
        if tag == "table":
            self.tables[self.caption] = self.rows


def page_of(out):
    return (out / "report.html").read_text(encoding="utf-8")


def column(rows, name):
    index = [cell[0] for cell in rows[0]].index(name)
    return {row[0][0]: row[index] for row in rows[1:]}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three seeds, reported once."""
    folder = tmp_path_factory.mktemp("three")
    for seed in (1016, 1017, 1018):
        write_run(folder / "runs" / str(seed), seed=seed)
    assert report.main([str(folder / "runs"), "--out", str(folder / "out")]) == 0
    return folder


def test_numbers_of_the_page_are_those_of_the_histories(three):
    rows = Tables(page_of(three / "out")).tables["similarity at output, before → after"]
    ends = {step: [] for step in (0, 40)}
    for seed in (1016, 1017, 1018):
        history = (three / "runs" / str(seed) / "similarity.jsonl").read_text().splitlines()
        for line in (json.loads(history[0]), json.loads(history[-1])):
            ends[line["step"]].append(line["values"][f"similarity/cka/{PAIR}/output"])
    text, number = column(rows, "rlvr vs base")["linear CKA, debiased"]
    assert number == pytest.approx(sum(ends[40]) / 3, rel=1e-14)
    assert text.startswith(f"{sum(ends[0]) / 3:.3f} → {number:.3f} ± ")
    assert column(rows, "chance")["linear CKA, debiased"][1] == 0.01
    control = column(rows, "base_seed2 vs base")["Procrustes residual"][1]
    expected = [
        value(s, 40, "procrustes_residual", "base_seed2_vs_base", 3) for s in (1016, 1017, 1018)
    ]
    assert control == pytest.approx(sum(expected) / 3)


def test_markdown_has_the_same_rows(three):
    text = (three / "out" / "report.md").read_text(encoding="utf-8")
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    found = [[cell.strip() for cell in line] for line in lines]
    for caption, rows in Tables(page_of(three / "out")).tables.items():
        assert caption in text
        for row in rows:
            assert [cell[0].replace("|", "\\|").replace("<", "&lt;") for cell in row] in found
    for picture in re.findall(r"\]\((.*?)\)", text):
        assert (three / "out" / picture).is_file()
        assert (three / "out" / picture).with_suffix(".svg").is_file()


def test_derived_quantities_follow_from_the_raw_values(tmp_path):
    seeds = (1015, 1016, 1017)
    for seed in seeds:
        write_run(tmp_path / "runs" / str(seed), seed=seed, rates=STEADY)
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "derived.csv").open() as file:
        (row,) = [r for r in csv.DictReader(file) if r["metric"] == "procrustes_residual"]
    gains, closed, halves, recovered = [], [], [], []
    for seed in seeds:
        pair, control = (
            [-value(seed, step, "procrustes_residual", name, 3, STEADY) for step in (0, 40)]
            for name in (PAIR, "base_seed2_vs_base")
        )
        gains.append(pair[-1] - pair[0])
        closed.append(1 - (control[-1] - pair[-1]) / (control[0] - pair[0]))
        recovered.append((pair[-1] - pair[0]) / (0 - pair[0]))
        halves.append(20.0)  # the curves are straight lines over 40 steps
    for name, values in (
        ("gain", gains),
        ("closed", closed),
        ("recovered", recovered),
        ("half_life", halves),
    ):
        assert float(row[f"{name}_mean"]) == pytest.approx(sum(values) / 3), name
    assert float(row["closed_mean"]) == pytest.approx(
        float(row["by_pair_mean"]) + float(row["by_control_mean"])
    )


def test_shares_of_what_a_seed_makes_are_not_formed_and_the_words_say_why(three):
    """The pair begins .1 from identity, and two seeds of its reference end much further apart."""
    with (three / "out" / "derived.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row[f"{name}_mean"] for row in rows for name in ("recovered", "closed")} == {""}
    assert all(float(row["gain_mean"]) < 0 for row in rows)
    words = "No share is formed for linear CKA, debiased; k-NN overlap, k = 10; Procrustes"
    assert words in page_of(three / "out")


def test_every_place_is_in_the_table_of_values(three):
    with (three / "out" / "values.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [
        r for r in rows if (r["comparison"], r["metric"], r["where"]) == (PAIR, "cka", "layer_1")
    ]
    expected = [value(seed, 40, "cka", PAIR, 1) for seed in (1016, 1017, 1018)]
    assert float(row["after_mean"]) == pytest.approx(sum(expected) / 3)
    assert row["runs"] == "3"
    undefined = [r for r in rows if r["metric"] == "inverse_row_entropy"]
    assert {r["after_mean"] for r in undefined} == {""}


def test_the_page_stands_alone_and_escapes_what_it_shows(three):
    text = page_of(three / "out")
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "url(http" not in text
    assert "A | trial &lt;of&gt; ours." in text
    assert "0123456789ab with local changes" in text
    assert "Not kept by these runs: every layer against every layer" in text


def test_the_page_opens_with_the_answer_then_pictures_then_folded_tables(three):
    text = page_of(three / "out")
    body = text[text.index("<main>") :]
    order = ["<b>rlvr and base", "<b>Retrieval", "<b>How sure", "<b>Seed control", "<figure>"]
    order += [">Curves</h3>", ">Layer by layer over steps</h3>", "<table", ">What was run</h2>"]
    places = [body.index(part) for part in order]
    assert places == sorted(places)
    tables = body[: body.index(">What was run</h2>")].split("<table")[1:]
    before = re.sub(r"<details>.*?</details>", "", body, flags=re.DOTALL)
    assert len(tables) > 3
    assert before.index("<table") > before.index(">What was run</h2>"), "all others are folded"


def test_one_seed_claims_nothing_beyond_its_control_and_says_so_once(tmp_path):
    run = write_run(tmp_path / "a", bands=True, details=True)
    assert report.main([str(run)]) == 0
    text = page_of(run / "report")
    assert len(re.findall("no interval|one seed", text)) == 2, "both in one sentence"
    assert "one seed, so no interval" in text
    assert "±" not in "".join(
        c[0] for rows in Tables(text).tables.values() for r in rows for c in r
    )
    low, high = (value(1016, 40, "cka", PAIR, 3) + shift for shift in (-0.02, 0.02))
    assert f"[{low:.3f}, {high:.3f}]" in text
    assert "95 % bands over probes" in text
    assert "Not kept by these runs" not in text
    for part in ("rlvr vs base, step 40", "rlvr vs base, change from step 0 to 40"):
        assert f"linear CKA, debiased, layer by layer: {part}" in text


def test_a_run_of_a_foreign_project_needs_only_its_history(tmp_path, capsys):
    folder = tmp_path / "version_0"
    folder.mkdir()
    lines = [
        {"step": s, "seconds": 0.1, "values": {"similarity/my_metric/output": 1 - s / 10}}
        for s in (0, 5)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "val'
    (folder / "similarity.jsonl").write_text(text)
    assert report.main([str(folder), "--out", str(tmp_path / "out"), "--log-x"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = page_of(tmp_path / "out")
    assert "config.yaml is missing" in page
    assert "No seed control stands beside live vs reference" in page
    rows = Tables(page).tables["similarity at output, before → after"]
    assert column(rows, "live vs reference")["my metric"] == ["1.000 → 0.500", 0.5]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such folder"),
        ({}, "no history in or below it"),
        ({"similarity.jsonl": '{"step": 1, "values": {}}\n{"step": 2, x}\n'}, "jsonl:2: not valid"),
        (
            {"similarity.jsonl": '{"step": 1, "values": {"a/b": "c"}}\n'},
            "jsonl:1: expected an evaluation",
        ),
        ({"similarity.jsonl": '{"step": 1}\n'}, "jsonl:1: expected an evaluation, with 'step'"),
        ({"similarity.jsonl": '{"step": 1, "values"'}, "hold no whole record"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, content, expected):
    run = tmp_path / "run"
    if content is not None:
        run.mkdir()
        for name, text in content.items():
            (run / name).write_text(text)
    assert report.main([str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert str(run) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    (tmp_path / "taken").write_text("a file")
    assert report.main([str(run), "--out", str(tmp_path / "taken")]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"reading {run} ...\n", "before what takes time"
    assert "cannot be written" in shown.err


def test_help_fits_a_screen_and_the_module_needs_no_torch():
    code = (
        "import sys, hrsa_lightning.report.__main__ as r; "
        "assert 'torch' not in sys.modules; r.main(['-h'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "100"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


def test_panels_of_a_vector_sheet_lie_side_by_side(tmp_path):
    metrics = ("cka", "knn_overlap_10", "procrustes_global_cosine", "dimension_correlation")
    run = write_run(tmp_path / "a", metrics=metrics)
    assert report.main([str(run), "--out", str(tmp_path / "out")]) == 0
    sheet = ElementTree.parse(tmp_path / "out" / "figures" / "0_similarity_curves.svg").getroot()
    panels = [e for e in sheet if e.tag.endswith("svg")]
    corners = [(float(e.get("x")), float(e.get("y"))) for e in panels]
    left, top, width, height = map(float, sheet.get("viewBox").split())
    for panel, (x, y) in zip(panels, corners, strict=True):
        assert (left, top) <= (x, y)
        assert x + float(panel.get("width")) <= width + 0.01, "in the units of the sheet"
        assert y + float(panel.get("height")) <= height
    ids = [e.get("id") for e in sheet.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert len(set(corners)) == 4, "the one that is undefined everywhere has no panel"
    assert corners[0][1] == corners[1][1] == corners[2][1]
    assert corners[0][0] == corners[3][0] < corners[1][0] < corners[2][0]
    text = "".join(sheet.itertext())
    assert "rlvr vs base" in text
    assert "noise vs base" in text


def test_scores_of_the_arms_are_set_against_the_base(three):
    tables = Tables(page_of(three / "out")).tables
    rows = tables["retrieval on held-out pairs, before → after"]
    assert column(rows, "noise")["MRR@10"] == ["-0.101 → 0.299 ± 0.001", pytest.approx(0.299)]
    rows = tables["Do the arms' scores differ from those of base?"]
    assert column(rows, "noise minus base")["MRR@10"][1] == pytest.approx(-0.101)
    assert column(rows, "rlvr minus base")["MRR@10"][1] == pytest.approx(0.01 / 3)
    assert column(rows, "at 95 %")["MRR@10"][0] == "noise differs"
    text = page_of(three / "out")
    assert "<b>Retrieval of noise differs from base and of rlvr does not measurably differ" in text
