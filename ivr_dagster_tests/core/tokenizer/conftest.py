"""Small handmade BPEs, GPT-2 distilled exactly for text, and pre-tokens that are hard to reproduce."""

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens

# runs of brackets, digits and repeated letters, for which GPT-2 has competing merges
_PARTS = r"""
[ ] ( ) (( )) === = - -- ~ ' " "" . ... # * ** _ __ { } , \ / < > | & 0 1 000 2147 483647
p pp ppp aaa ee lll ss Befehl hexadecimal Schiff fahrt ung über 한 국 ö
"""
ODD_PARTS = tuple(_PARTS.split())


def _bpe_of(
    vocabulary: Sequence[str], merges: Sequence[tuple[str, str]], *, lacking: str = "", **model: bool
) -> Tokenizer:
    characters = sorted(CHARACTER_TO_BYTE.keys() - set(lacking))
    ids = {string: n for n, string in enumerate([*characters, *vocabulary])}
    tokenizer = Tokenizer(models.BPE(ids, list(merges), **model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="session")
def bpe_of() -> Callable[..., Tokenizer]:
    """`bpe_of(strings, merges, lacking="", ignore_merges=False)`: a BPE of all bytes but `lacking`, then `strings`."""
    return _bpe_of


@pytest.fixture(scope="session")
def odd_counts(gpt2: Tokenizer) -> PretokenCounts:
    """Several thousand pre-token types of GPT-2 composed of `ODD_PARTS`."""
    rng = random.Random(1)
    texts = ["".join(rng.choices(ODD_PARTS, k=rng.randint(1, 6))) for _ in range(40_000)]
    return count_pretokens([*texts, "=====(((", "[[]]", "((([[[0]]])))", "ppppppp"], gpt2)


@pytest.fixture(scope="session")
def gpt2_exact(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts) -> Distillation:
    """GPT-2's tokenizer distilled, with all exceptions for `topics`."""
    return distill(gpt2, gpt2_bpe, topics_counts, exceptions=1_000)


@pytest.fixture(scope="session")
def gpt2_exact_on_odd(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, odd_counts: PretokenCounts) -> Distillation:
    """GPT-2's tokenizer distilled, with all exceptions for the odd types: more than a thousand."""
    return distill(gpt2, gpt2_bpe, odd_counts, exceptions=1_000_000)
