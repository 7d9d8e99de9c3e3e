"""Cuts after ByteLevel for what Unigram scores cannot express: runs of one character, and exceptions by type.

A cut at a boundary of the BPE segmentation does not change BPE: no merge crosses a final boundary, so both sides are
encoded independently. For a Unigram model, it removes every competing segmentation that crosses the boundary. This
module decides where to cut, as patterns over byte-level strings; each cut is verified type by type.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import accumulate, product

import polars as pl
import regex
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.trie import (
    alternatives,
    alternatives_by_first,
    character_class,
    escaped,
    trie_pattern,
)
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, text_of

SHORTEST_RUN = 4
# longer pre-tokens (base64, DNA) rarely occur twice, and the search for cuts is cubic in the length
LONGEST_EXCEPTION = 200
WHITE_SPACE = "ĠĊ"
# a run of one character with a head of at most three other characters
RUN_TOKEN = re.compile(rf"(?P<head>.{{0,3}}?)(?P<run>(?P<character>.)(?P=character){{{SHORTEST_RUN - 1},}})", re.DOTALL)
RUN_WITH_TAIL = re.compile(
    rf".{{0,3}}?(?P<run>(?P<character>.)(?P=character){{{SHORTEST_RUN - 1},}})(?P<tail>(?!(?P=character)).+)", re.DOTALL
)
_RUN = re.compile(rf"(.)\1{{{SHORTEST_RUN - 1},}}", re.DOTALL)
# character whose runs are cut → strings that precede (or follow) such runs
Affixes = Mapping[str, set[str]]
# piece → what may follow it → a pattern that must match after that
Pieces = defaultdict[str, dict[str, str]]


def cut_pattern(runs: str | None, exceptions: Mapping[str, str]) -> str | None:
    """One pattern for both kinds of cuts, for a `Split` after ByteLevel; None if there are none.

    A `Split` takes about as much time per pre-token as the model, so there is only one. Exceptions come first. Runs are
    searched for: a pattern that matches everything before a run would exceed Oniguruma's limit on pre-tokens of several
    hundred thousand characters. Every look-ahead is bounded, so that the time is linear in the length.
    """
    parts = [*([exception_pattern(exceptions, runs)] if exceptions else []), *([runs] if runs else [])]
    return alternatives(parts) if parts else None


def run_cuts(base: Tokenizer, strings: Iterable[str]) -> str | None:
    """A pattern that cuts runs of one non-alphanumeric character (`====`, `Ġ----`) where the base's BPE cuts them.

    BPE merges a run from the left into ever larger tokens and leaves the remainder at the end. A sum of scores does not
    depend on their order, so only a cut can distinguish `[12, 3]` from `[3, 12]`. The base tokenizer is queried for the
    first token of a run of each length after each head that occurs in its tokens (`ĊĠĠĠĠ`); a look-ahead at the
    remainder distinguishes the lengths. Shorter runs and runs of letters are not cut: most are parts of other tokens.

    Args:
        base: the base tokenizer; only its model is used.
        strings: the model's tokens.
    """
    heads, tails, longest = _runs_in(tuple(strings))
    by_first: defaultdict[str, list[str]] = defaultdict(list)
    for character in sorted(heads):
        for head in sorted(heads[character], key=lambda head: (-len(head), head)):
            cut = _first_cut(base, head, character, 2 * longest[character], tails[character])
            by_first[(head + character)[0]].append(cut)
    if not by_first:
        return None
    cuts_by_first = [(first, alternatives(cuts)) for first, cuts in by_first.items()]
    return f"{_one_of(by_first)}{alternatives_by_first(cuts_by_first)}"


@lru_cache(maxsize=4)
def _runs_in(strings: tuple[str, ...]) -> tuple[Affixes, Affixes, Counter[str]]:
    """Heads and tails of the runs in a vocabulary, and the longest run of each character."""
    heads = run_heads(strings)
    return heads, _tails(strings, heads), _longest_runs(strings, heads)


def _longest_runs(strings: Iterable[str], heads: Affixes) -> Counter[str]:
    longest: Counter[str] = Counter()
    for string in _with_runs(strings):
        found = parse_run(string, heads)
        if found:
            longest[found[1]] = max(longest[found[1]], found[2])
        elif with_tail := RUN_WITH_TAIL.fullmatch(string):
            character = with_tail["character"]
            longest[character] = max(longest[character], len(with_tail["run"]))
    return longest


def run_heads(strings: Iterable[str]) -> dict[str, set[str]]:
    """Character whose runs are cut → strings that precede such runs in tokens, including "" and whitespace."""
    known = set(strings)
    heads: defaultdict[str, set[str]] = defaultdict(lambda: {""})
    for string in _with_runs(known):
        found = RUN_TOKEN.fullmatch(string)
        if found and _is_symbol(found["character"]):
            heads[found["character"]].add(found["head"])
    for character, white in product(heads, WHITE_SPACE):
        if white != character and known & {white + character, white + 2 * character}:
            heads[character].add(white)
    return dict(heads)


def _with_runs(strings: Iterable[str]) -> list[str]:
    """The strings that contain a run of some byte-level character."""
    column = pl.Series(list(strings), dtype=pl.String)
    return column.filter(column.str.contains_any([SHORTEST_RUN * c for c in CHARACTER_TO_BYTE])).to_list()


def parse_run(string: str, heads: Affixes) -> tuple[str, str, int] | None:
    """(head, character, length) of a string that consists of one of these heads and a run, else None."""
    found = RUN_TOKEN.fullmatch(string)
    if found is None or found["head"] not in heads.get(found["character"], ()):
        return None
    return found["head"], found["character"], len(found["run"])


def count_runs(string: str) -> int:
    """Number of runs of one non-alphanumeric character in a byte-level string."""
    return sum(_is_symbol(run[1]) for run in _RUN.finditer(string))


def _tails(strings: Iterable[str], characters: Iterable[str]) -> dict[str, set[str]]:
    """Character → strings that follow its runs inside tokens (`+` in `------+`)."""
    tails: dict[str, set[str]] = {character: set() for character in characters}
    for string in _with_runs(strings):
        found = RUN_WITH_TAIL.fullmatch(string)
        if found and found["character"] in tails:
            tails[found["character"]].add(found["tail"])
    return tails


def _first_cut(base: Tokenizer, head: str, character: str, longest: int, tails: set[str]) -> str:
    """A pattern that matches the base tokenizer's first token of `head` and a run, for runs of any length.

    A look-ahead at the length of the remainder selects the token. Runs before one of `tails` are left to the scores,
    except for the start of runs longer than `longest`, which no tail influences.
    """
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    for length in range(SHORTEST_RUN, longest + 2):
        string = head + character * length
        lengths[base.model.tokenize(string)[0].value].append(length)
    run = escaped(character)
    tail = trie_pattern(dict.fromkeys(tails, "")) if tails else ""
    end = f"(?!{alternatives([run, tail] if tail else [run])})"
    cuts: list[str] = []
    for first in sorted(lengths, key=len, reverse=True):
        taken = max(0, len(first) - len(head))
        remainders: list[str] = []
        for low, high in _ranges(lengths[first]):
            if high <= longest:
                remainders.append(f"{_repeated(run, low - taken, high - taken)}{end}")
                continue
            if tail and low <= longest:
                remainders.append(f"{_repeated(run, low - taken, longest - taken)}{end}")
            # the same for all longer runs
            remainders.append(_repeated(run, (high if tail else low) - taken))
        cuts.append(f"{escaped(first)}(?={escaped(head[len(first) :])}(?:{'|'.join(remainders)}))")
    # most text has no run; one look-ahead rules it out
    return f"(?={escaped(head)}{run}{{{SHORTEST_RUN}}})(?:{'|'.join(cuts)})"


def _repeated(pattern: str, low: int, high: int | None = None) -> str:
    """A pattern of one character, `low` (to `high`) times."""
    if high is None or high == low:
        return f"{pattern}{{{low}}}" if low else ""
    return f"{pattern}{{{low},{high}}}"


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of consecutive ranges."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _is_symbol(character: str) -> bool:
    text = text_of(character)
    return text != "\ufffd" and not text.isalnum()


def segmenter(unigram: Tokenizer, runs: str | None) -> Callable[[str], list[str]]:
    """A function that segments a whole pre-token (byte-level) with the pattern `runs` and the model of `unigram`."""
    splitter = pre_tokenizers.Split(Regex(runs), "isolated") if runs else None

    def segment(string: str) -> list[str]:
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(string)] if splitter else [string]
        return [token.value for piece in pieces for token in unigram.model.tokenize(piece)]

    return segment


def find_exceptions(
    base: Tokenizer, unigram: Tokenizer, runs: str | None, strings: Iterable[str], max_strings: int
) -> dict[str, str]:
    """Find cuts that make `unigram` segment each of `strings` as `base` does, as few as possible per string.

    Args:
        base: the base tokenizer; only its model is used.
        unigram: the tokenizer to cut for; only its model is used, after the cuts of `runs`.
        runs: the pattern of :func:`run_cuts`, or None.
        strings: whole pre-tokens (byte-level) that the two segment differently, the most important first.
        max_strings: how many of them to consider.

    Returns:
        The first piece of each whole string. The rest is again a whole string, with its own entry if it needs one.
        Strings that cuts cannot fix have no entry.
    """
    segment, segment_by_model = segmenter(unigram, runs), segmenter(unigram, None)
    exceptions: dict[str, str] = {}
    impossible: set[str] = set()

    def segment_by_base(string: str) -> list[str]:
        return [token.value for token in base.model.tokenize(string)]

    def solve(string: str) -> dict[str, str]:
        """Entries for a string that needs at least one, empty if there is no solution."""
        if len(string) > LONGEST_EXCEPTION:
            return {}
        expected = segment_by_base(string)
        if "".join(expected) != string:
            return {}  # the base drops bytes that it has no token for
        ends = list(accumulate(map(len, expected)))[:-1]
        usable = [n for n, end in enumerate(ends, start=1) if segment_by_model(string[:end]) == expected[:n]]
        for n in reversed(usable):
            rest = string[ends[n - 1] :]
            if rest in exceptions or segment(rest) == expected[n:]:
                return {string: string[: ends[n - 1]]}
        for n in reversed(usable):  # the longest piece first, so that few cuts follow
            rest = string[ends[n - 1] :]
            # with ignore_merges, a token that is a whole pre-token may not occur inside another one
            is_same = rest not in impossible and segment_by_base(rest) == expected[n:]
            entries = solve(rest) if is_same else {}
            if entries:
                return {string: string[: ends[n - 1]]} | entries
        impossible.add(string)
        return {}

    for number, string in enumerate(strings):
        if number >= max_strings:
            break
        if string not in exceptions:
            exceptions |= solve(string)
    return exceptions


def exception_pattern(exceptions: Mapping[str, str], runs: str | None = None) -> str:
    r"""A pattern that matches every piece of each string, if the string is a whole pre-token or continues a run.

    The pieces of a string are its first piece, and the pieces of the rest if the rest has an entry as well. `\G`, the
    end of the previous match, would find later pieces, but JavaScript lacks it; a look-behind at all that precedes
    replaces it. Pieces are factored into a trie, and the remainders of each piece into another.

    Args:
        exceptions: the first piece of each string.
        runs: the pattern of :func:`run_cuts`. What it leaves of a run is cut as if it were a whole pre-token.
    """
    cut = regex.compile(runs) if runs else None

    def continues_runs(string: str) -> bool:
        # with two or fewer of its characters left, run cuts may have ended before
        run = string[0]
        return bool(cut and string.startswith((SHORTEST_RUN - 1) * run) and cut.match(SHORTEST_RUN * run + string))

    at_start: Pieces = defaultdict(dict)
    after_run: defaultdict[str, Pieces] = defaultdict(lambda: defaultdict(dict))
    later: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for string, piece in exceptions.items():
        rest = string[len(piece) :]
        at_start[piece][rest] = ""
        whole = [f"^{escaped(string)}"]
        if continues_runs(string):
            after_run[string[0]][piece][rest] = ""
            whole.append(f"{_repeated(escaped(string[0]), SHORTEST_RUN)}{escaped(string)}")
        while rest in exceptions:
            if continues_runs(rest) and string.removesuffix(rest).endswith(SHORTEST_RUN * rest[0]):
                break
            piece, rest = exceptions[rest], rest[len(exceptions[rest]) :]
            later[piece][rest] += whole
    inside = [
        f"(?={_repeated(run, SHORTEST_RUN - 1)})(?<={_repeated(run, SHORTEST_RUN)}){_pieces_pattern(pieces)}"
        for run, pieces in ((escaped(character), pieces) for character, pieces in after_run.items())
    ]
    if later:
        look_behinds = {p: {r: f"(?<={'|'.join(whole)})" for r, whole in rests.items()} for p, rests in later.items()}
        inside.append(_pieces_pattern(look_behinds))
    pattern = f"^{_pieces_pattern(at_start)}"
    if not inside:
        return pattern
    return alternatives([pattern, _one_of({*after_run, *(piece[0] for piece in later)}) + alternatives(inside)])


def _one_of(characters: Iterable[str]) -> str:
    """A look-ahead that rules out most positions at once."""
    return f"(?={character_class(sorted(characters))})"


def _pieces_pattern(pieces: Mapping[str, Mapping[str, str]]) -> str:
    """A pattern that matches a piece if it is followed by one of its rests, the rest's own pattern, and the end."""
    return trie_pattern({piece: f"(?={trie_pattern(rests)}$)" for piece, rests in pieces.items()})
