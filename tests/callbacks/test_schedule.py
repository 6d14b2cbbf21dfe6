import pytest

from hrsa_lightning.callbacks.schedule import Schedule
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


def test_none_is_missed_where_steps_come_in_pairs():
    assert due_steps(Schedule(every_n_train_steps=5), 20, stride=2) == [6, 10, 16, 20]


def test_epochs_count_from_one():
    schedule = Schedule(every_n_epochs=2)
    assert [schedule.is_due_at_epoch_end(epoch) for epoch in range(4)] == [False, True, False, True]


def test_the_budget_keeps_room_for_the_last_evaluation():
    schedule = Schedule(every_n_train_steps=1, max_overhead=0.02)
    # 1 s spent and 2 s to come are 2 % of 150 s, of which 100 s have passed in 1000 steps.
    assert schedule.steps_to_wait(spent=1, cost=1, train_seconds=100, train_steps=1000) == 500
    assert schedule.steps_to_wait(spent=1, cost=1, train_seconds=150, train_steps=1500) == 0
    assert schedule.steps_to_wait(spent=0, cost=1, train_seconds=0, train_steps=0) == 1
    assert Schedule().steps_to_wait(spent=9, cost=9, train_seconds=0, train_steps=0) == 0


@pytest.mark.parametrize("overhead", [0.02, 0.3])
def test_a_simulated_run_stays_within_its_budget(overhead):
    schedule = Schedule(every_n_train_steps=1, max_overhead=overhead)
    step_seconds, cost, spent, evaluations = 0.1, 0.5, 0.5, 1
    schedule.advance(0)
    for step in range(1, 2001):
        if not schedule.is_due(step):
            continue
        if wait := schedule.steps_to_wait(spent, cost, step * step_seconds, step):
            schedule.next_step = step + wait
            continue
        spent, evaluations = spent + cost, evaluations + 1
        schedule.advance(step)
    assert spent + cost <= overhead * 2000 * step_seconds + 1e-9
    assert evaluations >= overhead * 2000 * step_seconds / cost - 2, "and the budget is used"


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
