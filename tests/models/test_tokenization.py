import pickle
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hrsa_lightning.errors import DataError
from hrsa_lightning.models import EmbeddingTokenizer, TokenizedTexts
from tests.tiny import EOS_TOKEN, PAD_TOKEN, make_tokenizer

INSTRUCTION = "Given a description, find the function."
PREFIX = f"Instruct: {INSTRUCTION}\nQuery: "


def _pieces(tokenizer: EmbeddingTokenizer, text: Any, max_length: int = 200) -> tuple[str, str]:
    """What the tokens outside and inside the pool mask say."""
    tokens = tokenizer.encode([text], max_length)
    ids, mask = tokens.input_ids, tokens.pool_mask
    decode = tokenizer.tokenizer.decode
    return decode(ids[~mask]), decode(ids[mask])


@cache
def _uncut_tokenizer() -> EmbeddingTokenizer:
    return EmbeddingTokenizer(make_tokenizer(), characters_per_token=None)


def _texts(*lengths: int) -> TokenizedTexts:
    total = sum(lengths)
    return TokenizedTexts(
        torch.arange(10, 10 + total), torch.arange(total) % 3 != 0, torch.tensor(lengths)
    )


class TestTokenizedTexts:
    def test_pads_on_the_right(self) -> None:
        padded = _texts(2, 0, 3).pad(pad_token_id=7)
        assert padded["input_ids"].tolist() == [[10, 11, 7], [7, 7, 7], [12, 13, 14]]
        assert padded["attention_mask"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
        assert padded["pool_mask"].int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
        assert padded["input_ids"].dtype == padded["attention_mask"].dtype == torch.int64

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(st.integers(0, 6), min_size=1, max_size=8).flatmap(
            lambda lengths: st.tuples(
                st.just(lengths), st.lists(st.integers(0, len(lengths) - 1), max_size=8)
            )
        )
    )
    def test_selection_pads_to_its_own_length(self, case: tuple[list[int], list[int]]) -> None:
        lengths, indices = case
        texts = _texts(*lengths)
        selected = texts.select(indices)
        rows = [texts.input_ids.split(lengths)[index].tolist() for index in indices]
        assert [row.tolist() for row in selected.input_ids.split(selected.lengths.tolist())] == rows
        longest = max((len(row) for row in rows), default=0)
        padded = texts.pad(0, indices)
        assert padded["input_ids"].tolist() == [row + [0] * (longest - len(row)) for row in rows]
        for name, tensor in selected.pad(0).items():
            assert torch.equal(tensor, padded[name])

    def test_indices_may_be_a_tensor(self) -> None:
        texts = _texts(1, 2, 3)
        assert torch.equal(
            texts.pad(0, torch.tensor([2, 0]))["input_ids"], texts.pad(0, [2, 0])["input_ids"]
        )

    def test_cat_keeps_the_order(self) -> None:
        first, second = _texts(1, 2), _texts(3)
        both = TokenizedTexts.cat([first, second])
        assert len(both) == 3
        assert torch.equal(both.select([2]).input_ids, second.input_ids)
        assert torch.equal(both.select([0, 1]).pool_mask, first.pool_mask)

    def test_pickles(self) -> None:
        texts = _texts(1, 2)
        copy = pickle.loads(pickle.dumps(texts))
        assert torch.equal(copy.input_ids, texts.input_ids)
        assert torch.equal(copy.pool_mask, texts.pool_mask)
        assert torch.equal(copy.lengths, texts.lengths)

    def test_lightning_moves_it_and_lengths_stay(self) -> None:
        moved = move_data_to_device({"queries": _texts(1, 2)}, torch.device("meta"))["queries"]
        assert moved.device.type == moved.pool_mask.device.type == "meta"
        assert moved.lengths.device.type == "cpu"


