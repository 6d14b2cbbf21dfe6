import math

import pytest

from hrsa_lightning.plots import MUTED, curves_figure, heatmap_figure, save_figure


def history(steps=4, arms=("a", "b"), floors=None):
    records = [
        {
            "step": step,
            "values": {
                f"similarity/{metric}/{arm}_vs_initial/{where}": 1 - step / 10 - index / 20
                for metric in ("cka", "cka_low", "cka_high", "knn_overlap_10")
                for index, arm in enumerate(arms)
                for where in ("layer_0", "output")
            }
            | {"similarity/seconds": 0.1},
        }
        for step in range(steps)
    ]
    records[0]["floors"] = floors or {"similarity/cka/a_vs_initial/output": 0.0}
    return records


def test_one_panel_per_metric_one_line_per_comparison():
    figure = curves_figure(history())
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == ["cka", "knn overlap 10"]
    labels = [line.get_label() for line in panels[0].lines]
    assert labels[:1] == ["a vs initial"]
    assert "b vs initial" in labels
    line = next(line for line in panels[1].lines if line.get_label() == "b vs initial")
    assert line.get_ydata().tolist() == pytest.approx([0.95, 0.85, 0.75, 0.65])
    assert len(panels[0].collections) == 2, "a band for each comparison"
    assert len(panels[1].collections) == 0


def test_equal_floors_are_drawn_once():
    floors = {f"similarity/cka/{arm}_vs_initial/output": 0.0 for arm in "ab"}
    (first, _) = (ax for ax in curves_figure(history(floors=floors)).axes if ax.get_visible())
    dashed = [line for line in first.lines if line.get_color() == MUTED]
    assert len(dashed) == 1
    assert [text.get_text() for text in first.texts] == ["chance"]


def test_a_floor_that_would_flatten_the_curves_is_a_note():
    floors = {"similarity/cka/a_vs_initial/output": -7.0}
    (first, _) = (ax for ax in curves_figure(history(floors=floors)).axes if ax.get_visible())
    assert [text.get_text() for text in first.texts] == ["chance -7.00, far below"]
    assert first.get_ylim()[0] > 0.5


def test_other_places_and_nothing_to_draw():
    figure = curves_figure(history(), where="layer_0")
    assert "layer_0" in figure.get_suptitle()
    with pytest.raises(ValueError, match="under 'other', found none"):
        curves_figure(history(), group="other")


def test_nan_leaves_a_gap():
    records = history()
    records[1]["values"]["similarity/cka/a_vs_initial/output"] = math.nan
    line = curves_figure(records).axes[0].lines[0]
    assert math.isnan(line.get_ydata()[1])


def test_ranking_scores_are_drawn_by_arm():
    records = [{"step": s, "values": {"retrieval/a/mrr@10": 0.1 * s}} for s in range(3)]
    (panel,) = curves_figure(records, group="retrieval").axes
    assert panel.get_title() == "mrr@10"


def test_heatmaps_start_at_the_bottom_left(tmp_path):
    figure = heatmap_figure(
        [[1.0, 0.2, 0.1], [0.3, math.nan, 0.4]], ["l0", "l1"], ["r0", "r1", "r2"], title="a vs b"
    )
    ax = figure.axes[0]
    assert ax.images[0].origin == "lower"
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts[(0, 0)] == "1.00"
    assert texts[(2, 1)] == "0.40"
    assert (1, 1) not in texts, "a value that is not finite stays blank"
    save_figure(figure, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_no_global_state_of_pyplot_is_touched():
    from matplotlib import pyplot

    curves_figure(history())
    assert pyplot.get_fignums() == []
