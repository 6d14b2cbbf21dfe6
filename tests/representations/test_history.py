import math

from hrsa_lightning.representations.history import (
    append_record,
    cut_history,
    read_history,
    split_tag,
    summarize,
)


def record(step, **values):
    return {"step": step, "values": {f"similarity/{k}/output": v for k, v in values.items()}}


def test_nan_survives_as_valid_json(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    append_record(path, record(0, cka=math.nan, knn=0.5))
    assert "null" in path.read_text()
    values = read_history(path)[0]["values"]
    assert math.isnan(values["similarity/cka/output"])
    assert values["similarity/knn/output"] == 0.5


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "history.jsonl"
    append_record(path, record(0, cka=1.0))
    with path.open("a") as file:
        file.write('{"step": 1, "val')
    assert [r["step"] for r in read_history(path)] == [0]


def test_cutting_keeps_what_the_checkpoint_has_seen(tmp_path):
    source, target = tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl"
    for step in (0, 5, 10):
        append_record(source, record(step, cka=1.0))
    assert cut_history(source, target, 5) == [0, 5]
    assert [r["step"] for r in read_history(target)] == [0, 5]
    assert len(read_history(source)) == 3, "the other run's file stays"
    assert cut_history(tmp_path / "absent.jsonl", target, 5) == []
    assert not target.exists()


def test_summary_takes_first_and_last_where_a_value_exists():
    history = [record(0, cka=1.0), record(5, cka=0.5, knn=0.3), record(9, knn=0.2)]
    rows = {row.metric: (row.first, row.last) for row in summarize(history)}
    assert rows == {"cka": (1.0, 0.5), "knn": (0.3, 0.2)}


def test_tags():
    assert split_tag("similarity.math/cka/a_vs_b/layer_1/noun") == (
        "similarity.math",
        "cka",
        "a_vs_b",
        "layer_1/noun",
    )
    assert split_tag("retrieval/mrr@10") == ("retrieval", "mrr@10", "", "held_out")
    assert summarize([{"step": 0, "values": {"similarity/seconds": 0.1}}]) == []
