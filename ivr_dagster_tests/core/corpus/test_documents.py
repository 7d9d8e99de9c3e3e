"""Raw files: which are read, what comes out of them, and what the person is told about a bad one."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus import documents
from ivr_dagster.core.corpus.documents import (
    Document,
    corpus_files,
    ignored_files,
    read_documents,
)
from ivr_dagster.core.corpus.shards import fingerprint_corpus
from ivr_dagster.core.errors import InputError


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def read(path: Path, **settings: object) -> list[tuple[str, str]]:
    return [(d.text, d.source) for d in read_documents(path, path.parent, **settings)]  # type: ignore[arg-type]


# files


def test_files_are_found_at_any_depth_sorted_by_relative_path(tmp_path: Path) -> None:
    names = ["a/b/c/deep.txt", "a.txt", "B.JSONL", "a/one.json.gz", "z.txt.gz", "a/two.jsonl.gz", "a-b.json"]
    for name in [*names, "readme.md", "a/x.csv.gz", ".hidden.txt", ".git/x.txt", "a/half.txt.tmp", "old.tmp/x.txt"]:
        write(tmp_path / name, "")
    assert [path.relative_to(tmp_path).as_posix() for path in corpus_files(tmp_path)] == sorted(names)
    assert sorted(path.name for path in ignored_files(tmp_path)) == ["readme.md", "x.csv.gz"]


def test_a_folder_without_corpus_files_is_refused_with_the_suffixes(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "text")
    with pytest.raises(InputError, match=rf"{tmp_path}.*\.txt, \.jsonl, \.json.*\.gz.*--raw-corpora-dir"):
        corpus_files(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file.*--raw-corpora-dir"):
        corpus_files(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["file.txt", "folder"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    outside = write(tmp_path / "outside" / "file.txt", "x")
    root = tmp_path / "root"
    write(root / "a.txt", "a")
    (root / name).symlink_to(outside if name == "file.txt" else outside.parent)
    with pytest.raises(InputError, match=rf"root/{name}: .*leads out.*{tmp_path}/outside"):
        corpus_files(root)


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(InputError, match=r"a\.txt: the link leads nowhere .*gone\.txt"):
        corpus_files(tmp_path)


def test_links_inside_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / ".store" / "x.txt", "x")
    (tmp_path / "link").symlink_to(tmp_path / ".store")
    (tmp_path / "one.txt").symlink_to(tmp_path / ".store" / "x.txt")
    (tmp_path / ".store" / "round").symlink_to(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in corpus_files(tmp_path)] == ["link/x.txt", "one.txt"]


def test_the_fingerprint_sees_names_and_contents_but_not_times(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "one")
    write(tmp_path / "sub" / "b.json", "[]")
    before = fingerprint_corpus(tmp_path)
    os.utime(first, (1, 1))
    write(tmp_path / "ignored.md", "x")
    assert fingerprint_corpus(tmp_path) == before
    write(first, "two")
    changed = fingerprint_corpus(tmp_path)
    write(first, "one")
    assert fingerprint_corpus(tmp_path) == before
    first.rename(tmp_path / "c.txt")
    assert len({before, changed, fingerprint_corpus(tmp_path)}) == 3


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "text")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    for attempt in (lambda: read(path), lambda: fingerprint_corpus(tmp_path)):
        with pytest.raises(InputError, match=r"a\.txt: cannot be read \(Permission denied\)"):
            attempt()


# JSON


def test_jsonl_gives_a_document_a_line_with_its_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "one\\u2028"}\r\n\n  \n"two"\n{"text": "thr\u2028ee"}')
    assert read(path) == [("one\u2028", "a.jsonl:1"), ("two", "a.jsonl:4"), ("thr\u2028ee", "a.jsonl:5")]


def test_the_source_is_relative_to_the_root(tmp_path: Path) -> None:
    path = write(tmp_path / "sub" / "a.jsonl.gz", '"x"\n')
    assert list(read_documents(path, tmp_path)) == [Document("x", "sub/a.jsonl.gz:1")]


def test_json_gives_the_elements_of_an_array_or_the_one_object(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '\n[\n  {"text": "one",\n   "n": [1]},\n\n  "t]w,o", {"text": ""}\n]\n')
    assert read(path) == [("one", "a.json:3"), ("t]w,o", "a.json:6"), ("", "a.json:6")]
    assert read(write(tmp_path / "b.json", '{"text":\n"only"}')) == [("only", "b.json:1")]
    assert read(write(tmp_path / "c.json", "[ ]")) == []


@given(st.lists(st.text() | st.fixed_dictionaries({"text": st.text(), "n": st.integers()})), st.sampled_from([None, 1]))
def test_json_arrays_give_what_json_gives(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], indent: int | None
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "h.json", json.dumps(values, indent=indent))
    assert [text for text, _ in read(path)] == [v["text"] if isinstance(v, dict) else v for v in values]


def test_the_text_key_may_be_dotted_and_a_literal_dot_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"meta": {"body": "nested"}}\n{"meta.body": "literal", "meta": {"body": "no"}}')
    assert [text for text, _ in read(path, text_key="meta.body")] == ["nested", "literal"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"body": "x", "meta": {"title": "y", "n": 1}}',
            "'text' is missing; the keys with text are 'body', 'meta.title'",
        ),
        ('{"text": null}', r"'text' holds null; the keys with text are \(none\)"),
        ('{"text": ["x"]}', "'text' holds an array"),
        ('{"text": true}', "'text' holds a boolean"),
        (json.dumps({f"k{number}": "" for number in range(20)}), "'k11', …"),
    ],
)
def test_a_missing_text_is_told_with_line_and_keys(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(
        InputError, match=rf"a\.jsonl:2: the key {message}.*--text-key" if "k11" not in message else message
    ):
        read(path)


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", 1), ("a.json", 1)])
def test_a_value_that_is_no_document_is_named(tmp_path: Path, name: str, line: int) -> None:
    with pytest.raises(InputError, match=rf"{name}:{line}: expected an object or a string, found a number"):
        read(write(tmp_path / name, "17"))


def test_invalid_json_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:2: invalid JSON \(.*\.json file"):
        read(write(tmp_path / "a.jsonl", '"fine"\n{"text": "cut'))
    with pytest.raises(InputError, match=r"b\.json:3: invalid JSON \(Expecting"):
        read(write(tmp_path / "b.json", '[\n"fine",\n}'))
    with pytest.raises(InputError, match=r"c\.json:2: invalid JSON \(Extra data.*\.jsonl file"):
        read(write(tmp_path / "c.json", '{"text": "a"}\n{"text": "b"}'))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_nested_too_deeply_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}:1: invalid JSON \(.*recursion"):
        read(write(tmp_path / name, "[" * 100_000))


# text and bytes


def test_a_short_text_is_one_document_and_a_long_one_several(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "one\r\n\r\ntwo\n")) == [("one\r\n\r\ntwo\n", "a.txt:1")]
    paragraph = "word " * 50 + "\n\n"
    long = read(write(tmp_path / "b.txt.gz", paragraph * 20), text_split_bytes=1024)
    assert len(long) > 4
    assert long[1][1] == f"b.txt.gz:{1 + 2 * len(long[0][0].split(chr(10) * 2))}"
    assert read(tmp_path / "b.txt.gz", text_split_bytes=0) == [(paragraph * 20, "b.txt.gz:1")]


@pytest.mark.parametrize("size", [-1, 255])
def test_a_split_size_too_small_is_named(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"at {size} bytes.*256"):
        read(write(tmp_path / "a.txt", ""), text_split_bytes=size)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16", "utf-16-le", "UTF8"])
def test_text_is_decoded_across_chunks_without_its_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(documents, "_CHUNK_BYTES", 3)
    assert read(write(tmp_path / "a.txt", "한국어 text".encode(encoding)), encoding=encoding) == [
        ("한국어 text", "a.txt:1")
    ]
    if encoding.startswith("utf-"):
        marked = write(tmp_path / "b.txt", "\ufeff한국어".encode(encoding.removesuffix("-sig")))
        assert read(marked, encoding=encoding) == [("한국어", "b.txt:1")]


@pytest.mark.parametrize("chunk_bytes", [1, 4, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_bytes_outside_the_encoding_are_told_with_their_absolute_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, name: str
) -> None:
    monkeypatch.setattr(documents, "_CHUNK_BYTES", chunk_bytes)
    with pytest.raises(InputError, match=rf"{name}: the bytes ff at offset 12 are not utf-8 \(.*--encoding"):
        read(write(tmp_path / name, b"\xef\xbb\xbf" + "한국어".encode() + b"\xff rest"))
    with pytest.raises(InputError, match=r"the bytes ed 95 at offset 3 are not utf-8 \(unexpected end"):
        read(write(tmp_path / name, "한한".encode()[:-1]))
    with pytest.raises(InputError, match=r"offset 4 are not cp949"):
        read(write(tmp_path / name, "한국".encode("cp949") + b"\xff\xff"), encoding="cp949")


def test_utf_16_without_a_byte_order_mark_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt: the file is not utf-16 \(.*BOM.*--encoding"):
        read(write(tmp_path / "a.txt", "text".encode("utf-16-be")), encoding="utf-16")


@pytest.mark.parametrize("encoding", ["klingon", "hex", ""])
def test_an_unknown_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=f"unknown text encoding '{encoding}'.*--encoding"):
        read(write(tmp_path / "a.txt", "x"), encoding=encoding)


@pytest.mark.parametrize("damage", ["cut", "foreign", "flipped"])
def test_damaged_gzip_is_told(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.jsonl.gz", '"some text"\n' * 1000)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "foreign":
        data = bytearray(b"no gzip at all")
    else:
        data[12] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: the gzip file is damaged or cut short"):
        read(path)


def test_a_file_name_that_is_no_utf8_gives_a_source_that_is(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.txt")
    try:
        write(path, "text")
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    assert read(path) == [("text", "\\udcff.txt:1")]
    assert fingerprint_corpus(tmp_path)
