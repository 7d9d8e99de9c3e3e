"""Cuts of a long text lose nothing, respect the size, and an edit stays local."""

import random
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ivr_dagster.core.corpus.text_pieces import MIN_SPLIT_BYTES, cut_text

TEXTS = st.lists(
    st.sampled_from(
        ["\n", "\r\n", "\r", "\n\n", "\n \t\n", "\r\n\r\n", " ", "word", "한국어 문장", "🙂" * 30, "x" * 300, "\x0c"]
    ),
    max_size=120,
).map("".join)
SIZES = st.sampled_from([MIN_SPLIT_BYTES, 300, 1024])


def chunks(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def prose(seed: int, paragraphs: int) -> str:
    chance = random.Random(seed)
    return "\n\n".join(
        "\n".join(" ".join(f"word{chance.randrange(5000)}" for _ in range(10)) for _ in range(chance.randrange(1, 9)))
        for _ in range(paragraphs)
    )


@given(TEXTS, SIZES)
def test_pieces_lose_only_whitespace_and_respect_the_size(text: str, max_bytes: int) -> None:
    pieces = [piece for _, piece in cut_text([text], max_bytes)]
    assert all(len(piece.encode()) <= max_bytes for piece in pieces)
    position = 0
    for piece in pieces:
        found = text.find(piece, position)
        assert found >= 0
        assert not text[position:found].strip()
        position = found + len(piece)
    assert not text[position:].strip()


@given(TEXTS, SIZES, st.integers(1, 50))
def test_pieces_do_not_depend_on_the_chunks(text: str, max_bytes: int, size: int) -> None:
    assert list(cut_text(chunks(text, size), max_bytes)) == list(cut_text([text], max_bytes))


@example("x" * 255 + "\r\nword", MIN_SPLIT_BYTES)  # the window ends between CR and LF
@given(TEXTS, SIZES)
def test_piece_starts_on_the_reported_line(text: str, max_bytes: int) -> None:
    lines = re.split("\r\n|\r|\n", text)
    for line, piece in list(cut_text([text], max_bytes))[1:]:
        assert re.split("[\r\n]", piece)[0] in lines[line - 1]


@pytest.mark.parametrize("text", ["", "\n", "\n\nword\n\n", "x" * MIN_SPLIT_BYTES])
def test_text_that_fits_is_unchanged(text: str) -> None:
    assert list(cut_text([text], MIN_SPLIT_BYTES)) == [(1, text)]


def test_blank_text_has_no_pieces() -> None:
    assert list(cut_text(["\n \n"] * 1000, MIN_SPLIT_BYTES)) == []


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_pieces_end_at_blank_lines_with_any_line_end(line_end: str) -> None:
    text = prose(1, 200)
    expected = [piece for _, piece in cut_text([text], 4096)]
    paragraphs = text.split("\n\n")
    assert len(expected) > 10
    assert {paragraph for piece in expected for paragraph in piece.split("\n\n")} == set(paragraphs)
    # longer line ends may move cuts, but every piece still consists of whole paragraphs
    found = [piece for _, piece in cut_text([text.replace("\n", line_end)], 4096)]
    assert {p for piece in found for p in piece.replace(line_end, "\n").split("\n\n")} == set(paragraphs)


def test_indentation_after_a_cut_is_preserved() -> None:
    paragraph = "    code " + "x" * 100
    pieces = [piece for _, piece in cut_text([f"{paragraph}\n\n" * 20], MIN_SPLIT_BYTES)]
    assert all(piece.startswith("    code") for piece in pieces)


def test_paragraph_longer_than_a_piece_is_cut_at_line_ends() -> None:
    lines = [f"line {number} " + "y" * 50 for number in range(200)]
    pieces = [piece for _, piece in cut_text(["\n".join(lines)], 1024)]
    assert [line for piece in pieces for line in piece.split("\n")] == lines


def test_line_that_fits_is_not_cut_to_fill_a_piece() -> None:
    # 199 bytes are less than a quarter of a piece, but do not fit into one with the second line
    lines = [" ".join(["ab"] * 67)[:199], " ".join(["cd"] * 300), " ".join(["ef"] * 300)]
    assert [piece for _, piece in cut_text(["\n".join(lines)], 1024)] == lines


def test_line_longer_than_a_piece_is_cut_at_spaces_or_between_characters() -> None:
    words = [f"w{number}" for number in range(2000)]
    assert " ".join(piece for _, piece in cut_text([" ".join(words)], 1024)).split() == words
    pieces = [piece for _, piece in cut_text(["한" * 1000], 1024)]
    assert [len(piece) for piece in pieces] == [341, 341, 318]


@pytest.mark.parametrize("replacement", ["blank lines", "line ends", "spaces"])
@pytest.mark.parametrize("seed", range(10))
def test_edit_changes_only_a_few_pieces(seed: int, replacement: str) -> None:
    text = prose(seed, 900)
    if replacement != "blank lines":
        text = text.replace("\n\n", "\n")
    if replacement == "spaces":
        text = text.replace("\n", " ")
    place = random.Random(seed).randrange(len(text))
    edited = text[:place] + " an inserted sentence " + text[place:]
    before = {piece for _, piece in cut_text([text], 4096)}
    after = {piece for _, piece in cut_text([edited], 4096)}
    assert len(before) > 50
    # usually one or two, measured over many seeds
    assert len(after - before) <= 8
