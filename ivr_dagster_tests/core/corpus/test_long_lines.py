"""JSON lines parsed in parts, compared with the json module on the whole line."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus import long_lines
from ivr_dagster.core.corpus.long_lines import JsonLine, unescape

CUTS = st.lists(st.integers(0, 400), max_size=12)
# characters of escapes, so that cuts fall inside them
ESCAPED = st.text(st.sampled_from(list('\\"\\\\/bfnrtu0123456789abdDcCeEfF😀é한 ')), max_size=60)


@pytest.fixture(autouse=True, scope="module")
def every_line_is_long() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_lines, "LONG_LINE", -1)
        patch.setattr(long_lines, "LONG_STRING", 7)
        yield


def parse(text: str, cuts: list[int]) -> Any:
    """Feeds the text divided at `cuts` and puts the long strings back into the parsed value."""
    line = JsonLine()
    positions = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    for start, end in pairwise(positions):
        line.feed(text[start:end])
    value, strings = line.parse()

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {restore(key): restore(each) for key, each in value.items()}
        if isinstance(value, list):
            return [restore(each) for each in value]
        if isinstance(value, str) and value in strings:
            assert strings[value].size == len("".join(unescape(strings[value].parts)).encode("utf-8", "surrogatepass"))
            return "".join(strings[value].drain())
        return value

    return restore(value)


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except ValueError:
        return ValueError


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, CUTS, st.booleans())
def test_line_has_the_value_that_the_json_module_gives(value: Any, cuts: list[int], ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only), cuts) == value


@given(ESCAPED, CUTS)
def test_escapes_are_read_or_refused_as_by_the_json_module(inside: str, cuts: list[int]) -> None:
    text = f'{{"text": "{inside}", "n": 1}}'
    assert outcome(lambda: parse(text, cuts)) == outcome(lambda: json.loads(text))


@given(
    st.text(
        st.characters(codec="utf-16", categories=["Cs", "Ll", "So"]) | st.sampled_from("\ud83d\ude00\\"), max_size=20
    ),
    CUTS,
)
def test_surrogates_are_paired_as_by_the_json_module(text: str, cuts: list[int]) -> None:
    line = json.dumps("long enough " + text)
    assert parse(line, cuts) == json.loads(line)


def test_string_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="Unterminated"):
        parse('{"text": "' + "x" * 50, [])
