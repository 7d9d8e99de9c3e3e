"""The base tokenizer and its distillation."""

import time

import dagster as dg
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.assets import OWNERS, kinds
from ivr_dagster.assets.display import agreement_metadata
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.agreement import heldout_sample, measure_agreement
from ivr_dagster.core.tokenizer.folder import TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokenizer.scores import unreachable_ids
from ivr_dagster.core.tokenizer.segments import segments_of_types
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokenizer.write import write_certificate, write_original_tokenizer, write_tokenizer
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.core.tokens.counts import count_pretokens, counts_from_table
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.resources.base_model import BaseModelResource
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.storage.content_hash import content_hash

GROUP = "tokenizer"
SPEED_BYTES = 100_000


@dg.observable_source_asset(
    group_name=GROUP,
    tags=kinds("huggingface"),
    description=(  # Dagster does not show the docstring of a source
        "The pretrained model and its tokenizer: a folder or a model on the Hugging Face Hub.\n\n"
        "Its version is a hash of its files, or its commit on the Hub."
    ),
)
def base_model(base: BaseModelResource) -> dg.DataVersion:
    """The base model's version."""
    return dg.DataVersion(base.version())


@dg.asset(
    deps=[base_model],
    group_name=GROUP,
    kinds={"huggingface"},
    owners=OWNERS,
    io_manager_key="tokenizer_io",
    code_version="1",
)
def original_tokenizer(settings: SettingsResource, base: BaseModelResource) -> dg.MaterializeResult[TokenizerFolder]:
    """A checked copy of the base model's byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, SmolLM2 and similar).

    SentencePiece and WordPiece tokenizers are refused.
    """
    with settings.staging("original_tokenizer") as folder:
        write_original_tokenizer(base.tokenizer().path, folder)
        tokenizer = TokenizerFolder(folder)
        bpe, pretokenization = tokenizer.bpe(), read_pretokenization(tokenizer.backend())
    return dg.MaterializeResult(
        value=tokenizer,
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={
            "vocabulary_size": bpe.size,
            "merges": len(bpe.merges),
            "added_tokens": len(bpe.added_ids),
            "bytes_without_token": sum(character not in bpe.ids for character in CHARACTER_TO_BYTE),
            "pre-tokenizer pattern": pretokenization.pattern or "none: tokenizers splits the text itself",
        },
    )


@dg.asset(group_name=GROUP, kinds={"huggingface"}, owners=OWNERS, io_manager_key="tokenizer_io", code_version="5")
def distilled_tokenizer(
    settings: SettingsResource,
    original_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    cleaned_corpus: CleanedCorpus,
) -> dg.MaterializeResult[TokenizerFolder]:
    """A Unigram tokenizer that reproduces the base tokenizer's ids.

    Each token has a score, computed from its merge rank, and the best-scoring segmentation is the one that BPE finds.
    Where scores cannot reproduce it, the pre-tokenizer gets exceptions for the pre-tokens of this corpus. `agreement`
    is the share of pre-token occurrences with exactly the base tokenizer's ids, also recorded in `agreement.json`.
    `base_tokenizer.json` in the folder is the base tokenizer.
    """
    started = time.monotonic()
    base, bpe = original_tokenizer.backend(), original_tokenizer.bpe()
    counts = counts_from_table(pretoken_counts)
    base_ids = segments_of_types(base, counts.types)
    distillation = distill(base, bpe, counts, exceptions=settings.tokenizer.exceptions, base_ids=base_ids)
    with settings.staging("distilled_tokenizer") as folder:
        base_file = original_tokenizer.path / TOKENIZER
        write_tokenizer(distillation.tokenizer, original_tokenizer.path, folder, base=base_file)
        version = content_hash(folder)  # before the certificate: other held-out text makes the same tokenizer
        written = TokenizerFolder(folder).backend()
        train = measure_agreement(base, written, counts, base_ids=base_ids)
        heldout = measure_agreement(base, written, count_pretokens(cleaned_corpus.texts("heldout"), base))
        unreachable = sorted(bpe.strings[i] for i in unreachable_ids(bpe))
        certificate = {
            "train": train.as_dict(),
            "heldout": heldout.as_dict(),
            "exceptions": len(distillation.exceptions),
            "scores_repaired": len(distillation.raised),
            "unreachable_in_base": unreachable,
        }
        write_certificate(certificate, folder)
    return dg.MaterializeResult(
        value=TokenizerFolder(folder),
        data_version=dg.DataVersion(version),
        metadata=agreement_metadata(train, heldout)
        | {
            "vocabulary_size": bpe.size,
            "exceptions": len(distillation.exceptions),
            "encoding_speed_against_base": _relative_speed(written, base, cleaned_corpus),
            "scores_repaired": len(distillation.raised),
            "unreachable_in_base": len(unreachable),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _relative_speed(tokenizer: Tokenizer, base: Tokenizer, corpus: CleanedCorpus) -> float:
    """Encoding speed of `tokenizer` relative to `base`: the cost of cuts and exceptions."""
    texts = heldout_sample(corpus, SPEED_BYTES)
    seconds = []
    for each in (base, tokenizer):
        each.encode_batch_fast(texts)  # warm up caches
        started = time.perf_counter()
        each.encode_batch_fast(texts)
        seconds.append(time.perf_counter() - started)
    return round(seconds[0] / seconds[1], 2)
