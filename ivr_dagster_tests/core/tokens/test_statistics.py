"""Statistics by parts against those of the texts as a whole."""

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

from ivr_dagster.core.corpus import cleaned
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.tokens import statistics
from ivr_dagster.core.tokens.counts import count_pretokens, token_frequencies
from ivr_dagster.core.tokens.sequences import TokenSequences, reference_encoder
from ivr_dagster.core.tokens.statistics import CorpusStatistics, read_statistics
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.shard_cache import ShardCache


@pytest.fixture
def raw(tmp_path: Path, topics: list[str]) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for n in range(6):
        texts = [f"{n} {text} <|endoftext|>" for text in topics[n * 6 : n * 6 + 12]]
        (folder / f"{n}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


@pytest.fixture
def corpus(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CleanedCorpus:
    monkeypatch.setattr(cleaned, "_ROW_GROUP_BYTES", 60_000)
    monkeypatch.setattr(cleaned, "_PART_BYTES", 150_000)
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
@pytest.mark.parametrize("reference", [False, True])
def test_parts_add_up_to_what_the_whole_text_holds(
    corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, max_texts: int, reference: bool
) -> None:
    base = Tokenizer.from_file(str(tokenizer))
    found = read(corpus, tokenizer, tmp_path, max_texts=max_texts, reference=reference)
    texts = list(corpus.texts("train", max_texts=max_texts or None))
    assert len(found.places) > 1
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
    }
    (tmp_path / "sequences").mkdir()
    found.write_sequences(tmp_path / "sequences")
    for ids, text in zip(TokenSequences(tmp_path / "sequences"), texts, strict=True):
        assert ids.tolist() == reference_encoder(base)([text])[0].tolist()


def test_the_most_frequent_types_are_kept_however_counts_are_added_up(
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


def test_sums_of_sums_are_those_of_the_whole_and_only_those_on_the_way_to_a_change_are_made_anew(
    raw: Path, corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read(corpus, tokenizer, tmp_path / "plain")
    assert plain.sums == plain.places
    monkeypatch.setattr(statistics, "MOST_SUMS", 2)
    monkeypatch.setattr(statistics, "SUMMED", 2)
    made: list[Path] = []
    write = statistics._write_sum
    monkeypatch.setattr(statistics, "_write_sum", lambda places, target: made.append(target) or write(places, target))
    summed = read(corpus, tokenizer, tmp_path)
    size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    assert len(summed.sums) <= 2 < len(summed.places) == len(plain.places)
    first = len(made)
    assert first
    assert_equal(summed, plain, size)

    made.clear()
    assert_equal(read(corpus, tokenizer, tmp_path), plain, size)
    assert made == []
    read(corpus, tokenizer, tmp_path, max_texts=30)
    read(corpus, tokenizer, tmp_path, reference=True)
    made.clear()
    assert_equal(read(corpus, tokenizer, tmp_path), plain, size)
    assert made == []
    with (raw / "5.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    changed = clean(raw, tmp_path)
    after = read(changed, tokenizer, tmp_path)
    assert 0 < len(made) <= first
    assert_equal(after, read(changed, tokenizer, tmp_path / "anew"), size)


def assert_equal(one: CorpusStatistics, other: CorpusStatistics, size: int) -> None:
    np.testing.assert_array_equal(one.frequencies(size), other.frequencies(size))
    assert one.totals == other.totals
    (counts, types), (others_counts, others_types) = one.pretoken_counts(), other.pretoken_counts()
    assert (counts.types, counts.added, types) == (others_counts.types, others_counts.added, others_types)
    np.testing.assert_array_equal(counts.counts, others_counts.counts)


def test_of_a_changed_corpus_only_what_changed_is_counted(
    raw: Path, corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path
) -> None:
    before = read(corpus, tokenizer, tmp_path)
    times = {place: place.stat().st_mtime_ns for place in before.places}
    with (raw / "5.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    changed = clean(raw, tmp_path)
    after = read(changed, tokenizer, tmp_path)
    assert len(set(after.places) - set(before.places)) == 1
    assert all(place.stat().st_mtime_ns == times[place] for place in after.places if place in times)
    assert not (set(before.places) - set(after.places)).pop().exists()
    assert after.totals == read(changed, tokenizer, tmp_path / "anew").totals


def test_another_tokenizer_at_the_same_place_is_noticed(
    corpus: CleanedCorpus, tmp_path: Path, gpt2: Tokenizer, tiny_bpe: Tokenizer
) -> None:
    tokens = []
    for base in (gpt2, tiny_bpe):
        base.save(str(tmp_path / "tokenizer.json"))
        tokens.append(read(corpus, tmp_path / "tokenizer.json", tmp_path).totals["tokens"])
    assert tokens[0] < tokens[1]


def test_progress_tells_all_documents(corpus: CleanedCorpus, tokenizer: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    read_statistics(
        corpus, tokenizer, ShardCache(tmp_path / "results"), progress=lambda *progress: told.append(progress)
    )
    assert told == sorted(told)
    assert told[-1] == (corpus.count("train"), corpus.count("train"))


def most_frequent(
    parts: list[dict[str, int]], most: int, rows: int, folder: Path, hash_of: Callable[[str], int]
) -> tuple[list[tuple[str, int]], int]:
    """What is kept of these counts, and of how many types, where so many rows are looked at at once."""
    places = []
    for number, counts in enumerate(parts):
        places.append(folder / str(number))
        places[-1].mkdir()
        found = sorted((hash_of(pretoken), pretoken, count) for pretoken, count in counts.items())
        schema = {"hash": pl.UInt64, "pretoken": pl.String, "count": pl.Int64}
        pl.DataFrame(found, schema=schema, orient="row").write_parquet(places[-1] / "pretokens.parquet")
        (places[-1] / "summary.json").write_text(json.dumps({"rows": len(found), "added": {}}))
    (folder / "counts").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MERGED_ROWS", rows)
        patch.setattr(statistics, "SUMMED_HASHES", rows)
        statistics._write_counts((places, most), folder / "counts")
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
def test_types_that_share_a_hash_are_counted_apart(
    parts: list[dict[str, int]], most: int, hashes: int, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def hash_of(pretoken: str) -> int:
        return zlib.crc32(pretoken.encode()) % hashes * (2**64 // hashes)

    kept, _ = most_frequent(parts, most, rows, tmp_path_factory.mktemp("collisions"), hash_of)
    assert kept == by_frequency(parts)[:most]


@pytest.mark.parametrize("rows", [10_000, 1_000, 150])
@pytest.mark.parametrize("greatest", [1, 3, 1_000_000])
@pytest.mark.parametrize("most", [1, 60, 237, 449, 2_000])
def test_the_most_frequent_of_many_types_are_found_in_however_many_steps(
    most: int, greatest: int, rows: int, tmp_path: Path
) -> None:
    draw = np.random.default_rng(most + greatest + rows)
    parts = [{f"type {n}": int(draw.integers(1, greatest + 1)) for n in draw.permutation(900)[:450]} for _ in range(2)]

    def hash_of(pretoken: str) -> int:
        return int.from_bytes(hashlib.blake2b(pretoken.encode(), digest_size=8).digest(), "little")

    expected = by_frequency(parts)
    assert most_frequent(parts, most, rows, tmp_path, hash_of) == (expected[:most], len(expected))


# if it changes, raise `statistics.STATISTICS`, or what is kept of parts would be taken for the new
DIGEST = "2801c2be4b5754fefa69f5d0428df88f"


def test_what_counting_gives_is_what_it_gave(tmp_path: Path, gpt2: Tokenizer) -> None:
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
    assert (statistics.STATISTICS[0], digest) == (3, DIGEST)


KEYS = st.lists(st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}"), min_size=2, max_size=200, unique=True)


@given(KEYS)
def test_neighbours_are_grouped_in_order_none_alone(keys: list[str]) -> None:
    groups = list(statistics._groups(keys))
    assert [key for group in groups for key in group] == keys
    assert all(2 <= len(group) <= 4 * statistics.SUMMED + 1 for group in groups)


def test_a_key_that_changes_changes_its_own_group_and_at_most_the_next() -> None:
    keys = [hashlib.blake2b(bytes([n % 256, n // 256]), digest_size=16).hexdigest() for n in range(1_000)]
    before = {tuple(group) for group in statistics._groups(keys)}
    for place in range(0, 1_000, 50):
        changed = [*keys[:place], "f" * 32, *keys[place + 1 :]]
        assert len({tuple(group) for group in statistics._groups(changed)} - before) <= 2
