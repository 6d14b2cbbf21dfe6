import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrsa_lightning.mine import columns

EDGES = st.sampled_from([0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(columns, "ENTRIES_PER_BLOCK", 4)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(st.one_of(EDGES, st.integers(0, 2**64 - 1)), max_size=60))
def test_as_numpy_does_with_everything_in_memory(values, tmp_path):
    digests = np.array(values, dtype=np.uint64)
    ordered, order = columns.sort_column(digests, tmp_path)
    np.testing.assert_array_equal(order, np.argsort(digests, kind="stable"))
    np.testing.assert_array_equal(ordered, np.sort(digests))
    place, number = columns.number_column(digests, tmp_path)
    seen = {}
    assert number.tolist() == [seen.setdefault(value, len(seen)) for value in values]
    assert place.tolist() == [values.index(value) for value in seen]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 3, 4, 11])
def test_columns_hold_what_was_written(count, tmp_path):
    writer = columns.ColumnWriter(np.int64, tmp_path)
    for number in range(count):
        assert len(writer) == number
        writer.extend([number - 5])
    assert writer.column().tolist() == list(range(-5, count - 5))
    zeros = columns.new_column(count, np.uint64, tmp_path)
    assert zeros.tolist() == [0] * count
    zeros[:] = 2**64 - 1
    assert zeros.tolist() == [2**64 - 1] * count


def test_a_full_disk_is_an_error_and_no_crash():
    """Mapped pages that cannot be written would end the process."""

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(columns.tempfile, "TemporaryFile", lambda **_: Full())
        with pytest.raises(OSError, match="No space left"):
            columns.new_column(9, np.int64, None)
