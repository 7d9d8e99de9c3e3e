"""In-place vocabulary reassignment: new tokens, the ids that they receive, and the remapped tokenizer."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import agreement_metadata, columns, curves, inline_png
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.agreement import (
    LENGTHS_BYTES,
    Lengths,
    compare_lengths,
    heldout_sample,
    measure_agreement,
)
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.segments import encode_each
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokenizer.write import write_certificate, write_unigram_form
from ivr_dagster.core.tokens.byte_level import text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, counts_from_table
from ivr_dagster.core.tokens.display import markdown_table
from ivr_dagster.core.vocabulary.log import selection_log_text, verdict
from ivr_dagster.core.vocabulary.remap import complete_rules, remap_tokenizer, unaffected_types
from ivr_dagster.core.vocabulary.rules import (
    RemapRules,
    applied_rules,
    check_rules,
    edited_rules,
    write_remapped_bpe,
)
from ivr_dagster.core.vocabulary.selection import Plan, plan_selection
from ivr_dagster.core.vocabulary.table import COLUMNS, rules_from_table
from ivr_dagster.io_managers.tables import read_candidates
from ivr_dagster.pipeline import settings_hash, split_code_version
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource
from ivr_dagster.storage.content_hash import content_hash
from ivr_dagster.storage.manifest import find_damage, manifest_path, read_manifest

GROUP = "vocabulary"


@dg.asset(
    group_name=GROUP,
    kinds={"csv", "polars"},
    owners=OWNERS,
    io_manager_key="csv_io",
    code_version="5",
    metadata=columns(**{name: (dtype.__name__.lower(), text) for name, (dtype, text) in COLUMNS.items()}),
)
def replacement_candidates(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    cleaned_corpus: CleanedCorpus,
    original_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    token_stats: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """Which strings receive an id, and which tokens lose theirs.

    New tokens are found by continuing BPE on the domain's pre-token counts: the most frequent pair of neighbors is
    merged, counts are updated, and so on. Ids come from the tokens that the domain uses least, the latest merges first,
    and only if no kept or new token is made of them; bytes, special tokens and digits are kept.

    This asset is incremental: it also reads the table that it made before. With `sticky`, rules of that table keep
    their ids while they pay off. If settings and code are the same, the whole table stays while a new selection would
    save less than `least_gain` more. Tables made with one-off settings from the launchpad are not used.
    """
    started = time.monotonic()
    code = context.assets_def.get_asset_spec(context.asset_key).code_version
    if settings.one_off("replacement_candidates"):
        _set_aside(settings.paths["replacement_candidates"])
    plan = plan_from_settings(
        settings,
        code,
        cleaned_corpus,
        original_tokenizer,
        pretoken_counts,
        token_stats,
        progress=track(context.log, "selecting", "new tokens"),
    )
    selection, sentence = (
        settings.selection,
        verdict(plan.saving_heldout, len(plan.table), settings.selection.saving_floor),
    )
    if plan.rejected_gain is not None:
        context.log.info(
            f"The previous selection is kept: a new one would save only {plan.rejected_gain:.2%} more of the held-out "
            f"tokens, least_gain is {selection.least_gain:.2%}."
        )
    (context.log.warning if plan.saving_heldout < selection.saving_floor else context.log.info)(sentence)
    return dg.MaterializeResult(
        value=plan.table,
        data_version=dg.DataVersion(content_hash(plan.table)),
        metadata=_selection_metadata(plan) | {"verdict": sentence, "seconds": round(time.monotonic() - started, 2)},
    )


def _selection_metadata(plan: Plan) -> dict[str, Any]:
    table = plan.table
    sacrificed = table.filter(pl.col("sacrificed_frequency") > 0).sort("sacrificed_frequency", descending=True)
    saved = np.cumsum(table["heldout_saving"].to_numpy())
    plot = curves(range(1, len(saved) + 1), {"held-out": saved}, x="new tokens", y="share of held-out tokens saved")
    first = table.head(30).select("new_text", "saving", "frequency", "sacrificed_text")
    worst = sacrificed.head(20).select(
        "sacrificed_text", "sacrificed_frequency", "sacrificed_cost", "new_text", "saving"
    )
    return {
        "candidates": len(table),
        **({} if plan.saving_train is None else {"token_saving_train": plan.saving_train}),
        "token_saving_heldout": plan.saving_heldout,
        "first new tokens": dg.MetadataValue.md(markdown_table(first)),
        **({"sacrificed although used": dg.MetadataValue.md(markdown_table(worst))} if len(worst) else {}),
        "saving by number of new tokens": inline_png(plot, "saving by number of new tokens"),
        "rules_kept": plan.kept,
        "rules_moved": plan.moved,
        "rules_dropped": plan.dropped,
        "previous_selection_stays": plan.rejected_gain is not None,
        **({} if plan.rejected_gain is None else {"rejected_gain": plan.rejected_gain}),
        "sacrificed_in_use": len(sacrificed),
    }


def plan_from_settings(
    settings: ProjectSettings,
    code_version: str | None,
    corpus: CleanedCorpus,
    original: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    token_stats: pl.DataFrame,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The selection with these settings, without writing anything. `code_version` is the asset's."""
    previous, same_settings = _previous_table(settings, code_version)
    return plan_selection(
        original.backend(),
        original.bpe(),
        counts_from_table(pretoken_counts),
        token_stats["frequency"].to_numpy(),
        corpus.texts("train", max_texts=settings.corpus.max_texts or None),
        heldout_sample(corpus, LENGTHS_BYTES),
        settings.selection,
        train_bytes=settings.training.train_bytes,
        previous=previous,
        same_settings=same_settings,
        progress=progress,
    )


