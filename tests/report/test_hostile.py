"""Old, foreign and damaged files: a report with notes, or an error of one line."""

import csv
import json

import pytest

from hrsa_lightning.report import __main__ as report
from tests.report.runs import write_run

VALUES = [
    *(None, True, -1, 0.5, 10**400, float("nan"), float("inf"), 1e308, "", "a\nb", "\ud800"),
    *("=cmd|' /C calc'!A0", "<script>alert(1)</script>", "$\\frac{$", "../../../x", "a" * 300),
    *([], [5], [[]], ["a", 1], {}, {"a": 1}, {"a": {"b": []}}),
]
NAMES = ["config.yaml", "environment.json", "summary.json", "similarity.jsonl", "retrieval.jsonl"]
NAMES.append("similarity.details.jsonl")


def paths(content, depth=4):
    """Where a value may be replaced: every key, and the first item of every list."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in items:
        yield (key,)
        if isinstance(value, (dict, list)) and depth:
            yield from ((key, *rest) for rest in paths(value, depth - 1))


def replaced(content, path, value):
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def new_format(folder, **names):
    """A run as it is written today, with names of a test's choice."""
    names = {"metric": "cka", "arm": "rlvr", "reference": "base", "layer": "output", **names}
    monitor = names.pop("monitor", "similarity")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "similarity.jsonl").open("w") as file:
        for step in (0, 4):
            measurements = [{**names, "value": 1 - step / 10, "chance": 0.1}]
            record = {"step": step, "monitor": monitor, "measurements": measurements}
            file.write(json.dumps(record) + "\n")
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(
        tmp_path / "runs" / "a",
        steps=(0, 4),
        metrics=("cka",),
        comparisons=("rlvr_vs_base",),
        layers=1,
        details=True,
    )


def answer(run, out, capsys):
    """What the command says; nothing may be written outside of `out`."""
    before = {path for path in run.parents[1].rglob("*") if out not in (path, *path.parents)}
    code = report.main([str(run), "--out", str(out)])
    said = capsys.readouterr()
    after = {path for path in run.parents[1].rglob("*") if out not in (path, *path.parents)}
    assert after == before
    assert code in (0, 2), said
    assert said.err.count("\n") == (code == 2), said
    assert len(said.err) < 1000, said
    return code


def check_every_value(run, name, tmp_path, capsys, values):
    lines = (run / name).read_text().splitlines()
    content = json.loads(lines[0])
    answered = set()
    for path in paths(content):
        for value in values:
            changed = json.dumps(replaced(content, path, value))
            (run / name).write_text("\n".join([changed, *lines[1:]]) + "\n")
            answered.add((path, answer(run, tmp_path / "out", capsys)))
    return answered


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_anywhere_is_a_note_or_one_line(run, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hrsa_lightning.report.writing.write_figures", lambda *_: None)
    monkeypatch.setattr("hrsa_lightning.report.page.Gallery.drawings", [])
    assert check_every_value(run, name, tmp_path, capsys, [None, 5, "a", [5], {"a": 1}])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_hostile_values_anywhere(run, name, tmp_path, capsys, monkeypatch):
    """With the pictures of the page where the values may reach them, but without their files."""
    monkeypatch.setattr("hrsa_lightning.report.writing.write_figures", lambda *_: None)
    if name.endswith((".yaml", ".json")):
        monkeypatch.setattr("hrsa_lightning.report.page.Gallery.drawings", [])
    assert check_every_value(run, name, tmp_path, capsys, VALUES)


def test_what_is_left_out_is_said(run, tmp_path, capsys):
    recipe = json.loads((run / "config.yaml").read_text())
    recipe |= {"data": None, "trainer": [], "arms": {**recipe["arms"], "odd": 5}}
    (run / "config.yaml").write_text(json.dumps(recipe))
    (run / "summary.json").write_text('{"seconds": "ten"}')
    assert answer(run, tmp_path / "out", capsys) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    for part in ("config.yaml: trainer", "config.yaml: arms.odd", "summary.json: seconds"):
        assert f"{part} has another form" in text
    assert "config.yaml: data" not in text


def test_names_are_shown_as_they_are(tmp_path, capsys):
    name = "$\\frac{$ <script>alert(1)</script> [a](b)"
    run = new_format(tmp_path / "runs" / "a", reference=name, layer=name, metric=name)
    assert answer(run, tmp_path / "out", capsys) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    markdown = (tmp_path / "out" / "report.md").read_text()
    (sheet,) = (tmp_path / "out" / "figures").glob("*curves.svg")
    assert "rlvr vs $\\frac{$ &lt;script" in page
    assert "rlvr vs $\\frac{$ &lt;script" in sheet.read_text()
    assert "<script" not in page + markdown
    assert "](b)" not in markdown


@pytest.mark.parametrize("monitor", ["../../x", "a" * 300, "a/b", "größe", "a.b"])
def test_pictures_stay_in_their_folder(tmp_path, capsys, monitor):
    run = new_format(tmp_path / "runs" / "a", monitor=monitor)
    assert answer(run, tmp_path / "out", capsys) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    pictures = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
    assert pictures
    for picture in pictures:
        assert f"figures/{picture.rpartition('.')[0]}.png" in markdown


def test_formulas_of_spreadsheets_are_texts(tmp_path, capsys):
    run = new_format(tmp_path / "runs" / "a", metric="=cmd|' /C calc'!A0")
    assert answer(run, tmp_path / "out", capsys) == 0
    for path in (tmp_path / "out").glob("*.csv"):
        with path.open() as file:
            header, *rows = csv.reader(file)
        metrics = {row[header.index("metric")] for row in rows}
        assert metrics == {"'=cmd|' /C calc'!A0"}, path


def test_steps_that_come_twice_or_out_of_order_are_put_right(tmp_path, capsys):
    run = new_format(tmp_path / "runs" / "a")
    first, last = (run / "similarity.jsonl").read_text().splitlines()
    stale = last.replace("0.6", "0.9")
    (run / "similarity.jsonl").write_text("\n".join([stale, last, first]) + "\n")
    assert answer(run, tmp_path / "out", capsys) == 0
    with (tmp_path / "out" / "curves.csv").open() as file:
        found = [(row["step"], float(row["mean"])) for row in csv.DictReader(file)]
    assert found == [("0", 1.0), ("4", 0.6)]
