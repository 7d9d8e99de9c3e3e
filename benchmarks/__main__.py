"""Tokenizer side of the pipeline against peers made of public libraries, in one run.

Peers: `tokenizers.encode_batch_fast` on all cores for encoding, a Python loop over `tokenizer(batch)` for the analysis
and a fresh `UnigramTrainer` for distillation (both what gpt2-ivr does), the base tokenizer for encoding with the
result. Text is the embedded sample corpus, or `--corpus DIR`. Raw results go to benchmarks/results/ as JSON, with
versions and the machine.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from ivr_dagster.core.corpus.cleaned import CleanedCorpus, write_cleaned_corpus
from ivr_dagster.core.tokenizer.agreement import (
    compare_lengths,
    count_tokens,
    measure_agreement,
    measure_round_trip,
)
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokens.counts import count_pretokens, counts_table, frequency_table, token_frequencies
from ivr_dagster.core.tokens.sequences import gigatoken_encoder, ids_of_types, pretoken_encoder, reference_encoder
from ivr_dagster.core.tokens.statistics import read_statistics
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.core.vocabulary.remap import remap_tokenizer, unreachable_tokens
from ivr_dagster.core.vocabulary.selection import plan_selection
from ivr_dagster.core.vocabulary.table import rules_from_table
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.sample.corpus import write_sample_corpus
from ivr_dagster.settings import SelectionSettings
from ivr_dagster.storage.shard_cache import ShardCache

EXCEPTIONS = 10_000  # the default of the setting
TURNS, TIMED_TEXTS = 5, 200
PEERS_BATCH = 1_000
RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"processor": platform.machine(), "cores": os.cpu_count()}


def timed(work: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The result and the shortest of `repeats` wall-clock times, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return result, best


def speed_against(base: Tokenizer, other: Tokenizer, texts: list[str]) -> float:
    """How fast `other` encodes, `base` = 1: the shortest of several turns each, taken alternately."""
    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for n, each in enumerate((base, other)):
            started = time.perf_counter()
            each.encode_batch_fast(texts, add_special_tokens=False)
            best[n] = min(best[n], time.perf_counter() - started)
    return best[0] / best[1]


def unigram_trainer(base: Tokenizer, texts: list[str]) -> Tokenizer:
    """The peer's distillation: a Unigram vocabulary of the base's size, trained afresh on the corpus."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = base.decoder
    trainer = trainers.UnigramTrainer(
        vocab_size=base.get_vocab_size(), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def analysis(corpus: CleanedCorpus, tokenizer: Path, folder: Path) -> None:
    """The stage `analyze` without Dagster: counts, frequencies, id sequences."""
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


def peers_analysis(corpus: CleanedCorpus, tokenizer: Path, folder: Path) -> None:
    """Frequencies and id sequences by a Python loop over batches."""
    encode = AutoTokenizer.from_pretrained(tokenizer)
    encode.model_max_length = sys.maxsize
    texts = list(corpus.texts("train"))
    frequencies: Counter[int] = Counter()
    sequences: list[list[int]] = []
    for start in range(0, len(texts), PEERS_BATCH):
        for ids in encode(texts[start : start + PEERS_BATCH], add_special_tokens=False)["input_ids"]:
            frequencies.update(ids)
            sequences.append(ids)
    pq.write_table(pa.table({"ids": sequences}), folder / "sequences.parquet")
    rows = [(i, encode.convert_ids_to_tokens(i), encode.decode([i]), n) for i, n in sorted(frequencies.items())]
    columns = zip(("token_id", "token", "text", "frequency"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: list(column) for name, column in columns}), folder / "frequencies.parquet")


