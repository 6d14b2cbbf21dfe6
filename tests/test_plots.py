import math
import re
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.figure import Figure

from hrsa_lightning.plots import (
    MUTED,
    Line,
    curves_figure,
    distance_lines,
    draw_heatmap,
    has_distances,
    heatmap_figure,
    inline_svg,
    layer_steps_figure,
    lines_figure,
    metric_figures,
    plot_values,
    save_figure,
)
from hrsa_lightning.similarity import Measurement


def history(steps=4, arms=("a", "b"), chance=None):
    return [
        Measurement(
            metric,
            value := 1 - step / 10 - index / 20,
            (chance or {"a": 0.0}).get(arm) if metric == "cka" else None,
            arm=arm,
            reference="initial",
            layer=layer,
            step=step,
            low=value if metric == "cka" else None,
            high=value if metric == "cka" else None,
        )
        for step in range(steps)
        for metric in ("cka", "knn_overlap_10")
        for index, arm in enumerate(arms)
        for layer in ("layer_0", "output")
    ]


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


def test_equal_chance_levels_are_drawn_once():
    chance = dict.fromkeys("ab", 0.0)
    (first, _) = (ax for ax in curves_figure(history(chance=chance)).axes if ax.get_visible())
    dashed = [line for line in first.lines if line.get_color() == MUTED]
    assert len(dashed) == 1
    assert [text.get_text() for text in first.texts] == ["chance"]


def test_a_chance_level_that_would_flatten_the_curves_is_a_note():
    figure = curves_figure(history(chance={"a": -7.0}))
    (first, _) = (ax for ax in figure.axes if ax.get_visible())
    assert [text.get_text() for text in first.texts] == ["chance -7.00, far below"]
    assert first.get_ylim()[0] > 0.5
    lowest = min(line.get_ydata().min() for line in first.lines)
    bottom = first.texts[0].get_window_extent().y1
    assert bottom < first.transData.transform((0, lowest))[1], "no curve runs through the note"


def test_a_level_beyond_limits_that_a_note_has_fixed_is_not_named():
    """Its name would lie outside of the panel and leave no room for it."""
    ends = [1.0, 0.667]
    found = [
        Measurement("cka", end, 0.0, reference="initial", step=step, null_95=0.0545)
        for step, end in enumerate(ends)
    ]
    figure = curves_figure([*found, *(m._replace(metric="knn_overlap_10") for m in found)])
    panel = figure.axes[0]
    assert panel.get_position().height > 0.4
    assert "far below" in panel.texts[0].get_text()


def test_a_chance_level_that_changes_is_a_curve():
    """The residual of a model whose norms drift is far above 2, and so is its chance level."""
    found = [
        Measurement(
            "procrustes_residual", scale - 1, 1 + scale, arm=arm, reference="base", step=step
        )
        for arm, growth in (("a", 3.0), ("b", 1.0))
        for step in range(4)
        for scale in [growth**step]
    ]
    (panel,) = curves_figure(found).axes
    (curve,) = (line for line in panel.lines if line.get_label() == "_chance")
    assert curve.get_ydata().tolist() == [2, 4, 10, 28]
    assert curve.get_color() == panel.lines[0].get_color()
    (level,) = (line for line in panel.lines if line.get_color() == MUTED)
    assert level.get_ydata() == [2, 2], "that of b stays"


def test_distances_from_identity_tell_apart_what_crowds_at_it():
    ends = {"near": 0.9995, "far": 0.994, "same": 1.0}
    found = [
        m._replace(arm=arm, value=1.0 if m.step == 0 else end, low=end - 0.002, high=end + 0.002)
        for arm, end in ends.items()
        for m in history(arms=("a",))
        if m.metric == "cka"
    ]
    crowded = [*found, *(m for m in history() if m.metric != "cka")]
    assert has_distances(crowded)
    figure = curves_figure(crowded, distance=True)
    (panel,) = figure.axes  # the k-NN overlap is far from 1
    assert (panel.get_title(), panel.get_yscale()) == ("1 − cka", "log")
    drawn = {line.get_label(): list(line.get_ydata()) for line in panel.lines}
    assert math.isnan(drawn["near vs initial"][0]), "no distance at the start"
    assert drawn["near vs initial"][1:] == pytest.approx([0.0005] * 3)
    assert drawn["far vs initial"][1:] == pytest.approx([0.006] * 3)
    assert all(map(math.isnan, drawn["same vs initial: no distance"]))
    assert [text.get_text() for text in panel.texts] == ["chance"]
    assert panel.lines[-1].get_ydata() == [1, 1], "the distance of what has similarity 0"
    assert dict(metric_figures(crowded, distance=True)).keys() == {"cka"}
    assert not has_distances(history())
    with pytest.raises(ValueError, match="values to draw, found none"):
        curves_figure(history(), distance=True)


def test_a_residual_is_a_distance_already():
    (line,) = distance_lines([Line("a", [0, 1], [0.0, 0.01], [0, 0.005], [0, 0.02])], identity=0.0)
    assert line.values == pytest.approx([math.nan, 0.01], nan_ok=True)
    assert (line.low, line.high) == ([1e-6, 0.005], pytest.approx([math.nan, 0.02], nan_ok=True))


def test_other_places_and_nothing_to_draw():
    figure = curves_figure(history(), layer="layer_0")
    assert "layer_0" in figure.get_suptitle()
    with pytest.raises(ValueError, match="values to draw, found none"):
        curves_figure(history(), probes="other")


