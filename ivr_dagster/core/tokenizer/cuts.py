"""Cuts after ByteLevel that settle what no sum of scores can: runs of one character, and exceptions by type.

A cut where BPE itself has a boundary changes nothing for BPE: no merge crosses a boundary that is left at the end, so
the two sides are encoded as if each stood alone. For Unigram it takes every rival away that reaches over the boundary.
What belongs here: where to cut, as patterns over byte-level strings; that it helps is verified type by type.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import accumulate, product

import polars as pl
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.trie import choice, choice_by_first, escaped, trie_pattern
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, text_of

SHORTEST_RUN = 4
# what is longer (base64, DNA) hardly comes twice, and the search for cuts grows with the cube of the length
LONGEST_EXCEPTION = 200
WHITE_SPACE = "ĠĊ"
# a run of one character, with at most three others before it
RUN_TOKEN = re.compile(rf"(?P<head>.{{0,3}}?)(?P<run>(?P<character>.)(?P=character){{{SHORTEST_RUN - 1},}})", re.DOTALL)
RUN_WITH_TAIL = re.compile(
    rf".{{0,3}}?(?P<character>.)(?P=character){{{SHORTEST_RUN - 1},}}(?P<tail>(?!(?P=character)).+)", re.DOTALL
)


def cut_pattern(runs: str | None, exceptions: Mapping[str, str]) -> str | None:
    """One pattern for both kinds of cuts, to become a `Split` after ByteLevel; None where there are none.

    A `Split` costs a pre-token about as much as its model does, whether it cuts or not, so there is one. Exceptions go
    first, where a piece begins. Runs are searched for: one match that took all that comes before a run would exceed
    Oniguruma's limit on a pre-token of some hundred thousand characters.
    """
    parts = [*([exception_pattern(exceptions)] if exceptions else []), *([runs] if runs else [])]
    return choice(parts) if parts else None


def run_cuts(base: Tokenizer, strings: Iterable[str], new: Iterable[str] = ()) -> str | None:
    """A pattern that cuts runs of one non-alphanumeric character (`====`, `Ġ----`) where the base's BPE cuts them.

    BPE joins a run from the left into ever larger tokens and leaves the rest at the end. For a sum the order of its
    terms is all one, so only a cut can tell `[12, 3]` from `[3, 12]`. The base is asked what it takes first off a run
    of each length, with what its tokens have before runs (`ĊĠĠĠĠ`); looking ahead at the rest tells the lengths apart.
    Runs shorter than four and runs of letters are too often part of something else.

    Args:
        base: the base tokenizer; its model is asked.
        strings: its model's tokens.
        new: new tokens; a run that is one of them stays whole.
    """
    heads, tails, longest_known = _runs_in(tuple(strings))
    whole, longest = set(new), Counter(longest_known)
    for character, length in _longest_runs(whole, heads).items():
        longest[character] = max(longest[character], length)
    by_first: defaultdict[str, list[str]] = defaultdict(list)
    for character in sorted(heads):
        for head in sorted(heads[character], key=lambda head: (-len(head), head)):
            cut = _first_cut(base, head, character, 2 * longest[character], whole, tails[character])
            by_first[(head + character)[0]].append(cut)
    return choice_by_first([(first, choice(cuts)) for first, cuts in by_first.items()]) if by_first else None


@lru_cache(maxsize=4)
def _runs_in(strings: tuple[str, ...]) -> tuple[dict[str, set[str]], dict[str, set[str]], Counter[str]]:
    """Of the runs in a vocabulary what comes before them, what after them, and the longest of each character."""
    heads = run_heads(strings)
    return heads, _tails(strings, heads), _longest_runs(strings, heads)


def _longest_runs(strings: Iterable[str], heads: Mapping[str, set[str]]) -> Counter[str]:
    """By character the length of the longest of `strings` that is a run behind one of these heads."""
    longest: Counter[str] = Counter()
    for string in _with_runs(strings):
        found = whole_run(string, heads)
        if found:
            longest[found[1]] = max(longest[found[1]], found[2])
    return longest


def run_heads(strings: Iterable[str]) -> dict[str, set[str]]:
    """By character whose runs are cut what tokens have before such runs, nothing and white space included."""
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
    """Those that hold a run of some character of the byte-level alphabet."""
    column = pl.Series(list(strings), dtype=pl.String)
    return column.filter(column.str.contains_any([SHORTEST_RUN * c for c in CHARACTER_TO_BYTE])).to_list()


def whole_run(string: str, heads: Mapping[str, set[str]]) -> tuple[str, str, int] | None:
    """Head, character and length of a string that is one of these heads and a run, else None."""
    found = RUN_TOKEN.fullmatch(string)
    if found is None or found["head"] not in heads.get(found["character"], ()):
        return None
    return found["head"], found["character"], len(found["run"])


def _tails(strings: Iterable[str], characters: Iterable[str]) -> dict[str, set[str]]:
    """By character of a run what follows runs of it inside of tokens (`+` in `------+`)."""
    tails: dict[str, set[str]] = {character: set() for character in characters}
    for string in _with_runs(strings):
        found = RUN_WITH_TAIL.fullmatch(string)
        if found and found["character"] in tails:
            tails[found["character"]].add(found["tail"])
    return tails


def _first_cut(base: Tokenizer, head: str, character: str, longest: int, whole: set[str], tails: set[str]) -> str:
    """A pattern for what the base takes first off `head` and a run of any length, told by the length of the rest.

    What it takes off a run that goes on in one of `tails` is another matter, and left to the scores.
    """
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    for length in range(SHORTEST_RUN, longest + 2):
        string = head + character * length
        lengths[string if string in whole else base.model.tokenize(string)[0].value].append(length)
    run = escaped(character)
    goes_on = trie_pattern(dict.fromkeys(tails, "")) if tails else ""
    end = f"(?!{choice([run, goes_on] if goes_on else [run])})"
    cuts: list[str] = []
    for first in sorted(lengths, key=len, reverse=True):
        taken = max(0, len(first) - len(head))
        rests: list[str] = []
        for low, high in _ranges(lengths[first]):
            if high > longest:  # and so for all longer runs
                rests.append(f"(?>{run}{{{low - taken},}}){end}" if goes_on else f"{run}{{{low - taken},}}")
            else:
                rests.append(f"{run}{{{low - taken},{high - taken}}}{end}")
        cuts.append(f"{escaped(first)}(?={escaped(head[len(first) :])}(?:{'|'.join(rests)}))")
    # most text has no run: one look ahead says so
    return f"(?={escaped(head)}{run}{{{SHORTEST_RUN}}})(?:{'|'.join(cuts)})"


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, first and last."""
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


