from itertools import pairwise

import pytest

from hrsa_lightning.callbacks import schedule as module
from hrsa_lightning.callbacks.schedule import Budget, Schedule
from hrsa_lightning.errors import ConfigError


def due_steps(schedule, until, stride=1):
    found = []
    schedule.advance(0)
    for step in range(stride, until + 1, stride):
        if schedule.is_due(step):
            found.append(step)
            schedule.advance(step)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_train_steps": 7}, [7, 14, 21, 28]),
        ({"log_spaced": True}, [1, 2, 4, 8, 16]),
        ({"log_spaced": 2}, [1, 2, 3, 5, 8, 12, 17, 25]),
        ({"log_spaced": True, "every_n_train_steps": 6}, [1, 2, 4, 6, 12, 18, 24, 30]),
        ({"every_n_epochs": 1}, []),
        ({}, []),
    ],
)
def test_rhythms(options, expected):
    assert due_steps(Schedule(**options), 30) == expected


def test_null_is_no_rhythm():
    assert not Schedule(log_spaced=None).is_due(8)
    assert Schedule(5, log_spaced=None).is_due(5)


def test_none_is_missed_where_steps_come_in_pairs():
    assert due_steps(Schedule(every_n_train_steps=5), 20, stride=2) == [6, 10, 16, 20]


def test_epochs_count_from_one():
    schedule = Schedule(every_n_epochs=2)
    assert [schedule.is_due_at_epoch_end(epoch) for epoch in range(4)] == [False, True, False, True]


def test_what_is_put_off_is_due_later():
    schedule = Schedule(every_n_train_steps=5)
    schedule.put_off(12)
    assert [schedule.is_due(step) for step in (10, 11, 12)] == [False, False, True]


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 0},
        {"every_n_epochs": -1},
        {"log_spaced": -2},
        {"max_overhead": 1.5},
        {"max_overhead": 0},
    ],
)
def test_mistakes_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Schedule(**options)


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock.perf_counter)
    return clock


def spend(budget, clock, seconds):
    with budget.evaluating():
        clock.now += seconds


def train(budget, clock, steps, seconds):
    budget.step += steps
    clock.now += seconds


def test_room_is_kept_for_the_last_evaluation(clock):
    budget = Budget(0.02)
    budget.start(0)
    spend(budget, clock, 1.0)
    assert budget.steps_to_wait() == 1, "nothing is known of a step yet"
    train(budget, clock, 1000, 100.0)
    # 1 s spent and 2 s to come are 2 % of 150 s, of which 100 s have passed.
    assert budget.steps_to_wait() == 500
    train(budget, clock, 500, 50.0)
    assert budget.steps_to_wait() == 0


def test_without_a_share_there_is_no_bound(clock):
    budget = Budget()
    budget.start(0)
    spend(budget, clock, 9.0)
    assert budget.steps_to_wait() == 0
    assert budget.affords(1e9)


def test_preparing_counts_and_an_evaluation_in_progress_too(clock):
    budget = Budget(0.1)
    budget.start(0, spent=1.0)
    train(budget, clock, 1, 20.0)
    assert budget.affords(1.0)
    with budget.spending():
        clock.now += 0.5
        assert budget.train_seconds == pytest.approx(20.0)
        assert budget.affords(0.5)
        assert not budget.affords(0.6)
    assert budget.spent == pytest.approx(1.5)


def test_a_failed_evaluation_is_paid_for(clock):
    budget = Budget(0.1)
    budget.start(0)

    def fail():
        with budget.evaluating():
            clock.now += 2.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert budget.spent == pytest.approx(2.0)


def test_small_expenses_are_added_up_and_foretell_nothing(clock):
    budget = Budget(0.1)
    budget.start(0)
    spend(budget, clock, 1.0)
    for _ in range(10):
        train(budget, clock, 1, 5.0)
        with budget.spending():
            clock.now += 0.1
    assert budget.spent == pytest.approx(2.0)
    assert budget.train_seconds == pytest.approx(50.0)
    assert budget.affords(2.9)
    assert not budget.affords(3.1)
    assert budget.steps_to_wait() == 0, "two evaluations of 1 s, as the last one, are affordable"
    spend(budget, clock, 1.1)
    assert budget.steps_to_wait() == 1


def test_a_restart_goes_on_with_the_account(clock):
    first = Budget(0.1)
    first.start(0)
    spend(first, clock, 1.0)
    train(first, clock, 10, 5.0)
    state = first.state()
    clock.now += 1000.0
    second = Budget(0.1)
    second.start(10, state, spent=0.5)
    assert second.spent == pytest.approx(1.5)
    assert second.train_seconds == pytest.approx(5.0)
    train(second, clock, 10, 5.0)
    # 1.5 s and two evaluations of 1 s are a tenth of 35 s; 10 have passed in 20 steps.
    assert second.steps_to_wait() == 50


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("first", [0.5, 4.0], ids=["even", "costly first"])
def test_a_simulated_run_stays_within_its_share_and_uses_it(clock, share, first):
    budget, cost, seconds, steps = Budget(share), 0.5, 0.1, 8000
    budget.start(0)
    spend(budget, clock, first)
    made, due = [0], 1
    for step in range(1, steps + 1):
        train(budget, clock, 1, seconds)
        if step >= due:
            if wait := budget.steps_to_wait():
                due = step + wait
                continue
            spend(budget, clock, cost)
            made.append(step)
            due = step + 1
    spend(budget, clock, cost)
    assert budget.spent <= share * steps * seconds + 1e-9
    assert budget.spent >= share * steps * seconds - 2 * cost
    gaps = [after - before for before, after in pairwise(made[1:])]
    assert max(gaps) <= 2 * cost / share / seconds + 2, "spread over the run"
