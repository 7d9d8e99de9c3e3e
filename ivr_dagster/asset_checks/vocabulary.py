"""Checks of the remapped tokenizer: ids, round trip, and that its new tokens are useful."""

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.asset_checks.tokenizer import round_trip_verdict
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.core.vocabulary.remap import remapped_strings, unreachable_tokens
from ivr_dagster.core.vocabulary.rules import applied_rules
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(asset="remapped_tokenizer", name="ids_kept", blocking=True)
def remapped_ids_kept(remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """The vocabulary has the base's size; ids without a rule keep their string, ids with one have the new token."""
    rules = applied_rules(remapped_tokenizer)
    expected = remapped_strings(strings_by_id(remapped_tokenizer.base_backend()), rules)
    strings = strings_by_id(remapped_tokenizer.backend())
    differing = sum(a != b for a, b in zip(expected, strings, strict=False)) + abs(len(expected) - len(strings))
    return verdict(
        differing == 0,
        remedy="Rules and tokenizer do not belong together. Materialize remapped_tokenizer again.",
        vocabulary_size=len(strings),
        vocabulary_size_base=len(expected),
        ids_reassigned=len(rules),
        ids_differing=differing,
    )


@dg.asset_check(asset="remapped_tokenizer", name="round_trip", blocking=True, additional_ins=beside("cleaned_corpus"))
def remapped_round_trip(remapped_tokenizer: TokenizerFolder, cleaned_corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """decode(encode(text)) reproduces up to 0.4 MB of held-out documents exactly."""
    return round_trip_verdict(remapped_tokenizer, cleaned_corpus)


@dg.asset_check(asset="remapped_tokenizer", name="new_tokens_reachable", blocking=True)
def new_tokens_reachable(remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Every new token's own text is encoded as that one token, so that no id is wasted."""
    rules = applied_rules(remapped_tokenizer)
    unreachable = unreachable_tokens(remapped_tokenizer.backend(), rules)
    return verdict(
        not unreachable,
        remedy="Delete the rules of these tokens from remap_rules.yaml, or run `ivr select` again.",
        new_tokens=len(rules),
        unreachable=len(unreachable),
        first_unreachable=", ".join(map(repr, unreachable[:10])),
    )


@dg.asset_check(asset="remapped_tokenizer", name="documents_no_longer")
def documents_no_longer(settings: SettingsResource, remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """At most `longer_documents_ceiling` of the held-out documents take more tokens than before."""
    lengths = read_certificate(remapped_tokenizer.path)["heldout_lengths"]
    share = lengths["longer"] / max(lengths["texts"], 1)
    ceiling = settings.selection.longer_documents_ceiling
    return verdict(
        share <= ceiling,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="These documents use tokens that the train split does not use; the asset's page lists them. Add similar "
        "documents to the corpus, or reassign fewer ids.",
        documents=lengths["texts"],
        documents_longer=lengths["longer"],
        share_longer=share,
        ceiling=ceiling,
    )


@dg.asset_check(asset="remapped_tokenizer", name="token_saving_floor")
def token_saving_floor(settings: SettingsResource, remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """New tokens save at least `saving_floor` of the held-out text's tokens."""
    lengths = read_certificate(remapped_tokenizer.path)["heldout_lengths"]
    saving, floor = 1 - lengths["other"] / max(lengths["base"], 1), settings.selection.saving_floor
    return verdict(
        saving >= floor,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="New rows must be learned, and this saves little: fine-tuning the unchanged base model will likely do "
        "as well. Try merge_scope: across, more candidates, or a corpus of domain text only.",
        token_saving=saving,
        floor=floor,
    )
