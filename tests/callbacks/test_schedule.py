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
