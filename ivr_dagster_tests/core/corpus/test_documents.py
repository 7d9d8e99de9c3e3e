"""From corpus files to documents, and the errors that users see for bad files."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus import decoding, documents, json_records, long_lines
from ivr_dagster.core.corpus.documents import Document, OnSkip, read_documents
from ivr_dagster.core.corpus.files import fingerprint_corpus
from ivr_dagster.core.corpus.json_records import json_lines
from ivr_dagster.core.corpus.text_pieces import cut_text
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def read(path: Path, on_skip: OnSkip | None = None, **settings: Any) -> list[tuple[str, str]]:
    found = read_documents(path, path.parent, CorpusSettings(**settings), on_skip=on_skip)
    return [(document.text, document.source) for document in found]


def set_chunk_bytes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (decoding, documents):
        monkeypatch.setattr(module, "CHUNK_BYTES", size)


@pytest.mark.parametrize("attempt", [read, lambda path: fingerprint_corpus(path.parent)])
def test_unreadable_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[Path], object]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.txt", "text")
    monkeypatch.setattr("ivr_dagster.core.corpus.files.open_regular", refuse)
    monkeypatch.setattr(decoding, "open_regular", refuse)
    with pytest.raises(InputError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        attempt(path)


def test_reading_a_pipe_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt: cannot be read \(it is a named pipe, not a file\)"):
        read(tmp_path / "a.txt")


# JSON


def test_jsonl_gives_one_document_per_line_with_its_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "one\\u2028"}\r\n\n  \n"two"\n{"text": "thr\u2028ee"}')
    assert read(path) == [("one\u2028", "a.jsonl:1"), ("two", "a.jsonl:4"), ("thr\u2028ee", "a.jsonl:5")]
    path = write(tmp_path / "sub" / "a.jsonl.gz", '"x"\n')
    assert list(read_documents(path, tmp_path, CorpusSettings())) == [Document("x", "sub/a.jsonl.gz:1")]


def test_json_gives_the_elements_of_an_array_or_the_single_object(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '\n[\n  {"text": "one",\n   "n": [1]},\n\n  "t]w,o", {"text": ""}\n]\n')
    assert read(path) == [("one", "a.json:3"), ("t]w,o", "a.json:6"), ("", "a.json:6")]
    assert read(write(tmp_path / "b.json", '{"text":\n"only"}')) == [("only", "b.json:1")]
    assert read(write(tmp_path / "c.json", "[ ]")) == []


@given(st.lists(st.text() | st.fixed_dictionaries({"text": st.text(), "n": st.integers()})), st.sampled_from([None, 1]))
def test_json_array_gives_what_the_json_module_gives(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], indent: int | None
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "h.json", json.dumps(values, indent=indent))
    assert [text for text, _ in read(path)] == [v["text"] if isinstance(v, dict) else v for v in values]


def test_text_key_may_be_dotted_and_a_literal_dot_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"meta": {"body": "nested"}}\n{"meta.body": "literal", "meta": {"body": "no"}}')
    assert [text for text, _ in read(path, text_key="meta.body")] == ["nested", "literal"]


MISSING = r"a\.jsonl:2: the key 'text' "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x", "meta": {"title": "y", "n": 1}}', "is missing; the keys with text are 'body', 'meta.title'"),
        ('{"text": null}', r"holds null; the keys with text are \(none\).*--text-key"),
        ('{"text": ["x"]}', "holds an array"),
        ('{"text": true}', "holds a boolean"),
        (json.dumps({f"k{number}": "" for number in range(20)}), "is missing; .*'k11', …"),
        ('{"a":' * 900 + "1" + "}" * 900, r"is missing; the keys with text are \(none\)"),
    ],
)
def test_record_without_text_is_named_with_its_keys(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=MISSING + message):
        read(write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n'))


def test_long_keys_are_shortened_in_messages(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "a.jsonl", json.dumps({"k" * 100_000: "x", "\n": "y"})), text_key="t" * 100_000)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "17", r"a\.jsonl:1: expected an object or a string, found a number"),
        ("a.json", "17", r"a\.json:1: expected an object or a string, found a number"),
        ("a.jsonl", '"fine"\n{"text": "cut', r"a\.jsonl:2: invalid JSON \(.*\.json file"),
        ("b.json", '[\n"fine",\n}', r"b\.json:3: invalid JSON \(Expecting"),
        ("c.json", '{"text": "a"}\n{"text": "b"}', r"c\.json:2: invalid JSON \(Extra data.*\.jsonl file"),
        ("a.json", " \n", r"a\.json:2: the file is empty"),
        ("a.json", "[" * 100_000, r"a\.json:1: invalid JSON \(.*recursion"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: invalid JSON \(.*recursion"),
        ("a.jsonl", '{"text":"a"}\r{"text":"b"}', r"a\.jsonl:1: invalid JSON \(Extra data"),
        ("a.jsonl", '{\n"text": "a"}', r"a\.jsonl:1: invalid JSON"),
        ("a.jsonl", '{"te\0xt": "x"}', r"a\.jsonl:1: invalid JSON .*\.json file"),
        ("a.jsonl", "9" * 5000, r"a\.jsonl:1: invalid JSON \(Exceeds the limit"),
        # errors of a file are reported together
        (
            "a.jsonl",
            '"one"\n{"body": "x"}\n"two"\n{"text": 5}\n[\n',
            r"a\.jsonl:2: .*; .*a\.jsonl:4: .*; .*a\.jsonl:5: invalid JSON",
        ),
        ("b.json", '[{"body": "x"},\n\n5]', r"b\.json:1: .*; .*b\.json:3: "),
        ("c.jsonl", "5\n" * 1000, r"c\.jsonl:20: [^;]*; and 1 more"),
    ],
)
def test_invalid_json_is_named_with_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_very_long_json_text_is_cut_like_a_text_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "MAX_UNCUT_JSON_BYTES", 5000)
    set_chunk_bytes(monkeypatch, 700)
    monkeypatch.setattr(long_lines, "LONG_LINE", 3000)
    monkeypatch.setattr(long_lines, "LONG_STRING", 100)
    long = "한국어 text \n\nwith 😀 paragraphs. " * 300
    value = [{"n": [1], "text": long}, {"text": "한" * 1666}]
    content = json.dumps(value) if name == "a.json" else "\n".join(json.dumps(each) for each in value)
    last = ("한" * 1666, f"{name}:{1 if name == 'a.json' else 2}")
    expected = [(piece, f"{name}:1") for _, piece in cut_text([long], 1000)]
    assert read(write(tmp_path / name, content), text_split_bytes=1000) == [*expected, last]
    assert read(tmp_path / name, text_split_bytes=0) == [(long, f"{name}:1"), last]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_text_longer_than_an_arrow_string_is_refused_if_it_may_not_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "MAX_TEXT_BYTES", 1000)
    path = write(tmp_path / name, "x" * 1001 if name == "a.txt" else json.dumps("한" * 334, ensure_ascii=False))
    with pytest.raises(InputError, match=rf"{name}:1: the text has more than 1,000 bytes.*--text-split-bytes"):
        read(path, text_split_bytes=0)


def test_line_without_end_is_refused_before_it_fills_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_lines, "LONG_LINE", 300)
    monkeypatch.setattr(long_lines, "MAX_OUTSIDE_STRINGS", 1000)
    chunks_read: list[int] = []

    def chunks() -> Iterator[str]:
        yield '"fine"\n'
        while True:
            chunks_read.append(1)
            yield "\0" * 100

    with pytest.raises(InputError, match=r"a\.jsonl:2: the line is too long \(it has more than 1,000 characters"):
        list(json_lines(chunks(), Path("a.jsonl")))
    assert len(chunks_read) < 20


def test_json_file_too_large_to_be_parsed_as_a_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_JSON_FILE", 1000)
    with pytest.raises(InputError, match=r"a\.json: .*more than 1,000 characters.*\.jsonl"):
        read(write(tmp_path / "a.json", json.dumps(["x" * 1000])))


@pytest.mark.parametrize(
    ("name", "content", "read_texts", "skipped"),
    [
        ("a.jsonl", b'"one"\n{"body": 1}\n[\n"two"', ["one", "two"], ["record a.jsonl:2", "record a.jsonl:3"]),
        ("a.json", b'["one", 5, "two"]', ["one", "two"], ["record a.json:1"]),
        ("a.json", b'["one", ', [], ["file a.json:1"]),
        ("a.txt", b"fine \xff", [], ["file a.txt"]),
        ("a.jsonl", b'"one"\n"\xff"\n', [], ["file a.jsonl"]),
        ("a.jsonl.gz", None, [], ["file a.jsonl.gz"]),
    ],
)
def test_bad_records_and_files_can_be_skipped(
    tmp_path: Path, name: str, content: bytes | None, read_texts: list[str], skipped: list[str]
) -> None:
    path = write(tmp_path / name, content or b'"text"\n' * 1000)
    if content is None:
        path.write_bytes(path.read_bytes()[:-9])
    reported: list[str] = []
    found = read(path, lambda kind, error: reported.append(f"{kind} {Path(str(error.where)).name}"))
    assert ([text for text, _ in found], reported) == (read_texts, skipped)


# text and bytes


def test_undecodable_bytes_can_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\xffb\xed\x95")
    assert read(path, encoding_errors="replace") == [("a\ufffdb\ufffd", "a.txt:1")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_byte_order_mark_of_another_encoding_is_recognized(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=f"byte order mark of {encoding}: set --encoding {encoding}"):
        read(write(tmp_path / "a.txt", "한국어".encode(encoding)))


def test_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SAFE_GZIP_BYTES", 1 << 20)
    bomb = write(tmp_path / "a.txt.gz", b"\0" * (8 << 20))
    with pytest.raises(InputError, match=r"a\.txt\.gz: .*unpacks to more than .* bytes, over 200 times.*gunzip"):
        read(bomb)
    text = write(tmp_path / "b.txt.gz", "".join(f"{n} a line of a log\n" for n in range(200_000)))
    assert len(read(text)) > 1


def test_short_text_is_one_document_and_a_long_one_several(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "one\r\n\r\ntwo\n")) == [("one\r\n\r\ntwo\n", "a.txt:1")]
    paragraph = "word " * 50 + "\n\n"
    long = read(write(tmp_path / "b.txt.gz", paragraph * 20), text_split_bytes=1024)
    assert len(long) > 4
    assert long[1][1] == f"b.txt.gz:{1 + 2 * len(long[0][0].split(chr(10) * 2))}"
    assert read(tmp_path / "b.txt.gz", text_split_bytes=0) == [(paragraph * 20, "b.txt.gz:1")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16", "utf-16-le", "UTF8"])
def test_text_is_decoded_across_chunks_without_its_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    set_chunk_bytes(monkeypatch, 3)
    content = "한국어 text"
    assert read(write(tmp_path / "a.txt", content.encode(encoding)), encoding=encoding) == [(content, "a.txt:1")]
    if encoding.startswith("utf-"):
        marked = write(tmp_path / "b.txt", f"\ufeff{content}".encode(encoding.removesuffix("-sig")))
        assert read(marked, encoding=encoding) == [(content, "b.txt:1")]


@pytest.mark.parametrize("chunk_bytes", [1, 4, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_undecodable_bytes_are_named_with_their_absolute_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, name: str
) -> None:
    set_chunk_bytes(monkeypatch, chunk_bytes)
    with pytest.raises(InputError, match=rf"{name}: the bytes ff at offset 12 are not utf-8 \(.*--encoding"):
        read(write(tmp_path / name, b"\xef\xbb\xbf" + "한국어".encode() + b"\xff rest"))
    with pytest.raises(InputError, match=r"the bytes ed 95 at offset 3 are not utf-8 \(unexpected end"):
        read(write(tmp_path / name, "한한".encode()[:-1]))
    with pytest.raises(InputError, match=r"offset 4 are not cp949"):
        read(write(tmp_path / name, "한국".encode("cp949") + b"\xff\xff"), encoding="cp949")


def test_utf_16_without_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt: the file is not utf-16 \(.*BOM.*--encoding"):
        read(write(tmp_path / "a.txt", "text".encode("utf-16-be")), encoding="utf-16")


@pytest.mark.parametrize("encoding", ["klingon", "hex", ""])
def test_unknown_encoding_is_named_and_never_skipped(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=f"unknown encoding '{encoding}'.*--encoding"):
        read(write(tmp_path / "a.txt", "x"), lambda *_: None, encoding=encoding)


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_bits(data: bytes) -> bytes:
    return data[:12] + bytes([data[12] ^ 0xFF]) + data[13:]


@pytest.mark.parametrize("damage", [truncate, flip_bits, lambda _: b"no gzip at all"])
def test_damaged_gzip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "a.jsonl.gz", '"some text"\n' * 1000)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: the gzip file is damaged or truncated"):
        read(path)


def test_file_name_that_is_not_utf8_is_escaped_in_the_source(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.txt")
    try:
        write(path, "text")
    except OSError:
        pytest.skip("the file system accepts only UTF-8 names")
    assert read(path) == [("text", "\\udcff.txt:1")]
    assert fingerprint_corpus(tmp_path)
