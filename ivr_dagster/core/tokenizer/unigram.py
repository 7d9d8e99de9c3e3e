"""Assembly of a Unigram `tokenizers.Tokenizer` from scores and cuts; everything else is taken from the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import differing_types
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import cut_pattern, find_exceptions, run_cuts
from ivr_dagster.core.tokenizer.scores import scores_from_merges
from ivr_dagster.core.tokenizer.segments import Segments
from ivr_dagster.core.tokenizer.trie import character_class
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of
from ivr_dagster.core.tokens.counts import PretokenCounts


def unigram_tokenizer(
    base: Tokenizer,
    strings: Sequence[str],
    scores: np.ndarray,
    *,
    cuts: str | None = None,
) -> Tokenizer:
    """A Unigram tokenizer with these strings at these ids and everything around the model as in `base`.

    Args:
        base: the base tokenizer: its normalizer, pre-tokenizer, post-processor, decoder and added tokens are kept.
        strings: token of every id, V entries, added tokens included.
        scores: float64 [V].
        cuts: a pattern over byte-level strings; its matches become separate pre-tokens after ByteLevel.
    """
    added = base.get_added_tokens_decoder()
    size = len(strings)
    while size and size - 1 in added and base.model.token_to_id(strings[size - 1]) is None:
        size -= 1  # added tokens after the model's own vocabulary stay there
    tokenizer = Tokenizer(models.Unigram(list(zip(strings[:size], scores[:size].tolist(), strict=True))))
    if base.normalizer is not None:
        tokenizer.normalizer = base.normalizer
    parts: list[Any] = [base.pre_tokenizer]
    missing = sorted(set(CHARACTER_TO_BYTE) - set(strings))
    if missing:  # the base silently drops these bytes; Unigram would fail on them
        parts.append(pre_tokenizers.Split(Regex(character_class(missing)), "removed"))
    if cuts:
        parts.append(pre_tokenizers.Split(Regex(cuts), "isolated"))
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    tokenizer.decoder = base.decoder
    if base.post_processor is not None:
        tokenizer.post_processor = base.post_processor
    for _, token in sorted(added.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


@dataclass(frozen=True)
class Distillation:
    """The distilled tokenizer.

    Attributes:
        tokenizer: Unigram, with the base tokenizer's string → id map.
        raised: ids whose score had to be raised individually.
        exceptions: first piece by whole pre-token (byte-level strings), see :func:`find_exceptions`.
    """

    tokenizer: Tokenizer
    raised: tuple[int, ...]
    exceptions: Mapping[str, str] = field(default_factory=dict)


def distill(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts | None = None,
    *,
    exceptions: int = 0,
    base_ids: Segments | None = None,
) -> Distillation:
    """The base tokenizer as a Unigram.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        counts: pre-token counts to be exact on; types that scores cannot fix become exceptions.
        exceptions: maximum number of such types, the most frequent first; 0 for none.
        base_ids: the base's ids of the counted types, if known.
    """
    scores, raised = scores_from_merges(bpe)
    runs = run_cuts(base, bpe.model_strings)
    plain = unigram_tokenizer(base, bpe.strings, scores, cuts=cut_pattern(runs, {}))
    if counts is None or not exceptions:
        return Distillation(plain, raised)
    failing = [string_of(counts.types[n]) for n in differing_types(base, plain, counts, base_ids=base_ids)]
    found = find_exceptions(base, plain, runs, failing, exceptions)
    if not found:
        return Distillation(plain, raised)
    return Distillation(unigram_tokenizer(base, bpe.strings, scores, cuts=cut_pattern(runs, found)), raised, found)
