"""Many literal strings as one regular expression, factored into a trie, for `tokenizers`' Oniguruma and for `regex`."""

from collections.abc import Mapping, Sequence

import regex

# An engine tries alternatives one by one. Above this many, a look ahead at the next character chooses among groups:
# 913 exceptions then cost half as much time
WIDEST_CHOICE = 8


def trie_pattern(entries: Mapping[str, str]) -> str:
    """A pattern for any of the strings, longer ones first, each followed by its own pattern (what must come next).

    Args:
        entries: strings, none empty unless it is the only one, each with a pattern, which may be empty.
    """
    root: dict[str, object] = {}
    for string, after in sorted(entries.items()):
        node = root
        for character in string:
            node = node.setdefault(character, {})  # type: ignore[assignment]
        node[""] = after
    return _pattern(root)


def escaped(text: str) -> str:
    """`text` as a literal that both engines read alike."""
    return regex.escape(text, special_only=True, literal_spaces=True)


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
    end = [str(node[""])] if "" in node else []  # last: a longer string goes first
    return choice([choice_by_first(branches), *end] if branches else end)


def choice_by_first(branches: Sequence[tuple[str, str]]) -> str:
    """One of the patterns, each given with the character that it must begin with; no two begin alike.

    Where there are many, they come in groups told apart by a look ahead.
    """
    if len(branches) <= WIDEST_CHOICE:
        return choice([pattern for _, pattern in branches])
    size = -(-len(branches) // WIDEST_CHOICE)
    groups = [branches[n : n + size] for n in range(0, len(branches), size)]
    return choice(
        [f"(?=[{''.join(_in_class(character) for character, _ in group)}]){choice_by_first(group)}" for group in groups]
    )


def _in_class(character: str) -> str:
    return f"\\{character}" if character in r"[]\^-&~|" else character


def choice(patterns: Sequence[str]) -> str:
    """The first of the patterns that matches."""
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"
