"""Statistics summed over parts, compared with those of the whole text."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ivr_dagster.core.corpus import parts
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.tokens import statistics
from ivr_dagster.core.tokens.counts import count_pretokens, token_frequencies
from ivr_dagster.core.tokens.sequences import Encoder, TokenSequences, gigatoken_encoder, reference_encoder
from ivr_dagster.core.tokens.statistics import CorpusStatistics, read_statistics
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import ShardCache


@pytest.fixture
def raw(tmp_path: Path, topics: list[str]) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for n in range(6):
        texts = [f"{n} {text} <|endoftext|>" for text in topics[n * 3 : n * 3 + 6]]
        (folder / f"{n}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


@pytest.fixture
def corpus(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CleanedCorpus:
    monkeypatch.setattr(parts, "_ROW_GROUP_BYTES", 20_000)
    monkeypatch.setattr(parts, "_PART_BYTES", 30_000)
    return clean(raw, tmp_path)


def clean(raw: Path, folder: Path) -> CleanedCorpus:
    write_cleaned_corpus(raw, folder / "cleaned")
    return CleanedCorpus(folder / "cleaned")


@pytest.fixture(params=["GPT-2", "tiny"])
def tokenizer(request: pytest.FixtureRequest, gpt2: Tokenizer, tiny_bpe: Tokenizer, tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    (gpt2 if request.param == "GPT-2" else tiny_bpe).save(str(file))
    return file


def read(corpus: CleanedCorpus, tokenizer: Path, folder: Path, **options: int) -> CorpusStatistics:
    return read_statistics(corpus, tokenizer, ShardCache(folder / "results"), **options)


@pytest.mark.parametrize("max_texts", [0, 40])
def test_parts_sum_to_the_statistics_of_the_whole_text(
    corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, max_texts: int
) -> None:
    base = Tokenizer.from_file(str(tokenizer))
    found = read(corpus, tokenizer, tmp_path, max_texts=max_texts)
    texts = list(corpus.texts("train", max_texts=max_texts or None))
    assert len(found.parts) > 1
    expected = count_pretokens(texts, base)
    counts, types = found.pretoken_counts()
    assert (counts.types, counts.added, counts.bytes, counts.texts) == (
        expected.types,
        expected.added,
        expected.bytes,
        len(texts),
    )
    np.testing.assert_array_equal(counts.counts, expected.counts)
    assert types == len(expected.types)
    frequencies = token_frequencies(expected, base)
    np.testing.assert_array_equal(found.frequencies(len(frequencies)), frequencies)
    assert found.totals == {
        "texts": len(texts),
        "bytes": expected.bytes,
        "pretokens": expected.occurrences,
        "tokens": frequencies.sum(),
        "reencoded": 0,
    }
    (tmp_path / "sequences").mkdir()
    found.write_sequences(tmp_path / "sequences")
    for ids, text in zip(TokenSequences(tmp_path / "sequences"), texts, strict=True):
        assert ids.tolist() == reference_encoder(base)([text])[0].tolist()


def test_inexact_encoder_is_replaced_by_tokenizers(
    corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(corpus, tokenizer, tmp_path / "exact")
    size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    one, other = np.argsort(-expected.frequencies(size))[:2]

    def swap_ids(encode: Encoder) -> Encoder:
        """Swaps two frequent ids in the middle of each sequence, without the verification on a sample."""
        return lambda texts: [np.where(ids == one, other, ids).astype(ids.dtype) for ids in encode(texts)]

    monkeypatch.setattr(statistics, "gigatoken_encoder", lambda tokenizer: swap_ids(gigatoken_encoder(tokenizer)))
    statistics._load_tools.cache_clear()
    found = read(corpus, tokenizer, tmp_path / "inexact")
    statistics._load_tools.cache_clear()
    assert found.totals["reencoded"] == found.totals["texts"]
    np.testing.assert_array_equal(found.frequencies(size), expected.frequencies(size))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert found.write_sequences(tmp_path / "a") == expected.write_sequences(tmp_path / "b")


def test_disagreement_of_the_libraries_is_an_error(
    corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = lambda tokenizer: lambda texts: [np.zeros(1, np.uint16) for _ in texts]  # noqa: E731
    monkeypatch.setattr(statistics, "gigatoken_encoder", wrong)
    monkeypatch.setattr(statistics, "reference_encoder", wrong)
    statistics._load_tools.cache_clear()
    with pytest.raises(RuntimeError, match=r"differ on \d+ ids, first on 0"):
        read(corpus, tokenizer, tmp_path)
    statistics._load_tools.cache_clear()


def test_most_frequent_types_do_not_depend_on_the_partitions(
    corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(corpus, tokenizer, tmp_path)
    whole, types = found.pretoken_counts()
    monkeypatch.setattr(statistics, "MERGED_ROWS", 1_000)
    monkeypatch.setattr(statistics, "SUMMED_HASHES", 1_500)
    counts, all_types = read(corpus, tokenizer, tmp_path, max_types=50).pretoken_counts()
    assert all_types == types == len(whole.types)
    assert counts.types == whole.types[:50]
    np.testing.assert_array_equal(counts.counts, whole.counts[:50])
    assert counts.bytes == whole.bytes


def test_sums_of_sums_are_reused_unless_a_part_of_them_changed(
    raw: Path, corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read(corpus, tokenizer, tmp_path / "plain")
    assert plain.sums == plain.parts
    monkeypatch.setattr(statistics, "MAX_SUMS", 2)
    monkeypatch.setattr(statistics, "SUM_SIZE", 2)
    computed: list[Path] = []
    write = statistics._write_sum
    monkeypatch.setattr(statistics, "_write_sum", lambda task, target: computed.append(target) or write(task, target))
    summed = read(corpus, tokenizer, tmp_path)
    size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    assert len(summed.sums) <= 2 < len(summed.parts) == len(plain.parts)
    first = len(computed)
    assert first
    assert_equal(summed, plain, size)

    computed.clear()
    assert_equal(read(corpus, tokenizer, tmp_path), plain, size)
    assert computed == []
    read(corpus, tokenizer, tmp_path, max_texts=30)
    computed.clear()
    assert_equal(read(corpus, tokenizer, tmp_path), plain, size)
    assert computed == []
    with (raw / "5.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    changed = clean(raw, tmp_path)
    after = read(changed, tokenizer, tmp_path)
    assert 0 < len(computed) <= first
    assert_equal(after, read(changed, tokenizer, tmp_path / "new"), size)


def assert_equal(one: CorpusStatistics, other: CorpusStatistics, size: int) -> None:
    np.testing.assert_array_equal(one.frequencies(size), other.frequencies(size))
    assert one.totals == other.totals
    (counts, types), (other_counts, other_types) = one.pretoken_counts(), other.pretoken_counts()
    assert (counts.types, counts.added, types) == (other_counts.types, other_counts.added, other_types)
    np.testing.assert_array_equal(counts.counts, other_counts.counts)


def test_changed_corpus_counts_only_changed_parts(
    raw: Path, corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path
) -> None:
    before = read(corpus, tokenizer, tmp_path)
    times = {part: part.stat().st_mtime_ns for part in before.parts}
    with (raw / "5.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    changed = clean(raw, tmp_path)
    after = read(changed, tokenizer, tmp_path)
    assert len(set(after.parts) - set(before.parts)) == 1
    assert all(part.stat().st_mtime_ns == times[part] for part in after.parts if part in times)
    assert not (set(before.parts) - set(after.parts)).pop().exists()
    assert after.totals == read(changed, tokenizer, tmp_path / "new").totals


def test_changed_tokenizer_file_is_detected(
    corpus: CleanedCorpus, tmp_path: Path, gpt2: Tokenizer, tiny_bpe: Tokenizer
) -> None:
    tokens = []
    for base in (gpt2, tiny_bpe):
        base.save(str(tmp_path / "tokenizer.json"))
        tokens.append(read(corpus, tmp_path / "tokenizer.json", tmp_path).totals["tokens"])
    assert tokens[0] < tokens[1]


def test_progress_ends_at_all_documents(corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    read_statistics(
        corpus, tokenizer, ShardCache(tmp_path / "results"), progress=lambda *progress: reported.append(progress)
    )
    assert reported == sorted(reported)
    assert reported[-1] == (corpus.count("train"), corpus.count("train"))


def most_frequent(
    parts: list[dict[str, int]], most: int, rows: int, folder: Path, hash_of: Callable[[str], int]
) -> tuple[list[tuple[str, int]], int]:
    """The types kept of these counts and the number of all types, read in partitions of `rows` rows."""
    folders = []
    for number, counts in enumerate(parts):
        folders.append(folder / str(number))
        folders[-1].mkdir()
        found = sorted((hash_of(pretoken), pretoken, count) for pretoken, count in counts.items())
        schema = {"hash": pl.UInt64, "pretoken": pl.String, "count": pl.Int64}
        pl.DataFrame(found, schema=schema, orient="row").write_parquet(folders[-1] / "pretokens.parquet")
        (folders[-1] / "summary.json").write_text(json.dumps({"rows": len(found), "added": {}}))
    (folder / "counts").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MERGED_ROWS", rows)
        patch.setattr(statistics, "SUMMED_HASHES", rows)
        statistics._write_counts((folders, most), folder / "counts")
    kept = pl.read_parquet(folder / "counts" / "pretokens.parquet").rows()
    return kept, json.loads((folder / "counts" / "summary.json").read_text())["types"]


def by_frequency(parts: list[dict[str, int]]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for counts in parts:
        total.update(counts)
    return sorted(total.items(), key=lambda each: (-each[1], each[0]))


TYPES = st.dictionaries(st.text("ab", max_size=4), st.integers(1, 9), max_size=12)


@given(
    parts=st.lists(TYPES, min_size=1, max_size=3),
    most=st.integers(1, 12),
    hashes=st.integers(1, 40),
    rows=st.integers(1, 40),
)
def test_types_with_the_same_hash_are_counted_separately(
    parts: list[dict[str, int]], most: int, hashes: int, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def hash_of(pretoken: str) -> int:
        return zlib.crc32(pretoken.encode()) % hashes * (2**64 // hashes)

    kept, _ = most_frequent(parts, most, rows, tmp_path_factory.mktemp("collisions"), hash_of)
    assert kept == by_frequency(parts)[:most]


@pytest.mark.parametrize("rows", [10_000, 1_000, 150])
@pytest.mark.parametrize("greatest", [1, 3, 1_000_000])
@pytest.mark.parametrize("most", [1, 60, 237, 449, 2_000])
def test_most_frequent_of_many_types_are_found_in_any_number_of_partitions(
    most: int, greatest: int, rows: int, tmp_path: Path
) -> None:
    draw = np.random.default_rng(most + greatest + rows)
    parts = [{f"type {n}": int(draw.integers(1, greatest + 1)) for n in draw.permutation(900)[:450]} for _ in range(2)]

    def hash_of(pretoken: str) -> int:
        return int.from_bytes(hashlib.blake2b(pretoken.encode(), digest_size=8).digest(), "little")

    expected = by_frequency(parts)
    assert most_frequent(parts, most, rows, tmp_path, hash_of) == (expected[:most], len(expected))


def test_statistics_are_unchanged_for_this_version(tmp_path: Path, gpt2: Tokenizer) -> None:
    (tmp_path / "raw").mkdir()
    texts = [f"The {n} quick\n\n  foxes' 한국어 ==== <|endoftext|>{n}" for n in range(200)]
    (tmp_path / "raw" / "a.jsonl").write_text("\n".join(map(json.dumps, texts)))
    gpt2.save(str(tmp_path / "tokenizer.json"))
    found = read(clean(tmp_path / "raw", tmp_path), tmp_path / "tokenizer.json", tmp_path)
    counts, _ = found.pretoken_counts()
    (tmp_path / "sequences").mkdir()
    found.write_sequences(tmp_path / "sequences")
    ids = [ids.tolist() for ids in TokenSequences(tmp_path / "sequences")]
    digest = content_hash(json.dumps([counts.types, counts.counts.tolist(), counts.added, ids]))
    # If this digest changes, raise STATISTICS_VERSION, or cached results of the old version would be used.
    assert (statistics.STATISTICS_VERSION[0], digest) == (4, "2801c2be4b5754fefa69f5d0428df88f")


KEYS = st.lists(st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}"), min_size=2, max_size=200, unique=True)


@given(KEYS)
def test_neighboring_keys_are_grouped_in_order_none_alone(keys: list[str]) -> None:
    groups = list(statistics._group_keys(keys))
    assert [key for group in groups for key in group] == keys
    assert all(2 <= len(group) <= 4 * statistics.SUM_SIZE + 1 for group in groups)


def test_changed_key_changes_its_group_and_at_most_one_other() -> None:
    keys = [hashlib.blake2b(bytes([n % 256, n // 256]), digest_size=16).hexdigest() for n in range(1_000)]
    before = {tuple(group) for group in statistics._group_keys(keys)}
    for place in range(0, 1_000, 50):
        changed = [*keys[:place], "f" * 32, *keys[place + 1 :]]
        assert len({tuple(group) for group in statistics._group_keys(changed)} - before) <= 2
