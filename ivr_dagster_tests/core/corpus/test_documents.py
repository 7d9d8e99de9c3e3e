"""Raw files: which are read, what comes out of them, and what the person is told about a bad one."""

import gzip
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivr_dagster.core.corpus import documents, long_lines
from ivr_dagster.core.corpus.documents import (
    Document,
    corpus_files,
    hash_content,
    ignored_files,
    read_documents,
)
from ivr_dagster.core.corpus.shards import fingerprint_corpus
from ivr_dagster.core.corpus.text_pieces import cut_text
from ivr_dagster.errors import InputError


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

    monkeypatch.setattr(documents, "open_regular", refuse)
    for attempt in (lambda: read(path), lambda: fingerprint_corpus(tmp_path)):
        with pytest.raises(InputError, match=r"a\.txt: cannot be read \(Permission denied\)"):
            attempt()


def test_a_folder_that_many_links_lead_to_is_read_once(tmp_path: Path) -> None:
    for number in range(12):  # with every name of every folder there would be 12! and more
        write(tmp_path / str(number) / "x.txt", f"{number}")
        for other in range(12):
            if other != number:
                (tmp_path / str(number) / f"to{other}").symlink_to(tmp_path / str(other))
    assert len(corpus_files(tmp_path)) == 12


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = root / "/".join("d" * 1200)
    subprocess.run(["mkdir", "-p", folder], check=True)
    (folder / "x.txt").write_text("deep")
    try:
        assert corpus_files(root) == [folder / "x.txt"]
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # pytest's own way calls itself as deep


def test_pipes_sockets_and_devices_with_names_of_corpus_files_are_refused_together(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    os.mkfifo(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "no corpus file")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(tmp_path / "c.jsonl"))
    (tmp_path / "d.txt").symlink_to(tmp_path / "d.txt")
    with pytest.raises(InputError) as error:
        corpus_files(tmp_path)
    assert f"{tmp_path / 'b.txt'}: it is a named pipe, not a file" in str(error.value)
    assert f"{tmp_path / 'c.jsonl'}: it is a socket" in str(error.value)
    assert f"{tmp_path / 'd.txt'}: the link leads nowhere" in str(error.value)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for attempt in (lambda: read(tmp_path / "a.txt"), lambda: hash_content(tmp_path / "a.txt")):
        with pytest.raises(InputError, match=r"a\.txt: cannot be read \(it is a named pipe, not a file\)"):
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


def test_bad_records_of_a_file_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '"one"\n{"body": "x"}\n"two"\n{"text": 5}\n[\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: .*; .*a\.jsonl:4: .*; .*a\.jsonl:5: invalid JSON"):
        read(path)
    path = write(tmp_path / "b.json", '[{"body": "x"},\n\n5]')
    with pytest.raises(InputError, match=r"b\.json:1: .*; .*b\.json:3: "):
        read(path)
    many = write(tmp_path / "c.jsonl", "5\n" * 1000)
    with pytest.raises(InputError, match=r"c\.jsonl:20: [^;]*; and 1 more"):
        read(many)


def test_an_empty_json_file_is_told_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json:2: the file is empty"):
        read(write(tmp_path / "a.json", " \n"))