def measure(raw: Path, tokenizer: Path, sizes: list[int], scopes: list[str], unseen: list[Path]) -> dict[str, Any]:
    """All figures on one corpus."""
    base = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    bpe = read_bpe(base)
    with tempfile.TemporaryDirectory() as folder:
        counts, seconds_clean = timed(lambda: write_cleaned_corpus(raw, Path(folder) / "cleaned"))
        corpus = CleanedCorpus(Path(folder) / "cleaned")
        train, heldout = list(corpus.texts("train")), list(corpus.texts("heldout"))
        seconds_analysis = []
        for way in (analysis, peers_analysis):
            place = Path(folder) / way.__name__
            place.mkdir()
            seconds_analysis.append(timed(partial(way, corpus, tokenizer, place))[1])
    megabytes = counts.train_bytes / 1e6
    timed_texts = heldout + train[:TIMED_TEXTS]
    pretokens, seconds_count = timed(lambda: count_pretokens(train, base))
    # each time with what it takes to get ready, by a tokenizer of its own: an encoder remembers what it met
    specification = base.to_str()

    def encode_anew() -> list[np.ndarray]:
        own = Tokenizer.from_str(specification)
        return (gigatoken_encoder(own) or pretoken_encoder(own, pretokens.types))(train)

    ids, seconds_encode = timed(encode_anew, 3)
    expected, seconds_peer = timed(lambda: reference_encoder(base)(train), 3)
    if any((a != b).any() for a, b in zip(ids, expected, strict=True)):
        raise RuntimeError("the fast encoder and tokenizers disagree")
    plain, seconds_plain = timed(lambda: distill(base, bpe))
    distillation, seconds_exceptions = timed(lambda: distill(base, bpe, pretokens, exceptions=EXCEPTIONS))
    distilled = Tokenizer.from_str(distillation.tokenizer.to_str())  # as it comes back from its file
    fresh, seconds_fresh = timed(lambda: unigram_trainer(base, train))
    heldout_counts = count_pretokens(heldout, base)
    base_ids, distilled_ids, fresh_ids = (each.get_vocab() for each in (base, distilled, fresh))
    frequencies = token_frequencies(pretokens, base)
    savings: list[dict[str, Any]] = []
    for scope in scopes:
        for size in sizes:
            plan, seconds_select = timed(
                partial(
                    plan_selection,
                    base,
                    bpe,
                    pretokens,
                    frequencies,
                    train,
                    heldout,
                    SelectionSettings(max_candidates=size, merge_scope=scope),
                )
            )
            rules = rules_from_table(plan.table)
            remapping, seconds_remap = timed(
                partial(remap_tokenizer, base, bpe, rules, pretokens, exceptions=EXCEPTIONS)
            )
            remapped = Tokenizer.from_str(remapping.tokenizer.to_str())
            lengths = compare_lengths(base, remapped, heldout)
            savings.append(
                {
                    "scope": scope,
                    "new_tokens": len(rules),
                    "token_saving": lengths.saving,
                    "bytes_per_token": lengths.bytes / lengths.other,
                    "documents": lengths.texts,
                    "documents_longer": lengths.longer,
                    "unreachable": len(unreachable_tokens(remapped, rules)),
                    "ids_kept": sum(remapped.token_to_id(string) == i for string, i in base_ids.items()),
                    "round_trip": measure_round_trip(remapped, heldout).is_exact,
                    "select_seconds": seconds_select,
                    "remap_seconds": seconds_remap,
                    "encoding_speed_against_base": speed_against(base, remapped, timed_texts),
                }
            )
            print(f"{scope} {size}: {lengths.saving:.2%}", file=sys.stderr)
    return {
        "corpus": raw.name,
        "train_bytes": counts.train_bytes,
        "heldout_bytes": counts.heldout_bytes,
        "vocabulary_size": bpe.size,
        "bytes_per_token_base": counts.heldout_bytes / count_tokens(base, heldout)[0],
        "clean_mb_per_s": megabytes / seconds_clean,
        "count_mb_per_s": megabytes / seconds_count,
        "encode_mb_per_s": megabytes / seconds_encode,
        "encode_against_encode_batch_fast": seconds_peer / seconds_encode,
        "analyze_seconds": seconds_analysis[0],
        "peers_analyze_seconds": seconds_analysis[1],
        "distill_seconds": seconds_plain + seconds_exceptions,
        "scores_repaired": len(distillation.raised),
        "exceptions": len(distillation.exceptions),
        "agreement_train_plain": measure_agreement(base, plain.tokenizer, pretokens).share,
        "agreement_heldout_plain": measure_agreement(base, plain.tokenizer, heldout_counts).share,
        "agreement_train": measure_agreement(base, distilled, pretokens).share,
        "agreement_heldout": measure_agreement(base, distilled, heldout_counts).share,
        "agreement_unseen": {
            file.stem: measure_agreement(base, distilled, count_pretokens(_paragraphs(file), base)).share
            for file in unseen
        },
        "round_trip_distilled": measure_round_trip(distilled, heldout).is_exact,
        "encoding_speed_plain": speed_against(base, plain.tokenizer, timed_texts),
        "encoding_speed_distilled": speed_against(base, distilled, timed_texts),
        "ids_kept": sum(distilled_ids.get(string) == i for string, i in base_ids.items()),
        "unigram_trainer_seconds": seconds_fresh,
        "unigram_trainer_ids_kept": sum(fresh_ids.get(string) == i for string, i in base_ids.items()),
        "unigram_trainer_agreement": measure_agreement(base, fresh, heldout_counts).share,
        "savings": savings,
    }


