"""Token counts by pre-token types, against encoding the texts."""

import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.lengths import count_tokens_per_text, pretokenize_texts, splits_like
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.remap import bpe_with

SIZE = 50_257
ODD = ["", "a<|endoftext|>b  c", "====\n\n\tx ----- y", "한국어 문서", " ", "<|endoftext|>"]


def with_phrase(gpt2: Tokenizer, phrase: str) -> Tokenizer:
    return bpe_with(gpt2, {phrase: SIZE}, [], pattern=pattern_with(gpt2, [phrase]))


@pytest.mark.parametrize("kind", ["distilled", "within", "across"])
def test_token_counts_equal_those_of_encoded_texts(
    kind: str, gpt2: Tokenizer, gpt2_distilled: Tokenizer, topics: list[str]
) -> None:
    texts = [*topics[:20], *ODD]
    tokenizer = {
        "distilled": lambda: gpt2_distilled,
        "within": lambda: bpe_with(gpt2, {"Ġtypeof": SIZE}, [("Ġtype", "of")]),
        "across": lambda: with_phrase(gpt2, "ĠofĠthe"),
    }[kind]()
    cut = pretokenize_texts(texts, gpt2)
    for each in (gpt2, tokenizer):
        assert cut.tokens(each).tolist() == count_tokens_per_text(each, texts).tolist()
    assert cut.counts.sum() == len(cut.codes) == cut.starts[-1]


def test_splits_like_requires_the_same_pretokens(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    assert splits_like(gpt2, gpt2)
    assert splits_like(gpt2, Tokenizer.from_str(distill(gpt2, gpt2_bpe).tokenizer.to_str()))
    assert not splits_like(gpt2, with_phrase(gpt2, "ĠofĠthe"))


def test_no_texts_have_no_tokens(gpt2: Tokenizer) -> None:
    cut = pretokenize_texts([], gpt2)
    assert cut.tokens(gpt2).tolist() == []
    assert cut.saving(gpt2) == 0.0


def test_saving_is_a_share_of_the_base_tokens(gpt2: Tokenizer) -> None:
    cut = pretokenize_texts(["Ab qxz", "qxz"], gpt2)
    tokenizer = bpe_with(gpt2, {"xz": SIZE, "qxz": SIZE + 1, "Ġqxz": SIZE + 2}, [("x", "z"), ("q", "xz"), ("Ġq", "xz")])
    before = sum(len(gpt2.encode(text).ids) for text in cut.texts)
    assert cut.base_tokens == before
    assert cut.saving(tokenizer) == 1 - 3 / before
    assert cut.saving(gpt2) == 0.0
