import numpy as np
import pytest
from matplotlib.figure import Figure

from hrsa_lightning.report.answer import answer_of
from hrsa_lightning.report.experiments import FIELDS, Key, Pair, Place, group_runs, read_run
from hrsa_lightning.report.figures import Pictures, styles
from hrsa_lightning.report.verdict import Findings
from hrsa_lightning.similarity.history import Evaluation, append_record, read_evaluations
from hrsa_lightning.similarity.measurement import Measurement
from hrsa_lightning.similarity.metric_info import headline
from tests.report.runs import COMPARISONS, STEADY, value, write_run

PAIR = Pair("rlvr", "base")
SEEDS, NOISE = Pair("base_seed2", "base"), Pair("noise", "base")
CONTROLS = [SEEDS, NOISE]
OUTPUT = Place("output")
KEY = Key("similarity", "cka", PAIR, OUTPUT)


def experiment_of(tmp_path, *settings, **options):
    runs = [read_run(write_run(tmp_path / str(i), **each)) for i, each in enumerate(settings)]
    return group_runs(runs, **options)


def test_recipes_that_differ_in_seeds_are_one_experiment(tmp_path):
    first, second = experiment_of(tmp_path, {"seed": 1}, {"seed": 2}, {"seed": 1, "lr": 0.1})
    assert [len(first.runs), len(second.runs)] == [2, 1]
    assert first.label == "tiny (optimizer.lr=0.004)"
    assert second.label == "tiny (optimizer.lr=0.1)"


