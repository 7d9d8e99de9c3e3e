"""The tokenizer side of the pipeline, compared with peers built from public libraries in the same run.

| measured | peer |
|---|---|
| encoding the corpus | `tokenizers.encode_batch_fast` on all cores |
| the stage analyze | a Python loop over `tokenizer(batch)`, as in gpt2-ivr |
| distillation | a new `UnigramTrainer`, as in gpt2-ivr |
| encoding with the distilled tokenizer and both forms of the remapped one | the base tokenizer |

The text is the embedded sample corpus, or `--corpus DIR`. Figures go to benchmarks/results/CORPUS.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from benchmarks.record import save
from ivr_dagster.core.corpus.cleaned import CleanedCorpus, CorpusCounts, write_cleaned_corpus
from ivr_dagster.core.tokenizer.agreement import compare_lengths, count_tokens, measure_agreement, measure_round_trip
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.segments import encode_each
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokens.counts import (
    PretokenCounts,
    count_pretokens,
    counts_table,
    frequency_table,
    token_frequencies,
)
from ivr_dagster.core.tokens.sequences import gigatoken_encoder, ids_of_types, pretoken_encoder, reference_encoder
from ivr_dagster.core.tokens.statistics import read_statistics
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.core.vocabulary.remap import remap_tokenizer, unaffected_types, unreachable_tokens
from ivr_dagster.core.vocabulary.selection import plan_selection
from ivr_dagster.core.vocabulary.table import rules_from_table
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.sample.corpus import write_sample_corpus
from ivr_dagster.settings import SelectionSettings
from ivr_dagster.storage.shard_cache import ShardCache

EXCEPTIONS = 10_000  # the default of the setting
TURNS, TIMED_TEXTS = 5, 200
PEER_BATCH = 1_000
T = TypeVar("T")


def timed(work: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The result, and the shortest wall-clock time of `repeats` runs in seconds."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return result, best


def relative_speed(base: Tokenizer, other: Tokenizer, texts: list[str]) -> float:
    """Encoding speed of `other` divided by that of `base`: the best of several alternating turns each."""
    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for n, each in enumerate((base, other)):
            _, seconds = timed(partial(each.encode_batch_fast, texts, add_special_tokens=False))
            best[n] = min(best[n], seconds)
    return best[0] / best[1]


def count_equal_ids(base: Tokenizer, other: Tokenizer) -> int:
    """How many of the base tokenizer's strings have the same id in `other`."""
    return sum(other.token_to_id(string) == number for string, number in base.get_vocab().items())


def without_merges(base: Tokenizer) -> Tokenizer:
    """The base with one id for every pre-token: no vocabulary with the same pre-tokens is faster."""
    specification = json.loads(base.to_str())
    specification["model"] = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    specification |= {"added_tokens": [], "post_processor": None}
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(specification))
    return tokenizer