def _previous_table(settings: ProjectSettings, code_version: str | None) -> tuple[pl.DataFrame | None, bool]:
    """The last table that was not made with one-off settings, and whether it was made with these settings and code."""
    place = settings.paths["replacement_candidates"]
    now = split_code_version(code_version)[0], settings_hash(settings.values_for("replacement_candidates"))
    for file in (place, _aside(place)):
        if not file.is_file() or (file == place and find_damage(place)):
            continue
        manifest = read_manifest(file)
        made_of = manifest.made_of if manifest else {}
        code, file_settings = split_code_version(made_of.get("code_version"))
        if "code_version" not in made_of or file_settings == made_of.get("config_hash"):
            return read_candidates(file), (code, made_of.get("config_hash")) == now
    return None, False


def _set_aside(place: Path) -> None:
    """Keep the last regular table while one-off runs replace it."""
    manifest = read_manifest(place)
    made_of = manifest.made_of if manifest else {}
    if place.is_file() and split_code_version(made_of.get("code_version"))[1] == made_of.get("config_hash"):
        shutil.copyfile(place, _aside(place))
        shutil.copyfile(manifest_path(place, folder=False), manifest_path(_aside(place), folder=False))


def _aside(place: Path) -> Path:
    return place.with_name(f".regular_{place.name}")


@dg.asset(group_name=GROUP, kinds={"markdown"}, owners=OWNERS, io_manager_key="markdown_io", code_version="4")
def selection_log(settings: SettingsResource, replacement_candidates: pl.DataFrame) -> dg.MaterializeResult[str]:
    """The selection for people: what was selected, what is sacrificed, and the saving by number of new tokens."""
    text = selection_log_text(replacement_candidates, settings.selection.saving_floor)
    return dg.MaterializeResult(
        value=text, data_version=dg.DataVersion(content_hash(text)), metadata={"log": dg.MetadataValue.md(text)}
    )


