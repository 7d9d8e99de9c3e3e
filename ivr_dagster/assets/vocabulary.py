"""In-place vocabulary reassignment: new tokens, the ids they get, and the tokenizer that follows."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from dagster._core.definitions.data_version import CODE_VERSION_TAG

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import columns, curves, inline_png, markdown_table
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.agreement import LENGTHS_BYTES, compare_lengths, heldout_sample
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.segments import segments_of_types
from ivr_dagster.core.tokenizer.write import write_certificate
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.tokens.counts import counts_from_table
from ivr_dagster.core.vocabulary.candidate import Guards
from ivr_dagster.core.vocabulary.remap import remap_tokenizer, untouched_types, write_remapped_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRules, check_rules, read_rules
from ivr_dagster.core.vocabulary.selection import (
    Plan,
    plan_selection,
    rules_from_table,
    selection_log_text,
    verdict,
)
from ivr_dagster.io_managers.provenance import config_hash_of
from ivr_dagster.io_managers.tables import read_candidates
from ivr_dagster.pipeline import ArtifactPaths, settings_hash, split_code_version
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import SettingsResource
from ivr_dagster.settings import Settings
from ivr_dagster.storage.content_hash import content_hash

GROUP = "vocabulary"


@dg.asset(
    group_name=GROUP,
    kinds={"csv", "polars"},
    owners=OWNERS,
    io_manager_key="csv_io",
    code_version="3",
    metadata=columns(
        rank=("int64", "Place in the selection, the most saving first"),
        new_token=("string", "The string that gets the id, in the byte-level alphabet"),
        new_text=("string", "Its text"),
        constituents=("string", "Base tokens it stands for, in order, with spaces between"),
        saving=("int64", "Tokens it saves on the train split"),
        frequency=("int64", "How often it stands there"),
        heldout_saving=("float64", "Share of held-out tokens it saves"),
        sacrificed_id=("int64", "The id"),
        sacrificed_token=("string", "The token that gives it up, in the byte-level alphabet"),
        sacrificed_text=("string", "Its text"),
        sacrificed_frequency=("int64", "How often the train split has it"),
        status=("string", "`new`, or `kept` or `moved` from the rules in force"),
        sacrificed_cost=("int64", "Tokens that an occurrence takes without it"),
    ),
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
    merge rank among equals; bytes, special tokens, digits and the parts of new tokens stay. The selection in force
    stays as it is while another would save hardly more (`least_gain`); where it does not, its rules that are still
    worth it stay.
    """
    started = time.monotonic()
    spec = context.assets_def.get_asset_spec(context.asset_key)
    in_force = table_in_force(context.instance, settings, spec.code_version, spec.metadata)
    plan = plan_from_settings(
        settings,
        settings.paths,
        cleaned_corpus,
        original_tokenizer,
        pretoken_counts,
        token_stats,
        in_force=in_force,
        progress=track(context.log, "selecting", "new tokens"),
    )
    table = plan.table
    judgement = verdict(plan.saving_heldout, len(table), settings.selection.saving_floor)
    if plan.foregone is not None:
        context.log.info(
            f"the selection in force stays: the best one now would save {plan.foregone:.2%} more of held-out tokens, "
            f"least_gain is {settings.selection.least_gain:.2%}"
        )
    (context.log.warning if plan.saving_heldout < settings.selection.saving_floor else context.log.info)(judgement)
    saved = np.cumsum(table["heldout_saving"].to_numpy())
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={
            "candidates": len(table),
            **({} if plan.saving_train is None else {"token_saving_train": plan.saving_train}),
            "token_saving_heldout": plan.saving_heldout,
            "verdict": judgement,
            "first new tokens": dg.MetadataValue.md(
                markdown_table(table.head(30).select("new_text", "saving", "frequency", "sacrificed_text"))
            ),
            "given up in spite of use": dg.MetadataValue.md(
                markdown_table(
                    table.filter(pl.col("sacrificed_frequency") > 0)
                    .sort("sacrificed_frequency", descending=True)
                    .head(20)
                    .select("sacrificed_text", "sacrificed_frequency", "sacrificed_cost", "new_text", "saving")
                )
            ),
            "saving by number of new tokens": inline_png(
                curves(
                    range(1, len(saved) + 1),
                    {"held-out": saved},
                    x="new tokens",
                    y="share of held-out tokens saved",
                ),
                "saving against the number of new tokens",
            ),
            "rules_kept": plan.kept,
            "rules_moved": plan.moved,
            "rules_dropped": plan.dropped,
            "stays_in_force": plan.foregone is not None,
            **({} if plan.foregone is None else {"saving_foregone": plan.foregone}),
            "sacrificed_in_use": int((table["sacrificed_frequency"] > 0).sum()),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def plan_from_settings(
    settings: Settings,
    places: ArtifactPaths,
    corpus: CleanedCorpus,
    original: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    token_stats: pl.DataFrame,
    *,
    in_force: pl.DataFrame | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The selection under these settings; nothing is written. `in_force` is of :func:`table_in_force`."""
    base = original.backend()
    place = places["remap_rules"]
    rules = read_rules(place) if settings.selection.sticky and place.is_file() else None
    return plan_selection(
        base,
        original.bpe(),
        counts_from_table(pretoken_counts),
        token_stats["frequency"].to_numpy(),
        corpus.texts("train", max_texts=settings.corpus.max_texts or None),
        heldout_sample(corpus, LENGTHS_BYTES),
        budget=settings.selection.max_candidates or None,
        least_saving=settings.selection.least_saving,
        guards=Guards(
            min_frequency=settings.selection.min_frequency,
            min_bytes=settings.selection.min_token_len,
            max_bytes=settings.selection.max_token_len,
            letters_only=settings.selection.letters_only,
            join_digits=settings.selection.join_digits,
            least_documents=settings.selection.least_documents,
        ),
        across=settings.selection.merge_scope == "across",
        most_phrases=settings.selection.max_phrases or None,
        # what a person wrote is not carried on: deleting the file brings the computed rules back
        before=None if rules is None or rules.edited else rules,
        in_force=in_force if settings.selection.sticky else None,
        least_gain=settings.selection.least_gain,
        progress=progress,
    )


def table_in_force(
    instance: dg.DagsterInstance, settings: SettingsResource, code_version: str | None, metadata: Mapping[str, Any]
) -> pl.DataFrame | None:
    """The table of candidates on disk, if these settings made it and the rules in force are the ones it asks for.

    Whether they fit the base tokenizer is seen when it is read: `plan_selection` passes over those of another base.

    Args:
        instance: which remembers what was made.
        settings: those of this run, which may be for it alone.
        code_version, metadata: of the asset.
    """
    event = instance.get_latest_materialization_event(dg.AssetKey("replacement_candidates"))
    made = event.asset_materialization if event else None
    table, rules = settings.paths["replacement_candidates"], settings.paths["remap_rules"]
    if not made or not (table.is_file() and rules.is_file()):
        return None
    then = split_code_version((made.tags or {}).get(CODE_VERSION_TAG))[0], config_hash_of(made)
    if then != (split_code_version(code_version)[0], settings_hash(settings.values_for("replacement_candidates"))):
        return None
    found = read_candidates(table)
    return found if rules_from_table(found).digest() == read_rules(rules).digest() else None


@dg.asset(
    group_name=GROUP,
    kinds={"markdown"},
    owners=OWNERS,
    io_manager_key="markdown_io",
    code_version="3",
)
def selection_log(settings: SettingsResource, replacement_candidates: pl.DataFrame) -> dg.MaterializeResult[str]:
    """The selection for people to read: what was chosen, what is given up, and what each hundred tokens more saved."""
    text = selection_log_text(replacement_candidates, settings.selection.saving_floor)
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
    bpe = original_tokenizer.bpe()
    place = settings.paths["remap_rules"]
    edited = edited_rules(settings.paths)
    rules = rules_from_table(replacement_candidates) if edited is None else edited
    check_rules(rules, bpe, place)
    if edited is not None:
        context.log.warning(
            f"{place} was edited by hand and is honoured as it stands; delete it to compute the rules anew"
        )
    return dg.MaterializeResult(
        value=rules,
        data_version=dg.DataVersion(rules.digest()),
        metadata={
            "rules": len(rules),
            "edited_by_hand": rules.edited,
            "first rules": dg.MetadataValue.md(_first_rules(rules)),
        },
    )


def _first_rules(rules: RemapRules) -> str:
    """A table of the rules that save most."""
    most = sorted(rules, key=lambda rule: -rule.frequencies.get("saving", 0))[:20]
    given = [(rule.id, text_of(rule.sacrificed_token), text_of(rule.new_token)) for rule in most]
    return markdown_table(pl.DataFrame(given, schema=["id", "from", "to"], orient="row"))


def edited_rules(places: ArtifactPaths) -> RemapRules | None:
    """The rules on disk if a person has changed them since they were computed."""
    place = places["remap_rules"]
    if not place.is_file():
        return None
    rules = read_rules(place)
    return rules if rules.edited else None


@dg.asset(
    group_name=GROUP,
    kinds={"huggingface"},
    owners=OWNERS,
    io_manager_key="tokenizer_io",
    code_version="3",
    # the last two are of no effect on the tokenizer, but their checks must be put anew
)
def remapped_tokenizer(
    settings: SettingsResource,
    original_tokenizer: TokenizerFolder,
    remap_rules: RemapRules,
    pretoken_counts: pl.DataFrame,
    cleaned_corpus: CleanedCorpus,
    distilled_tokenizer: TokenizerFolder,
) -> dg.MaterializeResult[TokenizerFolder]:
    """The tokenizer of the adapted model: the distilled one with the remap rules applied.

    Its vocabulary has the base's size, every id without a rule its old string, so a model's embedding keeps its shape
    and nearly all of its rows. `token_saving` is measured on held-out documents, up to 4 MB of them; `agreement_kept`
    is the share of train pre-tokens without new or sacrificed tokens that are segmented as the base does.
    """
    started = time.monotonic()
    base = original_tokenizer.backend()
    bpe = original_tokenizer.bpe()
    check_rules(remap_rules, bpe, settings.paths["remap_rules"])
    counts = counts_from_table(pretoken_counts)
    of_base = segments_of_types(base, counts.types)
    remapping = remap_tokenizer(
        base, bpe, remap_rules, counts, exceptions=settings.tokenizer.exceptions, of_base=of_base
    )
    with settings.staging("remapped_tokenizer") as folder:
        write_remapped_tokenizer(
            remapping.tokenizer, remap_rules, distilled_tokenizer.base_file, distilled_tokenizer, folder
        )
        loaded = TokenizerFolder(folder).backend()
        version = content_hash(folder)  # before the certificate: other held-out text makes no other tokenizer
        lengths = compare_lengths(base, loaded, heldout_sample(cleaned_corpus, LENGTHS_BYTES))
        untouched = untouched_types(base, loaded, remap_rules, counts, of_base=of_base)
        kept = sum(int(counts.counts[n]) for n, _ in untouched)
        same = sum(int(counts.counts[n]) for n, equal in untouched if equal)
        certificate = {
            "untouched_occurrences": kept,
            "untouched_occurrences_identical": same,
            "exceptions": len(remapping.exceptions),
            "heldout_lengths": lengths.as_dict(),
        }
        write_certificate(certificate, folder)
    return dg.MaterializeResult(
        value=TokenizerFolder(folder),
        data_version=dg.DataVersion(version),
        metadata={
            "vocabulary_size": loaded.get_vocab_size(),
            "tokens_reassigned": len(remap_rules),
            "token_saving": lengths.saving,
            "documents that grew": dg.MetadataValue.md(
                markdown_table(
                    pl.DataFrame(lengths.worst, schema=["begins with", "tokens before", "tokens now"], orient="row")
                )
                if lengths.worst
                else "None."
            ),
            "bytes_per_token_base": lengths.bytes / max(lengths.base, 1),
            "bytes_per_token": lengths.bytes / max(lengths.other, 1),
            "heldout_bytes": lengths.bytes,
            "heldout_documents": lengths.texts,
            "documents_longer": lengths.longer,
            "agreement_kept": same / kept if kept else 1.0,
            "exceptions": len(remapping.exceptions),
            "seconds": round(time.monotonic() - started, 2),
        },
    )
