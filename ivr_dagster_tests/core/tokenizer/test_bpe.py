"""Reading a BPE tokenizer: the result is sufficient to encode as the library does."""

import json
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe, strings_by_id
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.errors import InputError


def encode_by_ranks(bpe: ByteLevelBPE, string: str) -> list[int]:
    """Sennrich et al. (2016): apply the merge with the lowest rank, leftmost first, until none applies."""
    rank_of = {(left, right): (rank, merged) for rank, (left, right, merged) in reversed(list(enumerate(bpe.merges)))}
    ids = [bpe.ids[character] for character in string]
    while True:
        ranked = [(rank_of[pair][0], n) for n, pair in enumerate(pairwise(ids)) if pair in rank_of]
        if not ranked:
            return ids
        _, n = min(ranked)
        ids[n : n + 2] = [rank_of[ids[n], ids[n + 1]][1]]


def test_merges_encode_as_the_library_does(tiny_bpe: Tokenizer, topics_counts: PretokenCounts) -> None:
    bpe = read_bpe(tiny_bpe)
    for text in topics_counts.types[:300]:
        assert encode_by_ranks(bpe, string_of(text)) == tiny_bpe.encode(text).ids


def test_strings_and_ids_correspond(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    assert gpt2_bpe.size == gpt2.get_vocab_size() == 50_257
    assert list(gpt2_bpe.strings) == [gpt2.id_to_token(i) for i in range(gpt2_bpe.size)] == strings_by_id(gpt2)
    assert gpt2_bpe.ids == gpt2.get_vocab()


def test_merges_are_ordered_by_rank_and_concatenate(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    merges = json.loads(gpt2.to_str())["model"]["merges"]
    strings = gpt2_bpe.strings
    assert len(gpt2_bpe.merges) == len(merges) == 50_000
    for (left, right, merged), merge in zip(gpt2_bpe.merges, merges, strict=True):
        assert [strings[left], strings[right]] == list(merge)
        assert strings[merged] == strings[left] + strings[right]


def test_every_gpt2_token_is_a_byte_an_added_token_or_a_merge(gpt2_bpe: ByteLevelBPE) -> None:
    assert gpt2_bpe.added_ids == {50_256}
    for token_id, string in enumerate(gpt2_bpe.strings):
        if string in CHARACTER_TO_BYTE or token_id == 50_256:
            assert gpt2_bpe.ranks[token_id] == -1
            assert token_id not in gpt2_bpe.merge_of
        else:
            rank, left, right = gpt2_bpe.merge_of[token_id]
            assert gpt2_bpe.merges[rank] == (left, right, token_id)
            assert gpt2_bpe.ranks[token_id] == rank


def tokenizer_of(vocabulary: list[str], merges: list[Any], **model: Any) -> Tokenizer:
    ids = {string: n for n, string in enumerate(vocabulary)}
    return Tokenizer(models.BPE(ids, merges, **model))


def test_first_merge_of_a_token_counts_and_tokens_without_merges_rank_last() -> None:
    bpe = read_bpe(
        tokenizer_of(["a", "b", "ab", "ba", "aba", "bb"], [("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba")])
    )
    assert bpe.merge_of[4] == (2, 2, 0)
    assert bpe.ranks.tolist() == [-1, -1, 0, 1, 2, 4]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (models.Unigram([("a", 0.0)]), "found a Unigram model"),
        (models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), "found a WordPiece model"),
        (models.BPE({"a": 0}, [], byte_fallback=True), "byte fallback"),
    ],
)
def test_other_models_are_rejected(model: models.Model, found: str) -> None:
    with pytest.raises(InputError, match=found):
        read_bpe(Tokenizer(model))


def test_error_names_the_missing_id() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 5}, []))
    with pytest.raises(InputError, match="has 3 tokens, but no token with id 2"):
        read_bpe(tokenizer)
    tokenizer.add_tokens([AddedToken("<x>")])
    with pytest.raises(InputError, match="no token with id 2"):
        strings_by_id(tokenizer)
