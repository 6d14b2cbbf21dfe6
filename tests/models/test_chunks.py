import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_lightning.models import length_sorted_chunks


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 200))
def test_chunks_hold_every_text_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    chunks = length_sorted_chunks(torch.tensor(lengths, dtype=torch.long), max_tokens)
    order = [int(index) for chunk in chunks for index in chunk]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for chunk in chunks:
        longest = max(lengths[int(index)] for index in chunk)
        assert len(chunk) * longest <= max_tokens or len(chunk) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_no_text_would_fit_into_the_chunk_before(lengths: list[int], max_tokens: int) -> None:
    chunks = length_sorted_chunks(torch.tensor(lengths), max_tokens)
    for chunk in chunks[:-1]:
        assert (len(chunk) + 1) * lengths[int(chunk[0])] > max_tokens


def test_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_tokens` to be at least 1, got 0"):
        length_sorted_chunks(torch.tensor([1]), 0)