def test_what_json_names_is_shown_in_short(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "a.jsonl", json.dumps({"k" * 100_000: "x", "\n": "y"})), text_key="t" * 100_000)
    assert len(str(error.value)) < 800
    deep = '{"a":' * 900 + "1" + "}" * 900
    with pytest.raises(InputError, match=r"'text' is missing; the keys with text are \(none\)"):
        read(write(tmp_path / "b.jsonl", deep))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_very_long_text_is_cut_as_a_text_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(documents, "MOST_WHOLE_BYTES", 5000)
    monkeypatch.setattr(documents, "_CHUNK_BYTES", 700)
    monkeypatch.setattr(documents, "_LONG_LINE", 3000)
    monkeypatch.setattr(long_lines, "LONG_STRING", 100)
    long = "한국어 text \n\nwith 😀 paragraphs. " * 300
    value = [{"n": [1], "text": long}, {"text": "한" * 1666}]
    content = json.dumps(value) if name == "a.json" else "\n".join(json.dumps(each) for each in value)
    found = read(write(tmp_path / name, content), text_split_bytes=1000)
    expected = [(piece, f"{name}:1") for _, piece in cut_text([long], 1000)]
    last = f"{name}:{1 if name == 'a.json' else 2}"
    assert found == [*expected, ("한" * 1666, last)]
    assert read(tmp_path / name, text_split_bytes=0) == [(long, f"{name}:1"), ("한" * 1666, last)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_a_text_that_no_arrow_string_holds_is_refused_where_it_may_not_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 1000)
    path = write(tmp_path / name, "x" * 1001 if name == "a.txt" else json.dumps("한" * 334, ensure_ascii=False))
    with pytest.raises(InputError, match=rf"{name}:1: the text has more than 1,000 bytes.*--text-split-bytes"):
        read(path, text_split_bytes=0)


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(documents, "_LONG_LINE", 300)
    monkeypatch.setattr(long_lines, "MOST_BESIDE", 1000)
    path = write(tmp_path / "a.jsonl", '"fine"\n' + "\0" * 5000)
    read_so_far: list[int] = []
    with pytest.raises(InputError, match=r"a\.jsonl:2: the line is too long \(beside strings"):
        list(read_documents(path, tmp_path, on_read=read_so_far.append))
    assert sum(read_so_far) < 2000


def test_a_json_file_too_large_to_be_read_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_JSON", 1000)
    with pytest.raises(InputError, match=r"a\.json: .*more than 1,000 characters.*\.jsonl"):
        read(write(tmp_path / "a.json", json.dumps(["x" * 1000])))


# what is skipped


@pytest.mark.parametrize(
    ("name", "content", "left", "skipped"),
    [
        ("a.jsonl", b'"one"\n{"body": 1}\n[\n"two"', ["one", "two"], ["record a.jsonl:2", "record a.jsonl:3"]),
        ("a.json", b'["one", 5, "two"]', ["one", "two"], ["record a.json:1"]),
        ("a.json", b'["one", ', [], ["file a.json:1"]),
        ("a.txt", b"fine \xff", [], ["file a.txt"]),
        ("a.jsonl", b'"one"\n"\xff"\n', [], ["file a.jsonl"]),
        ("a.jsonl.gz", None, [], ["file a.jsonl.gz"]),
    ],
)
def test_bad_records_and_files_may_be_skipped(
    tmp_path: Path, name: str, content: bytes | None, left: list[str], skipped: list[str]
) -> None:
    path = write(tmp_path / name, content or b'"text"\n' * 1000)
    if content is None:
        path.write_bytes(path.read_bytes()[:-9])
    told: list[str] = []
    found = read(path, on_skip=lambda kind, error: told.append(f"{kind} {Path(str(error.where)).name}"))
    assert ([text for text, _ in found], told) == (left, skipped)


def test_an_unknown_encoding_is_never_skipped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown encoding"):
        read(write(tmp_path / "a.txt", "x"), encoding="klingon", on_skip=lambda *_: None)


# text and bytes


def test_bytes_outside_the_encoding_may_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\xffb\xed\x95")
    assert read(path, encoding_errors="replace") == [("a\ufffdb\ufffd", "a.txt:1")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_of_another_encoding_is_told(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=f"byte order mark of {encoding}: name that with --encoding"):
        read(write(tmp_path / "a.txt", "한국어".encode(encoding)))


def test_what_unpacks_to_far_more_than_text_does_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "GZIP_BORNE_BYTES", 1 << 20)
    bomb = write(tmp_path / "a.txt.gz", b"\0" * (8 << 20))
    with pytest.raises(InputError, match=r"a\.txt\.gz: .*unpacks to more than .* bytes, over 200 times.*gunzip"):
        read(bomb)
    text = write(tmp_path / "b.txt.gz", "".join(f"{n} a line of a log\n" for n in range(200_000)))
    assert len(read(text)) > 1


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
    with pytest.raises(InputError, match=f"unknown encoding '{encoding}'.*--encoding"):
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
