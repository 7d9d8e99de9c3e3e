"""The base tokenizer and its distillation."""

import time

import dagster as dg
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.assets import OWNERS, kinds
from ivr_dagster.assets.display import markdown_table
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.agreement import Agreement, heldout_sample, measure_agreement
from ivr_dagster.core.tokenizer.folder import TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokenizer.scores import tokens_never_yielded
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
    description=(  # a source's docstring is not shown
        "The pretrained model and tokenizer that everything starts from: a folder, or a model on the hub.\n\n"
        "Its version is a hash of the files, or the commit on the hub."
    ),
)
def base_model(base: BaseModelResource) -> dg.DataVersion:
    """The base model at the hash of its files, or at its commit."""
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
    """The base model's byte-level BPE tokenizer, checked and kept beside what is made of it.

    It must be one that takes text byte by byte (GPT-2, Llama 3, Qwen, SmolLM2 and the like); a SentencePiece or
    WordPiece tokenizer is refused, and the error names what was found.
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


@dg.asset(
    group_name=GROUP,
    kinds={"huggingface"},
    owners=OWNERS,
    io_manager_key="tokenizer_io",
    code_version="4",
    # agreement_floor is of no effect on the tokenizer, but its check must be put anew
)
def distilled_tokenizer(
    settings: SettingsResource,
    original_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    cleaned_corpus: CleanedCorpus,
) -> dg.MaterializeResult[TokenizerFolder]:
    """The base tokenizer's ids out of a Unigram model, whose entries can be exchanged one by one.

    In a BPE a token is the end of a chain of merges, so none can be taken out without its followers. Here each token
    has a score, computed from its merge rank, and the best-scoring segmentation is the one that BPE's merges find.
    What scores cannot settle, the pre-tokenizer's exceptions do for the pre-tokens of this corpus. `agreement` is the
    share of pre-token occurrences that get exactly the base tokenizer's ids; `agreement.json` beside the tokenizer is
    the certificate.
    """
    started = time.monotonic()
    base = original_tokenizer.backend()
    bpe = original_tokenizer.bpe()
    counts = counts_from_table(pretoken_counts)
    of_base = segments_of_types(base, counts.types)
    distillation = distill(base, bpe, counts, exceptions=settings.tokenizer.exceptions, of_base=of_base)
    with settings.staging("distilled_tokenizer") as folder:
        base_file = original_tokenizer.path / TOKENIZER
        write_tokenizer(distillation.tokenizer, original_tokenizer.path, folder, base=base_file)
        version = content_hash(folder)  # before the certificate: other held-out text makes no other tokenizer
        loaded = TokenizerFolder(folder).backend()  # what is measured is what was saved
        train = measure_agreement(base, loaded, counts, of_base=of_base)
        heldout = measure_agreement(base, loaded, count_pretokens(cleaned_corpus.texts("heldout"), base))
        unreachable = sorted(bpe.strings[i] for i in tokens_never_yielded(bpe))
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
        metadata={
            "vocabulary_size": bpe.size,
            "agreement": train.share,
            "agreement_heldout": heldout.share,
            "worst divergences": dg.MetadataValue.md(_divergences(train)),
            "divergences on held-out text": dg.MetadataValue.md(_divergences(heldout)),
            "pretoken_types_differing": train.types - train.types_identical,
            "pretoken_types_differing_heldout": heldout.types - heldout.types_identical,
            "exceptions": len(distillation.exceptions),
            "encoding_speed_against_base": _speed(loaded, base, cleaned_corpus),
            "scores_repaired": len(distillation.raised),
            "unreachable_in_base": len(unreachable),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _speed(tokenizer: Tokenizer, base: Tokenizer, corpus: CleanedCorpus) -> float:
    """How fast `tokenizer` encodes some text, `base` = 1: what cuts and exceptions cost."""
    texts = heldout_sample(corpus, SPEED_BYTES)
    seconds = []
    for each in (base, tokenizer):
        each.encode_batch_fast(texts)  # warm caches
        started = time.perf_counter()
        each.encode_batch_fast(texts)
        seconds.append(time.perf_counter() - started)
    return round(seconds[0] / seconds[1], 2)


def _divergences(agreement: Agreement) -> str:
    worst = agreement.divergences[:20]
    table = pl.DataFrame(
        {
            "pre-token": [d.pretoken for d in worst],
            "count": [d.count for d in worst],
            "base": [" ".join(d.base) for d in worst],
            "distilled": [" ".join(d.other) for d in worst],
        }
    )
    return markdown_table(table) if worst else "None: every pre-token gets the base tokenizer's ids."