def test_a_repeated_seed_and_an_unfinished_run_are_left_out_and_named(tmp_path):
    (found,) = experiment_of(
        tmp_path, {"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 3, "steps": (0, 10)}
    )
    assert [run.folder.name for run in found.runs] == ["1", "2"]
    assert "has the same seed 1" in found.notes[0]
    assert "ends at step 10" in found.notes[1]


def test_runs_without_a_recipe_are_replicates_only_when_told(tmp_path):
    alone = experiment_of(tmp_path / "a", {"config": False}, {"config": False})
    assert len(alone) == 2
    assert len({each.label for each in alone}) == 2
    (together,) = experiment_of(
        tmp_path / "b", {"config": False}, {"config": False}, replicates=True
    )
    assert len(together.runs) == 2


def test_steps_that_differ_between_runs_are_interpolated(tmp_path):
    (found,) = experiment_of(tmp_path, {"seed": 1}, {"seed": 2, "steps": (0, 5, 40)})
    curve = found.curve(KEY)
    assert curve.steps.tolist() == [0, 5, 10, 20, 40]
    straight = [value(2, step, "cka", "rlvr_vs_base", 3) for step in curve.steps]
    assert curve.values[1] == pytest.approx(straight)


def test_undefined_and_absent_values_are_nan(tmp_path):
    (found,) = experiment_of(tmp_path, {"seed": 1}, {"seed": 2, "metrics": ("knn_overlap_10",)})
    assert np.isnan(found.curve(KEY).values[1]).all()
    assert found.curve(KEY._replace(metric="inverse_row_entropy")) is None
    assert found.curve(KEY._replace(metric="nothing")) is None


def sorted_pairs(experiment):
    findings = Findings(experiment, "similarity")
    return findings.pairs, findings.controls, findings.drifts


def test_controls_are_found_in_the_recipe_or_named(tmp_path):
    (found,) = experiment_of(tmp_path, {})
    assert sorted_pairs(found) == ([PAIR], CONTROLS, [Pair("rlvr", "initial")])
    (bare,) = experiment_of(
        tmp_path / "bare",
        {"config": False},
        displacement=["noise"],
        seed_controls=["base_seed2_vs_base"],
    )
    assert sorted_pairs(bare) == sorted_pairs(found)


def test_verdicts_weigh_differences_within_runs(tmp_path):
    (found,) = experiment_of(tmp_path, *({"seed": seed} for seed in (1, 2, 3)))
    cka, knn, residual = Findings(found, "similarity").verdicts(PAIR)
    # The control falls twice as fast, by far more than seeds differ; noise falls alike from 0.1
    # above, the same in every run.
    assert cka.relations == {SEEDS: "nearer", NOISE: "farther"}
    assert residual.relations == knn.relations == cka.relations
    assert cka.gain.high < 0, "it moved apart"
    assert residual.gain.high < 0
    assert cka.course == "less", "two seeds move apart by more"
    realigned, first, *others = answer_of(found)
    assert realigned.lead == "Realignment (training brings two models together) was not seen"
    assert realigned.rest == ": no pair came nearer by more than a change of seed explains."
    assert first.lead == "rlvr and base moved apart, though no further than two seeds of base do"
    assert first.rest == "; they end nearer than the seed control and farther apart than noise."
    said = dict(sentence[:2] for sentence in others)
    assert "base_seed2 is base with its own order of batches and adapters" in said["Seed control"]
    assert said["How sure"].startswith(": 3 seeds.")


@pytest.mark.parametrize(
    ("rate", "lead"),
    [
        (0.0, "moved further apart than two seeds of base do"),
        (-0.4, "moved together"),
        (-0.2, "did not measurably move"),
    ],
)
def test_the_answer_tells_together_from_apart(tmp_path, rate, lead):
    rates = {**STEADY, "rlvr_vs_base": rate}
    (found,) = experiment_of(tmp_path, *({"seed": s, "rates": rates} for s in (7, 8, 9)))
    realigned, sentence, *_ = answer_of(found)
    assert realigned.lead.endswith("was seen" if lead == "moved together" else "was not seen")
    assert sentence.lead == f"rlvr and base {lead}"
    before, after = (
        np.mean([value(s, step, "cka", "rlvr_vs_base", 3, rates) for s in (7, 8, 9)])
        for step in (0, 40)
    )
    assert sentence.numbers[0].startswith(f"linear CKA {before:.3f} → {after:.3f} (")


def test_realignment_is_told_by_pair_and_by_metric(tmp_path):
    moves = {("rlvr", "cka"): 0.2, ("rlvr", "knn_overlap_10"): -0.2, ("sft", "cka"): -0.2}
    for step in (0, 5):
        values = [
            Measurement(metric, 0.5 + move * step / 5, arm=arm, reference="base", layer="output")
            for (arm, metric), move in moves.items()
        ]
        append_record(tmp_path / "similarity.jsonl", Evaluation(step, values, "similarity"))
    (found,) = group_runs([read_run(tmp_path)])
    assert str(answer_of(found)[0]) == (
        "Realignment (training brings two models together) was seen: rlvr vs base (global "
        "geometry); not sft vs base."
    )


def test_a_control_that_never_differed_is_named_as_none(tmp_path):
    for step in (0, 5):
        values = [
            Measurement("cka", 1.0 if arm == "base_seed2" else 0.5, arm=arm, reference="base",
                        layer="output", identity=1.0)
            for arm in ("rlvr", "base_seed2")
        ]  # fmt: skip
        append_record(tmp_path / "similarity.jsonl", Evaluation(step, values, "similarity"))
    (found,) = group_runs([read_run(tmp_path)], seed_controls=["base_seed2_vs_base"])
    findings = Findings(found, "similarity")
    assert (findings.controls, findings.void) == ([], [SEEDS])
    said = "".join(map(str, answer_of(found)))
    assert "base_seed2 is no control of base: the two never differed" in said
    assert "No seed control stands beside rlvr vs base" in said


def test_what_seeds_do_not_separate_is_not_separated(tmp_path):
    (found,) = experiment_of(tmp_path, *({"seed": seed} for seed in (1, 6)))
    (verdict, *_) = Findings(found, "similarity").verdicts(PAIR)
    assert verdict.course == "same", "two seeds leave an interval of 12.7 standard errors"
    assert verdict.is_chance
    said = {sentence.lead: sentence.rest for sentence in answer_of(found)}
    assert "Not to be told from chance: rlvr vs base (linear CKA)." in said["How sure"]


def test_gap_and_recovery_are_taken_run_by_run(tmp_path):
    settings = ({"seed": seed, "steps": (0, 10, 30, 40), "rates": STEADY} for seed in (7, 8, 9))
    (found,) = experiment_of(tmp_path, *settings)
    verdicts = {v.key.metric: v for v in Findings(found, "similarity").verdicts(PAIR)}
    gaps = []
    for seed in (7, 8, 9):
        pair, control = (
            [value(seed, step, "cka", name, 3, STEADY) for step in (0, 40)]
            for name in ("rlvr_vs_base", "base_seed2_vs_base")
        )
        gaps.append(1 - (control[1] - pair[1]) / (control[0] - pair[0]))
    assert verdicts["cka"].closed[0].mean == pytest.approx(sum(gaps) / 3)
    assert verdicts["cka"].bracket == (10, 30)
    assert verdicts["cka"].half_life.mean == pytest.approx(20)
    assert verdicts["procrustes_residual"].gain.mean < 0, "a residual that grows is a loss"
    assert "inverse_row_entropy" not in verdicts, "it is undefined everywhere"


def test_one_run_tells_a_move_from_its_control_only(tmp_path):
    for rates, course in ((COMPARISONS, "within"), (STEADY, "beyond")):
        folder = tmp_path / course
        (found,) = experiment_of(folder, {"bands": True, "rates": rates})
        (verdict, *_) = Findings(found, "similarity").verdicts(PAIR)
        assert verdict.course == course
        low, high = (end[-1] for end in verdict.curve.band)
        assert low < verdict.after.mean < high
        said = {sentence.lead: sentence.rest for sentence in answer_of(found)}
        assert said["How sure"].startswith(": one seed, so no interval")


def test_spectra_have_ranks_and_row_entropies_have_percentiles(tmp_path):
    (found,) = experiment_of(tmp_path, {"details": True})
    drawn = {}
    for kind in ("singular_values", "row_entropy"):
        pictures = Pictures(Findings(found, "similarity"), "x", log_x=False)
        gallery = pictures.spectra([PAIR], kind, "x")
        assert [panel.title[-6:] for panel in gallery.panels] == ["step 0", "tep 10", "tep 40"]
        ax = Figure().subplots()
        gallery.panels[0].draw(ax)
        drawn[kind] = ax.lines[0].get_xdata().tolist(), ax.lines[0].get_ydata().tolist()
    assert drawn["singular_values"] == ([1, 2, 3], [1.0, 0.1, 0.01])
    assert drawn["row_entropy"] == ([0, 100], [0.1, 0.3])


def test_maps_of_three_steps_share_a_scale_and_their_change_has_its_own(tmp_path):
    (found,) = experiment_of(tmp_path, {"details": True})
    gallery = Pictures(Findings(found, "similarity"), "x", log_x=False).maps([PAIR], "cka")
    words = [panel.title.rpartition(", ")[2] for panel in gallery.panels]
    assert words == ["step 0", "step 10", "step 40", "change from step 0 to 40"]
    assert gallery.columns == 4, "side by side"
    scales = []
    for panel in gallery.panels:
        ax = Figure().subplots()
        panel.draw(ax)
        scales.append(ax.images[0].get_clim())
    assert scales[:3] == [(0.5, 1.0)] * 3
    low, high = scales[3]
    assert low == -high < 0


def test_a_control_looks_the_same_wherever_it_is_drawn(tmp_path):
    (found,) = experiment_of(tmp_path, {})
    arms = list(found.arms())
    by_pair = styles(found, [Pair(arm, "base") for arm in arms[1:]])
    by_arm = styles(found, [Pair(arm) for arm in arms])
    shown = {Pair(pair.arm): style for pair, style in by_pair.items()}
    assert by_arm == {Pair("base"): by_arm[Pair("base")]} | shown
    assert by_arm[Pair("base_seed2")] == ("#000000", "--")
    assert len(set(by_arm.values())) == len(arms)


def test_a_row_has_drifts_only_where_nothing_else_is_compared():
    def output(metric, arm, reference, layer="output"):
        return Measurement(metric, 0.5, arm=arm, reference=reference, layer=layer)

    drifts = [output("cka", arm, "initial") for arm in "ab"]
    pairs = [output("cka", "a", "b"), output("knn_overlap_10", "a", "b")]
    others = [output("cka_plain", "a", "b"), output("cka", "a", "b", "layer_1")]
    scores = [Measurement(metric, 0.5, arm="a") for metric in ("mrr@10", "ndcg@10")]
    assert headline([*others, *scores, *drifts, *pairs]) == [*pairs, scores[0]]
    assert headline([*others, *drifts]) == drifts


def test_a_model_alone_is_a_pair_with_its_start_and_drifts_beside_another_reference(tmp_path):
    def experiment(name, *references):
        folder = tmp_path / name
        for step in (0, 5):
            values = [Measurement("cka", 0.5, reference=r, layer="output") for r in references]
            append_record(folder / "similarity.jsonl", Evaluation(step, values, "similarity"))
        (found,) = group_runs([read_run(folder)])
        return found

    initial, trace = Pair("", "initial"), Pair("", "trace")
    assert sorted_pairs(experiment("alone", "initial")) == ([initial], [], [])
    assert sorted_pairs(experiment("two", "initial", "trace")) == ([trace], [], [initial])
    assert str(initial) == "live vs initial"


def test_names_and_labels_that_look_like_tags_are_names(tmp_path):
    values = [
        Measurement("cka", 0.25, arm="a_vs_b", reference="c", layer="output"),
        Measurement("cka", 0.75, arm="a", reference="b_vs_c", layer="output"),
        Measurement("cka", 0.5, arm="a", reference="b_vs_c", layer="output", label="at@home"),
    ]
    append_record(tmp_path / "similarity.jsonl", Evaluation(3, values, "similarity"))
    (found,) = group_runs([read_run(tmp_path)])
    pairs = [Pair("a_vs_b", "c"), Pair("a", "b_vs_c")]
    assert Findings(found, "similarity").pairs == pairs
    keys = [Key("similarity", "cka", pair, OUTPUT) for pair in pairs]
    assert [found.curve(key).last for key in keys] == [[0.25], [0.75]]
    assert not Findings(found, "similarity").is_retrieval


def test_files_of_version_0_1_and_of_today_say_the_same(tmp_path):
    old = read_run(write_run(tmp_path / "old", bands=True, details=True))
    new = tmp_path / "new"
    for name in ("similarity", "retrieval"):
        for evaluation in read_evaluations(tmp_path / "old" / f"{name}.jsonl"):
            append_record(new / f"{name}.jsonl", evaluation)
    for detail in old.details:
        append_record(new / "similarity.details.jsonl", detail)
    again = read_run(new)
    assert again.values.keys() == old.values.keys()
    for key, values in old.values.items():
        assert np.array_equal(again.values[key], values, equal_nan=True)
    columns = dict(zip(("step", *FIELDS), old.values[KEY][0], strict=True))
    assert columns["chance"] == 0.01
    assert columns["low"] < columns["value"] < columns["high"]
    assert [detail.kind for detail in again.details] == [detail.kind for detail in old.details]
