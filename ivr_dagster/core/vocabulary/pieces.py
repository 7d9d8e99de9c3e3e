"""The strings inside which a new token may lie: pre-token types, cut where the distilled tokenizer cuts them."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import regex
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import SHORTEST_RUN, parse_run, run_cuts, run_heads
from ivr_dagster.core.tokenizer.trie import escaped
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, strings_of

# characters; longer pieces (base64, DNA) are split, no new token is that long
LONGEST_PIECE = 10_000


def pieces_of_types(
    base: Tokenizer, bpe: ByteLevelBPE, types: Sequence[str], counts: np.ndarray, new: Collection[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """The result of :func:`cut_pieces`, without bytes that the base has no token for.

    Runs that are `new` tokens are not cut. If no new tokens are known yet (None), no type that is a run is cut.
    """
    missing = [character for character in CHARACTER_TO_BYTE if character not in bpe.ids]
    cuts = [run_cuts(base, bpe.model_strings, new or ()), *map(escaped, missing)]
    heads = run_heads(bpe.model_strings)
    marks = [*(SHORTEST_RUN * character for character in heads), *missing]
    whole = {} if new is not None else heads
    pieces, weights = cut_pieces(types, counts, "|".join(filter(None, cuts)) or None, whole, marks=marks)
    present = [n for n, piece in enumerate(pieces) if len(piece) > 1 or piece in bpe.ids or piece in (new or ())]
    return [pieces[n] for n in present], weights[present]


def cut_pieces(
    types: Sequence[str],
    counts: np.ndarray,
    cuts: str | None,
    heads: Mapping[str, set[str]],
    *,
    marks: Sequence[str] = ("",),
) -> tuple[list[str], np.ndarray]:
    """Byte-level strings inside which a new token may lie, with their counts (int64), by falling count.

    A candidate across a cut of the distilled tokenizer could never be produced. Types that are runs (with one of these
    `heads`) stay whole, since a run that becomes a token is not cut. Types without any of `marks` need no cut. Pieces
    longer than `LONGEST_PIECE` are split.
    """
    strings = pl.Series(strings_of(types), dtype=pl.String)
    pattern = regex.compile(f"({cuts})") if cuts else None
    marked = strings.str.len_chars() > LONGEST_PIECE
    if pattern:
        marked |= strings.str.contains_any(list(marks))

    def cut(string: str) -> Iterator[str]:
        pieces = pattern.split(string) if pattern and not parse_run(string, heads) else [string]
        return (
            piece[start : start + LONGEST_PIECE] for piece in pieces for start in range(0, len(piece), LONGEST_PIECE)
        )

    weights = pl.Series(counts, dtype=pl.Int64)
    whole = pl.DataFrame({"piece": strings, "count": weights}).filter(~marked)
    pieces = pl.Series([list(cut(string)) for string in strings.filter(marked)], dtype=pl.List(pl.String))
    parts = pl.DataFrame({"piece": pieces, "count": weights.filter(marked)}).explode("piece", empty_as_null=False)
    found = pl.concat([whole, parts]).group_by("piece").agg(pl.col("count").sum())
    found = found.sort(["count", "piece"], descending=[True, False])
    return found["piece"].to_list(), found["count"].to_numpy()