def test_panels_come_one_by_one_for_places_that_show_them_small():
    figures = dict(metric_figures(history()))
    assert list(figures) == ["cka", "knn_overlap_10"]
    (panel,) = figures["cka"].axes
    assert panel.get_title() == "cka at output"
    assert [text.get_text() for text in figures["cka"].legends[0].get_texts()] == [
        "a vs initial",
        "b vs initial",
    ]
    assert [text.get_text() for text in panel.texts] == ["chance"]
    alone = history(arms=("a",))
    assert dict(metric_figures(alone))["cka"].legends == []


def test_nan_leaves_a_gap():
    found = [m._replace(value=math.nan) if m.step == 1 else m for m in history()]
    line = curves_figure(found).axes[0].lines[0]
    assert math.isnan(line.get_ydata()[1])


def test_ranking_scores_are_drawn_by_arm():
    scores = [Measurement("mrr@10", 0.1 * step, arm="a", step=step) for step in range(3)]
    figure = curves_figure(scores, title="retrieval")
    (panel,) = figure.axes
    assert panel.get_title() == "mrr@10"
    assert figure.get_suptitle() == "retrieval on held-out pairs, by optimizer step"


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


@pytest.mark.parametrize(("most", "shown"), [(0.3, "+0.15"), (0.016, "+0.008")])
def test_small_changes_show_their_digits_and_the_scale_is_not_cut(most, shown):
    figure = Figure(figsize=(3.4, 2.9))
    ax = figure.add_axes((0.165, 0.175, 0.81, 0.72))
    values = [[most / 2, 0.0], [-most, most]]
    draw_heatmap(
        ax, values, ["a", "b"], ["a", "b"], title="x", limits=(-most, most), diverging=True
    )
    assert {"0", shown} <= {text.get_text() for text in ax.texts}
    figure.draw_without_rendering()
    _, bar = figure.axes
    labels = bar.get_yticklabels()
    assert [label.get_text() for label in labels] == [f"{-most:+.2g}", "0", f"{most:+.2g}"]
    assert all(label.get_window_extent().x1 <= figure.bbox.x1 for label in labels)


def test_no_global_state_of_pyplot_is_touched():
    from matplotlib import pyplot

    figure = curves_figure(history())
    assert pyplot.get_fignums() == []
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it all the same"


def test_plain_tensors_and_lists_make_a_panel():
    steps, values = torch.arange(3), torch.tensor([1.0, 0.5, math.nan], requires_grad=True)
    band = {"low": torch.tensor([0.9, 0.4, 0.3]), "high": [1.0, 0.6, 0.5]}
    figure = lines_figure(
        [Line("a vs b", steps, values, **band, color="black"), Line("c vs b", [0, 2], [0.2, 0.4])],
        title="cka",
        chance=[0.0, 0.001],
        log_x=True,
    )
    (panel,) = figure.axes
    assert panel.lines[0].get_ydata()[:2].tolist() == [1.0, 0.5]
    assert len(panel.collections) == 1
    assert panel.get_xscale() == "symlog"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a vs b", "c vs b"]
    assert sum(line.get_color() == MUTED for line in panel.lines) == 1


def test_values_of_a_metric_go_where_the_caller_wants():
    figure, ax = plot_values(torch.tensor(0.5), title="cka", chance=0.1)
    assert ax.lines[0].get_ydata().tolist() == [0.5]
    same_figure, same_ax = plot_values([torch.tensor(0.5), 0.25], title="cka", ax=ax)
    assert (same_figure, same_ax) == (figure, ax)
    assert ax.lines[-1].get_ydata().tolist() == [0.5, 0.25]


def test_layers_over_steps_have_the_first_layer_below():
    values = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, math.nan]])
    figure = layer_steps_figure(values, ["layer_0", "output"], [0, 10, 40], title="cka")
    ax = figure.axes[0]
    assert ax.images[0].origin == "lower"
    assert ax.images[0].get_array()[0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["layer_0", "output"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "10", "40"]


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (6, 6), (8, 8), (9, 5), (1000, 5)])
def test_few_steps_are_all_named(count, shown):
    figure = layer_steps_figure(torch.zeros(2, count), ["a", "b"], range(count), title="cka")
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert len(labels) == shown
    assert (labels[0], labels[-1]) == ("0", str(count - 1))


def test_many_layers_keep_their_labels_apart():
    layers = [f"layer_{i}" for i in range(28)]
    figure = layer_steps_figure(torch.zeros(28, 2), layers, [0, 1], title="cka")
    shown = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(shown) <= 15
    assert shown[0] == "layer_0"
    assert shown[-1] == "layer_27"


def test_inline_svg_takes_the_colors_of_the_page():
    text = inline_svg(curves_figure(history()), "first", 'curves of "a" & b')
    assert text.startswith("<svg viewBox=")
    assert 'role="img" aria-label="curves of &quot;a&quot; &amp; b"' in text
    for name in ("--ink", "--faint", "--c0", "--c1", "--sans"):
        assert f"var({name}" in text
    assert "<style" not in text
    assert "<g id=" not in text
    ids = set(re.findall(r'id="([^"]*)"', text))
    others = set(re.findall(r'id="([^"]*)"', inline_svg(curves_figure(history()), "second", "x")))
    assert ids
    assert not ids & others, "ids of two pictures on one page must differ"
    ElementTree.fromstring(text.replace("xlink:href", "href"))


def test_vector_files_are_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_figure(curves_figure(history()), tmp_path / name / "curves.svg")
    first, second = ((tmp_path / name / "curves.svg").read_bytes() for name in ("a", "b"))
    assert first == second
    assert b"a vs initial</text>" in first
    save_figure(curves_figure(history()), tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf, got 'curves.bmp'"):
        save_figure(curves_figure(history()), tmp_path / "curves.bmp")


def test_settings_of_matplotlib_stay_as_they_were(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_figure(curves_figure(history()), tmp_path / "curves.svg")
    assert dict(matplotlib.rcParams) == before
