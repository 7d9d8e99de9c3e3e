"""Lines of JSON in parts, against the json module on the whole line."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus import long_lines
from ivr_dagster.core.corpus.long_lines import LongLine, decoded

CUTS = st.lists(st.integers(0, 400), max_size=12)
# what escapes are made of, so that cuts fall inside of them
ESCAPED = st.text(st.sampled_from(list('\\"\\\\/bfnrtu0123456789abdDcCeEfF😀é한 ')), max_size=60)


def parts_of(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


def taken(text: str, cuts: list[int]) -> Any:
    line = LongLine()
    for part in parts_of(text, cuts):
        line.feed(part)
    value, strings = line.value()

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {restored(key): restored(each) for key, each in value.items()}
        if isinstance(value, list):
            return [restored(each) for each in value]
        if isinstance(value, str) and value in strings:
            assert strings[value].size == len("".join(decoded(strings[value].parts)).encode("utf-8", "surrogatepass"))
            return "".join(strings[value].drained())
        return value

    return restored(value)


def outcome(make: Any) -> Any:
    try:
        return make()
    except ValueError:
        return ValueError


@pytest.fixture(autouse=True, scope="module")
def short_strings_are_long() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_lines, "LONG_STRING", 7)
        yield


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, CUTS, st.booleans())
def test_a_line_holds_what_json_holds(value: Any, cuts: list[int], ascii_only: bool) -> None:
    assert taken(json.dumps(value, ensure_ascii=ascii_only), cuts) == value


@given(ESCAPED, CUTS)
def test_any_escapes_are_read_or_refused_as_json_does(inside: str, cuts: list[int]) -> None:
    text = f'{{"text": "{inside}", "n": 1}}'
    assert outcome(lambda: taken(text, cuts)) == outcome(lambda: json.loads(text))


@given(
    st.text(
        st.characters(codec="utf-16", categories=["Cs", "Ll", "So"]) | st.sampled_from("\ud83d\ude00\\"), max_size=20
    ),
    CUTS,
)
def test_surrogates_pair_as_json_pairs_them(text: str, cuts: list[int]) -> None:
    line = json.dumps("long enough " + text)
    assert taken(line, cuts) == json.loads(line)


def test_what_stands_beside_strings_may_not_be_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_lines, "MOST_BESIDE", 100)
    line = LongLine()
    with pytest.raises(ValueError, match="it has over 100"):
        for _ in range(20):
            line.feed("[1, 2], ")


def test_a_string_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="Unterminated"):
        taken('{"text": "' + "x" * 50, [])