def cut_behind_runs(unigram: Tokenizer, runs: str | None) -> Callable[[str], list[str]]:
    """A function from a whole pre-token (byte-level) to its tokens by `unigram`'s model, behind the cuts of `runs`."""
    splitter = pre_tokenizers.Split(Regex(runs), "isolated") if runs else None

    def cut(string: str) -> list[str]:
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(string)] if splitter else [string]
        return [token.value for piece in pieces for token in unigram.model.tokenize(piece)]

    return cut


def find_exceptions(
    base: Tokenizer, unigram: Tokenizer, runs: str | None, strings: Iterable[str], most: int
) -> dict[str, str]:
    """Cuts under which `unigram` segments each of `strings` as `base` does, as few for each string as it needs.

    Args:
        base: the base tokenizer; its model is asked.
        unigram: the tokenizer to be cut for; its model is asked, on what follows the pieces behind the cuts of `runs`.
        runs: the pattern of :func:`run_cuts`, or None.
        strings: whole pre-tokens (byte-level) that the two segment differently, the most important first.
        most: how many strings to settle at most.

    Returns:
        For a whole string its first piece. What follows the piece is again a whole string, with an entry of its own
        where it needs one. Strings that no cut settles have none.
    """
    cut_by_unigram, cut_by_model = cut_behind_runs(unigram, runs), cut_behind_runs(unigram, None)
    exceptions: dict[str, str] = {}
    hopeless: set[str] = set()

    def cut_by_base(string: str) -> list[str]:
        return [token.value for token in base.model.tokenize(string)]

    def settled(string: str) -> dict[str, str]:
        """Entries for a string that needs at least one, none where there is no way."""
        if len(string) > LONGEST_EXCEPTION:
            return {}
        expected = cut_by_base(string)
        if "".join(expected) != string:
            return {}  # the base drops bytes that it has no token for
        ends = list(accumulate(map(len, expected)))[:-1]
        held = [n for n, end in enumerate(ends, start=1) if cut_by_model(string[:end]) == expected[:n]]
        for n in reversed(held):
            rest = string[ends[n - 1] :]
            if rest in exceptions or cut_by_unigram(rest) == expected[n:]:
                return {string: string[: ends[n - 1]]}
        for n in reversed(held):  # the longest piece first, so that few cuts follow
            rest = string[ends[n - 1] :]
            # a token that the base only yields as a whole pre-token (ignore_merges) is not what stands inside
            alike = rest not in hopeless and cut_by_base(rest) == expected[n:]
            further = settled(rest) if alike else {}
            if further:
                return {string: string[: ends[n - 1]]} | further
        hopeless.add(string)
        return {}

    for number, string in enumerate(strings):
        if number >= most:
            break
        if string not in exceptions:
            exceptions |= settled(string)
    return exceptions


def exception_pattern(exceptions: Mapping[str, str]) -> str:
    r"""A pattern that matches the first piece of each string where the whole of it stands.

    `\G` holds at the start of the pre-token and where the match before it ended, so that the rest of a string is
    looked up as a whole again. Strings are factored into a trie, and what follows a piece into another.
    """
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for string, piece in exceptions.items():
        rests[piece].append(string[len(piece) :])
    pieces = {piece: f"(?={trie_pattern(dict.fromkeys(after, ''))}$)" for piece, after in rests.items()}
    return rf"\G{trie_pattern(pieces)}"
