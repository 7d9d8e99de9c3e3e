"""Many literal strings as one regular expression, factored into a trie, for Oniguruma (`tokenizers`) and `regex`."""

from collections.abc import Mapping, Sequence

import regex

# Engines try alternatives one by one. Above this number, a look-ahead at the next character selects a group, which
# halves the cost of 913 exceptions.
MAX_ALTERNATIVES = 8


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
    """`text` as a literal that both engines interpret identically."""
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
    classes = ["".join(f"\\{c}" if c in r"[]\^-&~|" else c for c, _ in group) for group in groups]
    return alternatives(
        [f"(?=[{first}]){alternatives_by_first(group)}" for first, group in zip(classes, groups, strict=True)]
    )


def alternatives(patterns: Sequence[str]) -> str:
    """The first of the patterns that matches."""
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"