@dg.asset(group_name=GROUP, kinds={"yaml"}, owners=OWNERS, io_manager_key="rules_io", code_version="2")
def remap_rules(
    context: dg.AssetExecutionContext, settings: SettingsResource, replacement_candidates: pl.DataFrame
) -> dg.MaterializeResult[RemapRules]:
    """Each id that changes its string: the sacrificed token, the new token, its constituents and frequencies.

    The file may be edited by hand. An edited file is used unchanged, even when the corpus changes, and does not
    influence the selection; delete it to get the computed rules back.
    """
    place = settings.paths["remap_rules"]
    edited = edited_rules(place)
    rules = rules_from_table(replacement_candidates) if edited is None else edited
    if edited is not None:
        context.log.warning(f"{place} was edited by hand and is used unchanged; delete it to get computed rules.")
    most = sorted(rules, key=lambda rule: -rule.frequencies.get("saving", 0))[:20]
    first = [(rule.id, text_of(rule.sacrificed_token), text_of(rule.new_token)) for rule in most]
    return dg.MaterializeResult(
        value=rules,
        data_version=dg.DataVersion(rules.digest()),
        metadata={
            "rules": len(rules),
            "edited_by_hand": rules.edited,
            "first rules": dg.MetadataValue.md(
                markdown_table(pl.DataFrame(first, schema=["id", "from", "to"], orient="row"))
            ),
        },
    )


