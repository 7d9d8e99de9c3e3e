"""From a raw folder to the cleaned corpus."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ivr_dagster.core.corpus import parts
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, CorpusCounts, write_cleaned_corpus
from ivr_dagster.core.corpus.parts import SCHEMA
from ivr_dagster.core.corpus.splits import SPLITS, Split, document_id, is_heldout
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings

TEXTS = [f"Document {number}, 한국어 문서." for number in range(200)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "a.jsonl").write_text("\n".join(lines[:120]))
    (folder / "sub" / "b.jsonl").write_text("\n".join(lines[100:]))
    (folder / "c.json").write_text(json.dumps([" \n", "\x00\x01", "e\u0301\x00\r\n"]))
    (folder / "notes.md").write_text("ignored")
    return folder


def file_contents(target: Path) -> dict[str, bytes]:
    return {
        path.relative_to(target).as_posix(): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()
    }


def test_skipped_input_is_counted_and_the_rest_is_written(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path / "good")
    (raw / "bad.txt").write_bytes(b"\xff")
    (raw / "few.jsonl").write_text('5\n{"body": "x"}\n')
    counts = write_cleaned_corpus(raw, tmp_path / "rest", CorpusSettings(on_bad_input="skip"))
    assert (counts.skipped_files, counts.skipped_records, counts.files) == (1, 2, 5)
    assert CleanedCorpus(tmp_path / "rest").digest() == CleanedCorpus(tmp_path / "good").digest()
    replaced = write_cleaned_corpus(
        raw, tmp_path / "more", CorpusSettings(on_bad_input="skip", encoding_errors="replace")
    )
    assert (replaced.skipped_files, replaced.documents_read) == (0, counts.documents_read + 1)


def test_texts_that_exceed_an_arrow_column_together_are_written_in_several_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_TEXT_BYTES", 1000)
    (tmp_path / "raw").mkdir()
    lines = [json.dumps(f"{number} " + "x" * 600) for number in range(9)]
    (tmp_path / "raw" / "a.jsonl").write_text("\n".join(lines))
    counts = write_cleaned_corpus(tmp_path / "raw", tmp_path / "out", CorpusSettings(heldout_fraction=0.3))
    assert counts.train_documents + counts.heldout_documents == 9
    (tmp_path / "raw" / "b.jsonl").write_text(json.dumps("\ufdfa" * 300))  # NFKC replaces each by 18 characters
    with pytest.raises(InputError, match=r"b\.jsonl:1: the text has .* bytes after cleaning"):
        write_cleaned_corpus(
            tmp_path / "raw", tmp_path / "out", CorpusSettings(heldout_fraction=0.3, normalization="NFKC")
        )


def test_documents_are_clean_unique_counted_and_in_their_split(raw: Path, tmp_path: Path) -> None:
    counts = write_cleaned_corpus(raw, tmp_path / "out", CorpusSettings(heldout_fraction=0.2))
    corpus = CleanedCorpus(tmp_path / "out")
    expected = [*TEXTS[:120], "é\n", *TEXTS[120:]]
    for split in SPLITS:
        in_split = [text for text in expected if is_heldout(document_id(text), 0.2) == (split == "heldout")]
        assert list(corpus.texts(split)) == in_split
        assert list(corpus.documents(split)) == [(document_id(text), text) for text in in_split]
        assert corpus.count(split) == len(in_split)
    assert counts == CorpusCounts(
        files=3,
        files_ignored=1,
        documents_read=223,
        bytes_read=sum(path.stat().st_size for path in raw.rglob("*.json*")),
        train_documents=corpus.count("train"),
        train_bytes=sum(len(text.encode()) for text in corpus.texts("train")),
        heldout_documents=corpus.count("heldout"),
        heldout_bytes=sum(len(text.encode()) for text in corpus.texts("heldout")),
        dropped_empty=2,
        dropped_duplicates=20,
        control_characters_dropped=3,
        normalized_documents=1,
    )


def test_parts_have_the_schema_with_sources_and_sizes(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path)
    table = pq.read_table(tmp_path / "train" / "part-00000.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["source"][0].as_py() == "a.jsonl:1"
    assert table["bytes"].to_pylist() == [len(text.encode()) for text in table["text"].to_pylist()]


def test_same_input_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path / "one")
    write_cleaned_corpus(raw, tmp_path / "two")
    assert file_contents(tmp_path / "one") == file_contents(tmp_path / "two")


def test_document_stays_in_its_split_when_other_files_change(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path / "before", CorpusSettings(heldout_fraction=0.3))
    (raw / "0.jsonl").write_text('"a new first document"\n')
    (raw / "sub" / "b.jsonl").unlink()
    write_cleaned_corpus(raw, tmp_path / "after", CorpusSettings(heldout_fraction=0.3))
    before, after = CleanedCorpus(tmp_path / "before"), CleanedCorpus(tmp_path / "after")
    assert not set(before.texts("train")) & set(after.texts("heldout"))
    assert not set(before.texts("heldout")) & set(after.texts("train"))


def test_large_corpus_has_several_parts_and_row_groups(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ROW_GROUP_BYTES", 500)
    monkeypatch.setattr(parts, "_PART_BYTES", 2000)
    counts = write_cleaned_corpus(raw, tmp_path)
    paths = sorted((tmp_path / "train").iterdir())
    assert [path.name for path in paths][:2] == ["part-00000.parquet", "part-00001.parquet"]
    assert pq.ParquetFile(paths[0]).num_row_groups > 1
    corpus = CleanedCorpus(tmp_path)
    assert corpus.count("train") == counts.train_documents
    assert sorted([*corpus.texts("train"), *corpus.texts("heldout")]) == sorted([*TEXTS, "é\n"])


def test_max_texts_limits_the_texts(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path)
    corpus = CleanedCorpus(tmp_path)
    assert list(corpus.texts("train", max_texts=3)) == list(corpus.texts("train"))[:3]


def test_progress_ends_at_the_total_bytes(raw: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_cleaned_corpus(raw, tmp_path, progress=lambda done, total: calls.append((done, total)))
    total = sum(path.stat().st_size for path in raw.rglob("*.json*"))
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_new_corpus_replaces_the_old_one_completely(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small:
        small.setattr(parts, "_ROW_GROUP_BYTES", 500)
        small.setattr(parts, "_PART_BYTES", 2000)
        write_cleaned_corpus(raw, tmp_path / "out")
    write_cleaned_corpus(raw, tmp_path / "out")
    assert list(file_contents(tmp_path / "out")) == ["heldout/part-00000.parquet", "train/part-00000.parquet"]


def test_error_leaves_the_old_corpus_and_no_other_files(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path / "out")
    before = file_contents(tmp_path / "out")
    (raw / "z.jsonl").write_text('{"body": "x"}')
    with pytest.raises(InputError, match=r"z\.jsonl:1"):
        write_cleaned_corpus(raw, tmp_path / "out")
    assert file_contents(tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(SPLITS)


@pytest.mark.parametrize("name", ["train", "train/my.txt", "heldout/part-0-spark.parquet"])
def test_foreign_files_in_the_target_are_not_deleted(raw: Path, tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("precious")
    with pytest.raises(InputError, match=rf"out/{name}: .*--cleaned-corpora-dir"):
        write_cleaned_corpus(raw, tmp_path / "out")
    assert foreign.read_text() == "precious"


def test_empty_train_split_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('""\n"\\t"\n')
    with pytest.raises(InputError, match=r"of 2 read, 2 were empty, 0 duplicates and 0 held out.*Add documents"):
        write_cleaned_corpus(tmp_path, tmp_path / "out")
    (tmp_path / "a.jsonl").write_text('"x"\n"x"\n')
    settings = CorpusSettings.model_construct(heldout_fraction=1.0)
    with pytest.raises(InputError, match=r"1 duplicates and 1 held out \(fraction 1\.0.*lower --heldout-fraction"):
        write_cleaned_corpus(tmp_path, tmp_path / "out", settings)


def test_empty_heldout_split_is_refused(raw: Path, tmp_path: Path) -> None:
    settings = CorpusSettings(heldout_fraction=1e-6)
    with pytest.raises(InputError, match=r"fraction 1e-06 of 201.*Raise --heldout-fraction"):
        write_cleaned_corpus(raw, tmp_path / "out", settings)


@pytest.mark.parametrize("split", SPLITS)
def test_missing_corpus_is_refused_with_the_command_that_builds_it(tmp_path: Path, split: Split) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path}/{split}: the cleaned corpus is missing.*Run `ivr init`"):
        next(CleanedCorpus(tmp_path).texts(split))


def test_damaged_part_is_named(raw: Path, tmp_path: Path) -> None:
    write_cleaned_corpus(raw, tmp_path)
    part = tmp_path / "train" / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    for start, end in ((40, 400), (len(data) - 8, len(data))):  # a page, then the footer
        data[start:end] = b"\0" * (end - start)
        part.write_bytes(data)
        with pytest.raises(InputError, match=r"train/part-00000\.parquet: cannot be read \("):
            list(CleanedCorpus(tmp_path).documents("train"))


MEASURE = """
import sys
from pathlib import Path
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

root = Path(sys.argv[1])
peaks = []
for name in ("small", "large"):
    write_cleaned_corpus(root / name, root / "out")
    sum(len(text) for text in CleanedCorpus(root / "out").texts("train"))
    peaks.append(peak())
print(*peaks)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    for name, megabytes in (("small", 20), ("large", 64)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "a.txt").open("w") as file:
            for number in range(megabytes * 1_000_000 // 130):
                file.write(
                    f"Paragraph {number:09d} of a large file, as long as a paragraph of prose is. "
                    + "word " * 10
                    + "\n\n"
                )
    # in another process, because the peak of the test runner may be higher
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], check=True, capture_output=True, text=True, timeout=120
    )
    small, large = (int(kilobytes) / 1024 for kilobytes in done.stdout.split())
    assert large - small < 30, f"{small:.0f} MB of memory for 20 MB of text, {large:.0f} MB for 64 MB"
