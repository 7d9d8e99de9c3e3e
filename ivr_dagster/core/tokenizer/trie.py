"""Many literal strings as one regular expression, factored into a trie.

Oniguruma (`tokenizers`), JavaScript with the flag `u` (`@huggingface/tokenizers`) and `regex` interpret it identically.
JavaScript has neither atomic groups nor `\\G` and allows a backslash only where one is needed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

# Engines try alternatives one by one. Above this number, a look-ahead at the next character selects a group, which
# halves the cost of 913 exceptions.
MAX_ALTERNATIVES = 8
# `====` is as short as `={4}`. JavaScript's packages copy the pattern for every pre-token.
LONGEST_LITERAL_RUN = 4


def trie_pattern(entries: Mapping[str, str]) -> str:
    """A pattern for any of the strings, longer ones first, each followed by its own pattern.

    Args:
        entries: for each string the pattern that must follow it, which may be empty. No string may be empty unless it
            is the only one.
    """
    root: dict[str, object] = {}
    for string, after in sorted(entries.items()):
        node = root
        for character in string:
            node = node.setdefault(character, {})  # type: ignore[assignment]
        node[""] = after
    return _pattern(root)


def escaped(text: str) -> str:
    """`text` as a literal that all engines interpret identically. Runs of a character are counted, to be short."""

    def literal(run: re.Match[str]) -> str:
        character = re.sub(r"[()\[\]{}?*+|^$\\.]", r"\\\g<0>", run[1])
        return f"{character}{{{len(run[0])}}}" if len(run[0]) > LONGEST_LITERAL_RUN else character * len(run[0])

    return re.sub(r"(.)\1*", literal, text, flags=re.DOTALL)


def character_class(characters: Iterable[str]) -> str:
    """A pattern for any of these distinct characters."""
    return "[" + re.sub(r"[\[\]\\^-]", r"\\\g<0>", "".join(characters)) + "]"


def _pattern(node: dict[str, object]) -> str:
    branches: list[tuple[str, str]] = []
    for character, child in node.items():
        if character == "":
            continue
        literal = character
        while isinstance(child, dict) and len(child) == 1 and "" not in child:
            ((following, child),) = child.items()
            literal += following
        branches.append((character, escaped(literal) + _pattern(child)))  # type: ignore[arg-type]
    end = [str(node[""])] if "" in node else []  # last: longer strings go first
    return alternatives([alternatives_by_first(branches), *end] if branches else end)


def alternatives_by_first(branches: Sequence[tuple[str, str]]) -> str:
    """One of the patterns, given as (first character, pattern) with distinct first characters.

    If there are many, they are grouped, and a look-ahead selects the group.
    """
    if len(branches) <= MAX_ALTERNATIVES:
        return alternatives([pattern for _, pattern in branches])
    size = -(-len(branches) // MAX_ALTERNATIVES)
    groups = [branches[n : n + size] for n in range(0, len(branches), size)]
    return alternatives(
        [f"(?={character_class(first for first, _ in group)}){alternatives_by_first(group)}" for group in groups]
    )


def alternatives(patterns: Sequence[str]) -> str:
    """The first of the patterns that matches."""
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"