def train_unigram(base: Tokenizer, texts: list[str]) -> Tokenizer:
    """The peer of distillation: a Unigram vocabulary of the base's size, trained on the corpus."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = base.decoder
    trainer = trainers.UnigramTrainer(
        vocab_size=base.get_vocab_size(), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def analyze(corpus: CleanedCorpus, tokenizer: Path, folder: Path) -> None:
    """The stage analyze without Dagster: counts, frequencies, id sequences."""
    statistics = read_statistics(corpus, tokenizer / "tokenizer.json", ShardCache(folder / "results"))
    base = read_tokenizer(tokenizer / "tokenizer.json")
    pretokens, _ = statistics.pretoken_counts()
    counts_table(pretokens).write_parquet(folder / "counts.parquet", compression="zstd")
    frequencies = token_frequencies(pretokens, base, ids_of_types(base, pretokens.types))
    if (statistics.frequencies(len(frequencies)) != frequencies).any():
        raise RuntimeError("sequences and counts disagree")
    frequency_table(strings_by_id(base), frequencies).write_parquet(folder / "frequencies.parquet")
    (folder / "sequences").mkdir()
    statistics.write_sequences(folder / "sequences")


def analyze_in_a_loop(corpus: CleanedCorpus, tokenizer: Path, folder: Path) -> None:
    """The peer of analyze: frequencies and id sequences from a Python loop over batches."""
    encode = AutoTokenizer.from_pretrained(tokenizer)
    encode.model_max_length = sys.maxsize
    texts = list(corpus.texts("train"))
    frequencies: Counter[int] = Counter()
    sequences: list[list[int]] = []
    for start in range(0, len(texts), PEER_BATCH):
        for ids in encode(texts[start : start + PEER_BATCH], add_special_tokens=False)["input_ids"]:
            frequencies.update(ids)
            sequences.append(ids)
    pq.write_table(pa.table({"ids": sequences}), folder / "sequences.parquet")
    rows = [(i, encode.convert_ids_to_tokens(i), encode.decode([i]), n) for i, n in sorted(frequencies.items())]
    columns = zip(("token_id", "token", "text", "frequency"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(column) for name, column in columns}), folder / "frequencies.parquet")


@dataclass(frozen=True)
class Corpus:
    """A cleaned corpus and its statistics under the base tokenizer."""

    base: Tokenizer
    counts: CorpusCounts
    train: list[str]
    heldout: list[str]

    @cached_property
    def bpe(self) -> ByteLevelBPE:
        return read_bpe(self.base)

    @cached_property
    def pretokens(self) -> PretokenCounts:
        return count_pretokens(self.train, self.base)

    @cached_property
    def heldout_pretokens(self) -> PretokenCounts:
        return count_pretokens(self.heldout, self.base)

    @property
    def timed_texts(self) -> list[str]:
        """The texts on which encoding speeds are measured."""
        return self.heldout + self.train[:TIMED_TEXTS]

    def megabytes_per_second(self, seconds: float) -> float:
        return self.counts.train_bytes / 1e6 / seconds


def measure_analysis(raw: Path, tokenizer: Path, base: Tokenizer) -> tuple[Corpus, dict[str, Any]]:
    """Clean the corpus and analyze it in both ways."""
    with tempfile.TemporaryDirectory() as folder:
        counts, seconds = timed(lambda: write_cleaned_corpus(raw, Path(folder) / "cleaned"))
        cleaned = CleanedCorpus(Path(folder) / "cleaned")
        corpus = Corpus(base, counts, list(cleaned.texts("train")), list(cleaned.texts("heldout")))
        figures = {"clean_mb_per_s": corpus.megabytes_per_second(seconds)}
        for key, work in (("analyze_seconds", analyze), ("peers_analyze_seconds", analyze_in_a_loop)):
            place = Path(folder) / key
            place.mkdir()
            figures[key] = timed(partial(work, cleaned, tokenizer, place))[1]
    return corpus, figures


def measure_encoding(corpus: Corpus) -> dict[str, Any]:
    """Counting and encoding. A new tokenizer for every run, because encoders cache what they have seen."""
    specification = corpus.base.to_str()

    def encode() -> list[np.ndarray]:
        new = Tokenizer.from_str(specification)
        return (gigatoken_encoder(new) or pretoken_encoder(new, corpus.pretokens.types))(corpus.train)

    _, seconds_count = timed(lambda: corpus.pretokens)
    ids, seconds = timed(encode, 3)
    expected, seconds_peer = timed(lambda: reference_encoder(corpus.base)(corpus.train), 3)
    if any((a != b).any() for a, b in zip(ids, expected, strict=True)):
        raise RuntimeError("the fast encoder and tokenizers disagree")
    return {
        "count_mb_per_s": corpus.megabytes_per_second(seconds_count),
        "encode_mb_per_s": corpus.megabytes_per_second(seconds),
        "encode_against_encode_batch_fast": seconds_peer / seconds,
    }


def measure_distillation(corpus: Corpus, unseen: list[Path]) -> dict[str, Any]:
    """Distillation with and without exceptions, and a newly trained Unigram vocabulary."""
    base, train, heldout = corpus.base, corpus.pretokens, corpus.heldout_pretokens
    plain, seconds_plain = timed(lambda: distill(base, corpus.bpe))
    distillation, seconds_exceptions = timed(lambda: distill(base, corpus.bpe, train, exceptions=EXCEPTIONS))
    distilled = Tokenizer.from_str(distillation.tokenizer.to_str())  # as loaded from its file
    peer, seconds_peer = timed(lambda: train_unigram(base, corpus.train))

    def agreement(tokenizer: Tokenizer, pretokens: PretokenCounts) -> float:
        return measure_agreement(base, tokenizer, pretokens).share

    return {
        "distill_seconds": seconds_plain + seconds_exceptions,
        "scores_repaired": len(distillation.raised),
        "exceptions": len(distillation.exceptions),
        "agreement_train_plain": agreement(plain.tokenizer, train),
        "agreement_heldout_plain": agreement(plain.tokenizer, heldout),
        "agreement_train": agreement(distilled, train),
        "agreement_heldout": agreement(distilled, heldout),
        "agreement_unseen": {
            file.stem: agreement(distilled, count_pretokens(file.read_text(encoding="utf-8").split("\n\n\n"), base))
            for file in unseen
        },
        "round_trip_distilled": measure_round_trip(distilled, corpus.heldout).is_exact,
        "encoding_speed_plain": relative_speed(base, plain.tokenizer, corpus.timed_texts),
        "encoding_speed_distilled": relative_speed(base, distilled, corpus.timed_texts),
        "encoding_speed_limit": relative_speed(base, without_merges(base), corpus.timed_texts),
        "ids_kept": count_equal_ids(base, distilled),
        "unigram_trainer_seconds": seconds_peer,
        "unigram_trainer_ids_kept": count_equal_ids(base, peer),
        "unigram_trainer_agreement": agreement(peer, heldout),
    }


def measure_saving(corpus: Corpus, scope: Any, size: int) -> dict[str, Any]:
    """Select `size` new tokens and remap the tokenizer."""
    base, bpe, pretokens = corpus.base, corpus.bpe, corpus.pretokens
    frequencies = token_frequencies(pretokens, base)
    plan, seconds_select = timed(
        partial(
            plan_selection,
            base,
            bpe,
            pretokens,
            frequencies,
            corpus.train,
            corpus.heldout,
            SelectionSettings(max_candidates=size, merge_scope=scope),
        )
    )
    rules = rules_from_table(plan.table)
    remapped, seconds_remap = timed(partial(remap_tokenizer, base, bpe, rules))
    remapped_ids = encode_each(remapped, pretokens.types)
    distillation, seconds_distill = timed(
        partial(distill, remapped, read_bpe(remapped), pretokens, exceptions=EXCEPTIONS, base_ids=remapped_ids)
    )
    unigram = Tokenizer.from_str(distillation.tokenizer.to_str())
    lengths, unigram_lengths = (compare_lengths(base, each, corpus.heldout) for each in (remapped, unigram))
    unaffected = unaffected_types(base, remapped, rules, pretokens)
    print(f"{scope} {size}: {lengths.saving:.2%}", file=sys.stderr)
    return {
        "scope": scope,
        "new_tokens": len(rules),
        "token_saving": lengths.saving,
        "token_saving_unigram": unigram_lengths.saving,
        "bytes_per_token": lengths.bytes / lengths.other,
        "documents": lengths.texts,
        "documents_longer": lengths.longer,
        "unreachable": sum(len(unreachable_tokens(each, rules)) for each in (remapped, unigram)),
        "ids_kept": count_equal_ids(base, remapped),
        "round_trip": all(measure_round_trip(each, corpus.heldout).is_exact for each in (remapped, unigram)),
        "untouched_types": len(unaffected),
        "untouched_types_identical": sum(same for _, same in unaffected),
        "agreement_train": measure_agreement(remapped, unigram, pretokens, base_ids=remapped_ids).share,
        "agreement_heldout": measure_agreement(remapped, unigram, corpus.heldout_pretokens).share,
        "exceptions": len(distillation.exceptions),
        "select_seconds": seconds_select,
        "remap_seconds": seconds_remap + seconds_distill,
        "encoding_speed_against_base": relative_speed(base, remapped, corpus.timed_texts),
        "encoding_speed_unigram": relative_speed(base, unigram, corpus.timed_texts),
    }


def measure(raw: Path, tokenizer: Path, sizes: list[int], scopes: list[str], unseen: list[Path]) -> dict[str, Any]:
    """All figures of one corpus."""
    base = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    corpus, figures = measure_analysis(raw, tokenizer, base)
    return {
        "corpus": raw.name,
        "train_bytes": corpus.counts.train_bytes,
        "heldout_bytes": corpus.counts.heldout_bytes,
        "vocabulary_size": corpus.bpe.size,
        "bytes_per_token_base": corpus.counts.heldout_bytes / count_tokens(base, corpus.heldout)[0],
        **figures,
        **measure_encoding(corpus),
        **measure_distillation(corpus, unseen),
        "savings": [measure_saving(corpus, scope, size) for scope in scopes for size in sizes],
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of docs/results/tokenizers.md."""
    r = result
    last = r["savings"][-1] if r["savings"] else {"select_seconds": 0.0, "remap_seconds": 0.0}
    rows = [
        f"encoding the corpus, relative to `encode_batch_fast` | {r['encode_against_encode_batch_fast']:.1f} × | 1 ×",
        f"ids kept by distillation | {r['ids_kept']:,} | {r['unigram_trainer_ids_kept']:,}",
        f"agreement, train pre-tokens ({r['exceptions']:,} exceptions) | {r['agreement_train']:.4%} | ",
        f"agreement, held-out pre-tokens | {r['agreement_heldout']:.4%} | {r['unigram_trainer_agreement']:.3%}",
        "… from scores alone, train / held-out "
        f"| {r['agreement_train_plain']:.4%} / {r['agreement_heldout_plain']:.4%} | ",
        *(f"agreement, {name} | {share:.4%} | " for name, share in r["agreement_unseen"].items()),
        f"round trip of held-out documents | {'exact' if r['round_trip_distilled'] else 'NOT EXACT'} | ",
        "encoding speed of the distilled tokenizer, base = 1 (without exceptions) "
        f"| {r['encoding_speed_distilled']:.2f} × ({r['encoding_speed_plain']:.2f} ×) | ",
        f"… of a tokenizer that gives every pre-token one id | {r['encoding_speed_limit']:.2f} × | ",
        f"analysis, seconds | {r['analyze_seconds']:.1f} | {r['peers_analyze_seconds']:.1f}",
        f"distillation, seconds | {r['distill_seconds']:.1f} | {r['unigram_trainer_seconds']:.1f}",
        "selection and remapping (last row below), seconds "
        f"| {last['select_seconds']:.1f} + {last['remap_seconds']:.1f} | ",
    ]
    failed = [s for s in r["savings"] if s["unreachable"] or not s["round_trip"]]
    return "\n".join(
        [
            f"{r['corpus']}, {r['train_bytes'] / 1e6:.1f} MB train, {r['heldout_bytes'] / 1e6:.2f} MB held out",
            "",
            "| | ours | peer in the same run |",
            "|---|---:|---:|",
            *(f"| {row} |" for row in rows),
            "",
            "| new tokens | scope | token saving, held-out: BPE / Unigram | bytes per token | documents longer "
            "| other text unchanged | Unigram = BPE, train / held-out | encoding speed, base = 1: BPE / Unigram |",
            "|---:|---|---:|---:|---:|---:|---:|---:|",
            f"| 0 | | | {r['bytes_per_token_base']:.2f} | | | | 1 × |",
            *(
                f"| {s['new_tokens']:,} | {s['scope']} | {s['token_saving']:.2%} / {s['token_saving_unigram']:.2%} "
                f"| {s['bytes_per_token']:.2f} | {s['documents_longer']} of {s['documents']:,} "
                f"| {s['untouched_types_identical'] / max(s['untouched_types'], 1):.2%} "
                f"| {s['agreement_train']:.4%} / {s['agreement_heldout']:.3%} "
                f"| {s['encoding_speed_against_base']:.2f} × / {s['encoding_speed_unigram']:.2f} × |"
                for s in r["savings"]
            ),
            "",
            f"Rows with unreachable new tokens or an inexact round trip: {len(failed)} of {len(r['savings'])}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of raw text (default: the embedded sample corpus)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 4000], help="numbers of new tokens (default: 1000 4000)"
    )
    parser.add_argument("--scopes", nargs="+", default=["within", "across"], choices=["within", "across"])
    parser.add_argument("--tokenizer", type=Path, default=SAMPLE_MODEL, help="folder of a base tokenizer")
    parser.add_argument("--unseen", type=Path, nargs="+", default=[], help="text files to measure agreement on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.corpus or write_sample_corpus(Path(folder) / "sample").path
        result = measure(raw, arguments.tokenizer, arguments.sizes, arguments.scopes, arguments.unseen)
    save(result["corpus"], result, "gigatoken polars pyarrow regex tokenizers transformers")
    print(as_markdown(result))


if __name__ == "__main__":
    main()