def _paragraphs(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n\n\n")


def as_markdown(result: dict[str, Any]) -> str:
    """README's tables."""
    r = result
    last = r["savings"][-1] if r["savings"] else {"select_seconds": 0.0, "remap_seconds": 0.0}
    lines = [
        f"{r['corpus']}, {r['train_bytes'] / 1e6:.1f} MB to learn from, {r['heldout_bytes'] / 1e6:.2f} MB held out",
        "",
        "| | ours | peer in the same run |",
        "|---|---:|---:|",
        f"| encoding the corpus, against `encode_batch_fast` | {r['encode_against_encode_batch_fast']:.1f} × | 1 × |",
        "| distillation: ids kept, against a fresh `UnigramTrainer` "
        f"| {r['ids_kept']:,} | {r['unigram_trainer_ids_kept']:,} |",
        f"| agreement, train pre-tokens ({r['exceptions']:,} exceptions) | {r['agreement_train']:.4%} | |",
        f"| agreement, held-out pre-tokens | {r['agreement_heldout']:.4%} | {r['unigram_trainer_agreement']:.3%} |",
        f"| … by scores alone, train / held-out "
        f"| {r['agreement_train_plain']:.4%} / {r['agreement_heldout_plain']:.4%} | |",
        *(f"| agreement, {name} | {share:.4%} | |" for name, share in r["agreement_unseen"].items()),
        f"| round trip of held-out documents | {'exact' if r['round_trip_distilled'] else 'NOT EXACT'} | |",
        f"| encoding with the result, base = 1 (without exceptions) | {r['encoding_speed_distilled']:.2f} × "
        f"({r['encoding_speed_plain']:.2f} ×) | |",
        f"| analysis, seconds, against a loop over `tokenizer(batch)` | {r['analyze_seconds']:.1f} "
        f"| {r['peers_analyze_seconds']:.1f} |",
        f"| distillation, seconds | {r['distill_seconds']:.1f} | {r['unigram_trainer_seconds']:.1f} |",
        f"| selection and remapping (last line below), seconds | {last['select_seconds']:.1f} + "
        f"{last['remap_seconds']:.1f} | |",
        "",
        "| new tokens | scope | tokens saved, held-out | bytes per token | documents longer | selection, s "
        "| encoding speed, base = 1 |",
        "|---:|---|---:|---:|---:|---:|---:|",
        f"| 0 | | | {r['bytes_per_token_base']:.2f} | | | 1 × |",
    ]
    lines += [
        f"| {s['new_tokens']:,} | {s['scope']} | {s['token_saving']:.1%} | {s['bytes_per_token']:.2f} "
        f"| {s['documents_longer']} of {s['documents']:,} | {s['select_seconds']:.1f} "
        f"| {s['encoding_speed_against_base']:.2f} × |"
        for s in r["savings"]
    ]
    faults = [s for s in r["savings"] if s["unreachable"] or not s["round_trip"]]
    lines += ["", f"New tokens unreachable, or round trip not exact: in {len(faults)} of {len(r['savings'])} lines."]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
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
    packages = ("gigatoken", "polars", "pyarrow", "regex", "tokenizers", "transformers")
    result["versions"] = {name: version(name) for name in packages} | {"python": platform.python_version()}
    result["machine"] = machine()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{result['corpus']}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(result))


if __name__ == "__main__":
    main()