class TestInstructionMask:
    @pytest.mark.parametrize(
        "content",
        [
            "Add two numbers.",
            "x",
            "  two spaces first",
            "\n\nnew lines first",
            "naïve café – déjà vu",
            "数を足す",
            "🙂 is four bytes",
            "2020 was a leap year",
            "Query: Query: again",
            "Instruct: " + INSTRUCTION,
        ],
    )
    def test_offsets_split_between_instruction_and_text(
        self, tokenizer: EmbeddingTokenizer, content: str
    ) -> None:
        left_out, pooled = _pieces(tokenizer, (INSTRUCTION, content))
        # The template's last space goes with the text, whether it is a token of its own or not.
        assert (left_out, pooled) == (PREFIX[:-1], " " + content)

    def test_authors_leave_out_the_first_token_of_the_text_too(self) -> None:
        authors = EmbeddingTokenizer(make_tokenizer(), instruction_mask="authors")
        # "Query:" and a lone space alone, "Query:" and " Add" inside the text.
        assert _pieces(authors, (INSTRUCTION, "Add two")) == (PREFIX + "Add", " two")
        offsets = EmbeddingTokenizer(make_tokenizer())
        assert _pieces(offsets, (INSTRUCTION, "Add two")) == (PREFIX[:-1], " Add two")

    def test_both_agree_where_the_borders_agree(self) -> None:
        template = "{instruction}\n"
        for mask in ("offsets", "authors"):
            tokenizer = EmbeddingTokenizer(make_tokenizer(), template, instruction_mask=mask)
            assert _pieces(tokenizer, ("Find", "Add two")) == ("Find\n", "Add two")

    def test_rows_of_a_batch_have_their_own_masks(self, tokenizer: EmbeddingTokenizer) -> None:
        texts = ["plain", (INSTRUCTION, "text"), ("short", "another text"), ["", "no instruction"]]
        together = tokenizer.encode(texts, 64)
        for index, text in enumerate(texts):
            alone, row = tokenizer.encode([text], 64), together.select([index])
            assert torch.equal(alone.input_ids, row.input_ids)
            assert torch.equal(alone.pool_mask, row.pool_mask)
        assert together.select([0, 3]).pool_mask.all()

    @pytest.mark.parametrize("mask", ["offsets", "authors"])
    def test_instruction_that_fills_the_row_leaves_nothing(self, mask: Any) -> None:
        tokenizer = EmbeddingTokenizer(make_tokenizer(), instruction_mask=mask)
        tokens = tokenizer.encode([(INSTRUCTION, "text")], 5)
        assert tokens.lengths.tolist() == [5]
        assert not tokens.pool_mask.any()

    def test_pair_without_text_leaves_nothing(self, tokenizer: EmbeddingTokenizer) -> None:
        assert not tokenizer.encode([(INSTRUCTION, "")], 64).pool_mask.any()

    @pytest.mark.parametrize("mask", ["offsets", "authors"])
    def test_tokens_around_the_text(self, mask: Any) -> None:
        """A begin token belongs to the instruction of a pair, an end token to its text."""
        words = {PAD_TOKEN: 0, EOS_TOKEN: 1, "<s>": 2, "find": 3, ":": 4, "add": 5, "two": 6}
        backend = Tokenizer(models.WordLevel(words, unk_token=PAD_TOKEN))
        # Spaces are in no token, so that the first character of " add" has none.
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.post_processor = processors.TemplateProcessing(
            single=f"<s> $A {EOS_TOKEN}", special_tokens=[("<s>", 2), (EOS_TOKEN, 1)]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN
        )
        tokenizer = EmbeddingTokenizer(fast, "{instruction}:", instruction_mask=mask, add_eos=True)
        tokens = tokenizer.encode([("find", " add two"), "add two"], 10)
        assert tokens.select([0]).input_ids.tolist() == [2, 3, 4, 5, 6, 1]
        assert tokens.select([0]).pool_mask.tolist() == [False] * 3 + [True] * 3
        assert tokens.select([1]).input_ids.tolist() == [2, 5, 6, 1]
        assert tokens.select([1]).pool_mask.all()

    @settings(deadline=None, max_examples=30)
    @given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
    def test_offsets_hold_for_any_text(self, instruction: str, content: str) -> None:
        tokenizer = _uncut_tokenizer()
        prefix = f"Instruct: {instruction}\nQuery: "
        encoding = tokenizer.tokenizer(prefix + content, return_offsets_mapping=True)
        tokens = tokenizer.encode([(instruction, content)], 1000)
        assert tokens.input_ids.tolist() == encoding["input_ids"]
        expected = [end >= len(prefix) for _, end in encoding["offset_mapping"]]
        assert tokens.pool_mask.tolist() == expected