@dg.asset(group_name=GROUP, kinds={"huggingface"}, owners=OWNERS, io_manager_key="tokenizer_io", code_version="1")
def remapped_bpe_tokenizer(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    original_tokenizer: TokenizerFolder,
    remap_rules: RemapRules,
    pretoken_counts: pl.DataFrame,
    cleaned_corpus: CleanedCorpus,
) -> dg.MaterializeResult[TokenizerFolder]:
    """The base tokenizer without the sacrificed tokens and their merges, and with the new ones at their ids.

    It is a byte-level BPE, which most inference engines read. Sacrificed tokens are leaves of the merge tree and new
    merges come last, so text without sacrificed and new tokens is segmented exactly as by the base. `token_saving` is
    measured on up to 4 MB of held-out documents. Halves that the rules do not name are found, and tokens that are
    missing for them are added to the rules. The folder contains the base tokenizer (`base_tokenizer.json`) and the
    rules (`remap_rules.yaml`).
    """
    started = time.monotonic()
    base, bpe = original_tokenizer.backend(), original_tokenizer.bpe()
    check_rules(remap_rules, bpe, settings.paths["remap_rules"])
    rules, added = complete_rules(remap_rules, base, bpe, settings.paths["remap_rules"])
    for rule in added:
        context.log.warning(
            f"Token {text_of(rule.new_token)!r} is added at id {rule.id}, in place of "
            f"{text_of(rule.sacrificed_token)!r}: a new token is made of it."
        )
    with settings.staging("remapped_bpe_tokenizer") as folder:
        write_remapped_bpe(remap_tokenizer(base, bpe, rules), rules, original_tokenizer, folder)
        written = TokenizerFolder(folder).backend()
        version = content_hash(folder)  # before the certificate: other held-out text makes the same tokenizer
        lengths = compare_lengths(base, written, heldout_sample(cleaned_corpus, LENGTHS_BYTES))
        unaffected = _unaffected(base, written, rules, counts_from_table(pretoken_counts))
        write_certificate(unaffected | {"heldout_lengths": lengths.as_dict()}, folder)
    return dg.MaterializeResult(
        value=TokenizerFolder(folder),
        data_version=dg.DataVersion(version),
        metadata=_lengths_metadata(lengths)
        | {
            "vocabulary_size": written.get_vocab_size(),
            "tokens_reassigned": len(rules),
            "tokens_added": len(added),
            "agreement_kept": _share_identical(unaffected),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


@dg.asset(group_name=GROUP, kinds={"huggingface"}, owners=OWNERS, io_manager_key="tokenizer_io", code_version="6")
def remapped_tokenizer(
    settings: SettingsResource,
    remapped_bpe_tokenizer: TokenizerFolder,
    pretoken_counts: pl.DataFrame,
    cleaned_corpus: CleanedCorpus,
) -> dg.MaterializeResult[TokenizerFolder]:
    """The remapped BPE distilled into a Unigram with the same ids, as the base is into `distilled_tokenizer`.

    `agreement` is the share of train pre-tokens that both segment identically, also recorded in `agreement.json`;
    `agreement_kept` is that of train pre-tokens without new or sacrificed tokens with the base. The folder contains the
    BPE form (`bpe_tokenizer.json`), the base tokenizer (`base_tokenizer.json`) and the rules (`remap_rules.yaml`). With
    `tokenizer_model: bpe`, models get the BPE form.
    """
    started = time.monotonic()
    base, bpe = remapped_bpe_tokenizer.base_backend(), remapped_bpe_tokenizer.backend()
    rules, counts = applied_rules(remapped_bpe_tokenizer), counts_from_table(pretoken_counts)
    bpe_ids = encode_each(bpe, counts.types)
    exceptions = settings.tokenizer.exceptions
    distillation = distill(bpe, remapped_bpe_tokenizer.bpe(), counts, exceptions=exceptions, base_ids=bpe_ids)
    with settings.staging("remapped_tokenizer") as folder:
        write_unigram_form(distillation.tokenizer, remapped_bpe_tokenizer, folder)
        written = TokenizerFolder(folder).backend()
        version = content_hash(folder)
        train = measure_agreement(bpe, written, counts, base_ids=bpe_ids)
        heldout = measure_agreement(bpe, written, count_pretokens(cleaned_corpus.texts("heldout"), base))
        lengths = compare_lengths(base, written, heldout_sample(cleaned_corpus, LENGTHS_BYTES))
        unaffected = _unaffected(base, written, rules, counts)
        certificate = unaffected | {
            "train": train.as_dict(),
            "heldout": heldout.as_dict(),
            "exceptions": len(distillation.exceptions),
            "heldout_lengths": lengths.as_dict(),
        }
        write_certificate(certificate, folder)
    return dg.MaterializeResult(
        value=TokenizerFolder(folder),
        data_version=dg.DataVersion(version),
        metadata=agreement_metadata(train, heldout)
        | _lengths_metadata(lengths)
        | {
            "vocabulary_size": written.get_vocab_size(),
            "tokens_reassigned": len(rules),
            "agreement_kept": _share_identical(unaffected),
            "exceptions": len(distillation.exceptions),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _unaffected(base: Tokenizer, remapped: Tokenizer, rules: RemapRules, counts: PretokenCounts) -> dict[str, int]:
    """Occurrences of pre-tokens without new or sacrificed tokens, and those with identical ids."""
    unaffected = unaffected_types(base, remapped, rules, counts)
    return {
        "untouched_occurrences": sum(int(counts.counts[n]) for n, _ in unaffected),
        "untouched_occurrences_identical": sum(int(counts.counts[n]) for n, same in unaffected if same),
    }


def _share_identical(unaffected: dict[str, int]) -> float:
    occurrences = unaffected["untouched_occurrences"]
    return unaffected["untouched_occurrences_identical"] / occurrences if occurrences else 1.0


def _lengths_metadata(lengths: Lengths) -> dict[str, Any]:
    worst = pl.DataFrame(lengths.worst, schema=["beginning", "tokens before", "tokens now"], orient="row")
    return {
        "token_saving": lengths.saving,
        "documents with more tokens": dg.MetadataValue.md(markdown_table(worst) if lengths.worst else "None."),
        "bytes_per_token_base": lengths.bytes / max(lengths.base, 1),
        "bytes_per_token": lengths.bytes / max(lengths.other, 1),
        "heldout_bytes": lengths.bytes,
        "heldout_documents": lengths.texts,
        "documents_longer": lengths.longer,
    }
