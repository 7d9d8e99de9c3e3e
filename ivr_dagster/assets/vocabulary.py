"""In-place vocabulary reassignment: new tokens, the ids they get, and the tokenizer that follows."""

import time

import dagster as dg
import numpy as np
import polars as pl

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.assets import OWNERS, depends_on_settings
from ivr_dagster.assets.display import curve, inline_png, markdown_table
from ivr_dagster.core.content_hash import content_hash
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.handles import TokenizerFolder
from ivr_dagster.core.tokenizer.agreement import count_tokens
from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.core.tokenizer.folder import write_tokenizer
from ivr_dagster.core.tokens.counts import counts_from_table
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import RemapRules, check_rules, read_rules, remap_tokenizer
from ivr_dagster.core.vocabulary.selection import candidates_table, rules_from_table, selection_log_text
from ivr_dagster.progress import track
from ivr_dagster.resources.settings import SettingsResource

GROUP = "vocabulary"


@dg.asset(
    group_name=GROUP,
    kinds={"csv", "polars"},
    owners=OWNERS,
    io_manager_key="csv_io",
    code_version="1",
    metadata=depends_on_settings("max_candidates", "min_token_len", "min_frequency", "merge_scope", "max_texts"),
)
def replacement_candidates(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    token_stats: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """Which strings get an id, and which tokens give theirs up.

    New tokens are found by going on with BPE on the domain's own pre-token counts: the pair of neighbours that occurs
    most often is joined, counts are updated, and so on. Ids come from tokens that the domain uses least, the rarest by
    merge rank among equals; bytes, special tokens, digits and the parts of new tokens stay.
    """
    started = time.monotonic()
    base = original_tokenizer.backend()
    bpe = read_bpe(base)
    frequencies = token_stats["frequency"].to_numpy()
    selection = choose_candidates(
        base,
        bpe,
        counts_from_table(pretoken_counts),
        cleaned_corpus.texts("train", max_texts=settings.max_texts or None),
        budget=settings.max_candidates,
        min_bytes=settings.min_token_len,
        min_frequency=settings.min_frequency,
        across=settings.merge_scope == "across",
        progress=track(context.log, "selecting", "new tokens"),
    )
    table = candidates_table(selection, bpe, frequencies)
    saved = np.cumsum(table["saving"].to_numpy())
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "candidates": len(table),
            "token_saving_train": 1 - selection.tokens_after / max(selection.tokens_before, 1),
            "sacrificed_in_use": int((table["sacrificed_frequency"] > 0).sum()),
            "seconds": round(time.monotonic() - started, 2),
            "first new tokens": dg.MetadataValue.md(
                markdown_table(table.head(30).select("new_text", "saving", "frequency", "sacrificed_text"))
            ),
            "saving by number of new tokens": inline_png(
                curve(
                    range(1, len(saved) + 1),
                    saved / max(selection.tokens_before, 1),
                    x="new tokens",
                    y="share of train tokens saved",
                ),
                "saving against the number of new tokens",
            ),
        },
    )


@dg.asset(group_name=GROUP, kinds={"markdown"}, owners=OWNERS, io_manager_key="markdown_io", code_version="1")
def selection_log(replacement_candidates: pl.DataFrame, token_stats: pl.DataFrame) -> dg.MaterializeResult[str]:
    """The selection for people to read: what was chosen, what is given up, and what each hundred tokens more saved."""
    text = selection_log_text(replacement_candidates, int(token_stats["frequency"].sum()))
    return dg.MaterializeResult(
        value=text, data_version=dg.DataVersion(content_hash(text)), metadata={"log": dg.MetadataValue.md(text)}
    )


@dg.asset(group_name=GROUP, kinds={"yaml"}, owners=OWNERS, io_manager_key="rules_io", code_version="1")
def remap_rules(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    replacement_candidates: pl.DataFrame,
    original_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[RemapRules]:
    """Each id that changes its string: the sacrificed token, the new token, its constituents and frequencies.

    The file may be edited by hand. An edited file is validated and honoured as it stands, also when the corpus
    changes; delete it to get computed rules again.
    """
    bpe = read_bpe(original_tokenizer.backend())
    place = settings.places["remap_rules"]
    rules = edited_rules(settings.places)
    if rules is None:
        rules = rules_from_table(replacement_candidates)
    else:
        context.log.warning(
            f"{place} was edited by hand and is honoured as it stands; delete it to compute the rules anew"
        )
    check_rules(rules, bpe, place)
    return dg.MaterializeResult(
        value=rules,
        data_version=dg.DataVersion(rules.digest()),
        metadata={"rules": len(rules), "edited_by_hand": rules.edited},
    )


def edited_rules(places: ArtifactPaths) -> RemapRules | None:
    """The rules on disk if a person has changed them since they were computed."""
    place = places["remap_rules"]
    if not place.is_file():
        return None
    rules = read_rules(place)
    return rules if rules.edited else None


@dg.asset(group_name=GROUP, kinds={"huggingface"}, owners=OWNERS, io_manager_key="tokenizer_io", code_version="1")
def remapped_tokenizer(
    settings: SettingsResource,
    original_tokenizer: TokenizerFolder,
    remap_rules: RemapRules,
    cleaned_corpus: CleanedCorpus,
    distilled_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[TokenizerFolder]:
    """The tokenizer of the adapted model: the distilled one with the remap rules applied.

    Its vocabulary has the base's size, every id without a rule its old string, so a model's embedding keeps its shape
    and nearly all of its rows. `token_saving` is measured on held-out text.
    """
    started = time.monotonic()
    base = original_tokenizer.backend()
    bpe = read_bpe(base)
    check_rules(remap_rules, bpe, settings.places["remap_rules"])
    with settings.staged("remapped_tokenizer") as folder:
        write_tokenizer(remap_tokenizer(base, bpe, remap_rules), distilled_tokenizer.path, folder)
        loaded = TokenizerFolder(folder).backend()
        before, size = count_tokens(base, cleaned_corpus.texts("heldout"))
        after, _ = count_tokens(loaded, cleaned_corpus.texts("heldout"))
    return dg.MaterializeResult(
        value=TokenizerFolder(folder),
        data_version=dg.DataVersion(content_hash(folder)),
        metadata={
            "vocabulary_size": loaded.get_vocab_size(),
            "tokens_reassigned": len(remap_rules),
            "token_saving": 1 - after / before,
            "bytes_per_token_base": size / before,
            "bytes_per_token": size / after,
            "heldout_bytes": size,
            "seconds": round(time.monotonic() - started, 2),
        },
    )