class TestLengths:
    def test_truncates_with_the_instruction(self, tokenizer: EmbeddingTokenizer) -> None:
        full = tokenizer.encode([(INSTRUCTION, "Add two numbers.")], 200)
        cut = tokenizer.encode([(INSTRUCTION, "Add two numbers.")], len(full.input_ids) - 2)
        assert torch.equal(cut.input_ids, full.input_ids[:-2])
        assert torch.equal(cut.pool_mask, full.pool_mask[:-2])

    def test_eos_is_kept_when_truncated_and_never_doubled(self) -> None:
        tokenizer = EmbeddingTokenizer(make_tokenizer(), add_eos=True)
        eos = tokenizer.tokenizer.eos_token_id
        tokens = tokenizer.encode(["ab", "a" * 50, "ab" + EOS_TOKEN], 8)
        rows = [row.tolist() for row in tokens.input_ids.split(tokens.lengths.tolist())]
        whole, cut, given_one = rows
        assert whole == given_one
        assert len(cut) == 8
        assert [row.count(eos) for row in rows] == [1, 1, 1]
        assert all(row[-1] == eos for row in rows)

    def test_text_is_cut_before_it_is_tokenized(self) -> None:
        text = "return value " * 50
        cut = EmbeddingTokenizer(make_tokenizer(), characters_per_token=3)
        assert torch.equal(cut.encode([text], 10).input_ids, cut.encode([text[:30]], 99).input_ids)
        uncut = EmbeddingTokenizer(make_tokenizer(), characters_per_token=None)
        assert len(uncut.encode([text], 1000).input_ids) > len(cut.encode([text], 10).input_ids)

    def test_empty_text_has_one_token(self, tokenizer: EmbeddingTokenizer) -> None:
        tokens = tokenizer.encode(["", "a"], 8)
        assert tokens.lengths.tolist() == [1, 1]
        assert tokens.input_ids[0] == tokenizer.tokenizer.eos_token_id
        assert tokens.pool_mask.all()

    def test_no_texts(self, tokenizer: EmbeddingTokenizer) -> None:
        tokens = tokenizer.encode([], 8)
        assert len(tokens) == 0
        assert tokens.pad(0)["input_ids"].shape == (0, 0)


def test_tokenizers_compare_by_content() -> None:
    first, second = EmbeddingTokenizer(make_tokenizer()), EmbeddingTokenizer(make_tokenizer())
    first.encode(["leaves truncation switched on"], 3)
    assert first == second
    assert hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first
    assert first != EmbeddingTokenizer(make_tokenizer(), instruction_mask="authors")
    assert first != EmbeddingTokenizer(make_tokenizer(), template="{instruction}: ")
    assert first != "a tokenizer"
    other = make_tokenizer()
    other.add_tokens(["another"])
    assert first != EmbeddingTokenizer(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "no place"}, r"`template` to hold \{instruction\}, got 'no place'"),
        ({"instruction_mask": "count"}, r"`instruction_mask` 'offsets' or 'authors', got 'count'"),
        ({"characters_per_token": 0}, r"`characters_per_token` of at least 1, got 0"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingTokenizer(make_tokenizer(), **options)


def test_eos_needs_an_eos_token() -> None:
    fast = make_tokenizer()
    fast.eos_token = None
    with pytest.raises(ValueError, match=r"`add_eos` needs a tokenizer with an eos token"):
        EmbeddingTokenizer(fast, add_eos=True)
    assert EmbeddingTokenizer(fast).encode([""], 4).input_ids.tolist() == [fast.pad_token_id]


def test_max_length_leaves_room_for_a_token(tokenizer: EmbeddingTokenizer) -> None:
    with pytest.raises(ValueError, match=r"`max_length` of at least 1, got 0"):
        tokenizer.encode(["a"], 0)
    with pytest.raises(ValueError, match=r"`max_length` of at least 2, got 1"):
        EmbeddingTokenizer(make_tokenizer(), add_eos=True).encode(["a"], 1)


@pytest.mark.parametrize("text", [("a", "b", "c"), ("a", 1), ["only one"]])
def test_neither_text_nor_pair(tokenizer: EmbeddingTokenizer, text: Any) -> None:
    with pytest.raises(DataError, match=r"Expected a text or a pair \(instruction, text\), got"):
        tokenizer.encode([text], 8)
