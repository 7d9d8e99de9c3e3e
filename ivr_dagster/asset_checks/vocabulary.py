"""What the remapped tokenizer must keep, and that its new tokens are of use."""

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.asset_checks.tokenizer import round_trip_verdict
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.core.vocabulary.remap import unreachable_tokens
from ivr_dagster.core.vocabulary.rules import RemapRules
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(
    asset="remapped_tokenizer",
    name="ids_kept",
    blocking=True,
    additional_ins=beside("original_tokenizer", "remap_rules"),
)
def remapped_ids_kept(
    remapped_tokenizer: TokenizerFolder, original_tokenizer: TokenizerFolder, remap_rules: RemapRules
) -> dg.AssetCheckResult:
    """The vocabulary has the base's size; ids without a rule keep their string, ids with one have the new token."""
    expected = strings_by_id(original_tokenizer.backend())
    for rule in remap_rules:
        expected[rule.id] = rule.new_token
    strings = strings_by_id(remapped_tokenizer.backend())
    differing = sum(a != b for a, b in zip(expected, strings, strict=False)) + abs(len(expected) - len(strings))
    return verdict(
        differing == 0,
        remedy="Materialize remapped_tokenizer again: rules and tokenizer do not belong together.",
        vocabulary_size=len(strings),
        vocabulary_size_base=len(expected),
        ids_reassigned=len(remap_rules),
        ids_differing=differing,
    )


@dg.asset_check(asset="remapped_tokenizer", name="round_trip", blocking=True, additional_ins=beside("cleaned_corpus"))
def remapped_round_trip(remapped_tokenizer: TokenizerFolder, cleaned_corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """decode(encode(text)) gives held-out documents, up to 0.4 MB of them, back character by character."""
    return round_trip_verdict(remapped_tokenizer, cleaned_corpus)


@dg.asset_check(
    asset="remapped_tokenizer", name="new_tokens_reachable", blocking=True, additional_ins=beside("remap_rules")
)
def new_tokens_reachable(remapped_tokenizer: TokenizerFolder, remap_rules: RemapRules) -> dg.AssetCheckResult:
    """Every new token's own text is encoded as that one token: no id is given away for nothing."""
    lost = unreachable_tokens(remapped_tokenizer.backend(), remap_rules)
    return verdict(
        not lost,
        remedy="Delete the rules of these tokens from remap_rules.yaml, or let `ivr select` choose anew.",
        new_tokens=len(remap_rules),
        unreachable=len(lost),
        first_unreachable=", ".join(map(repr, lost[:10])),
    )


@dg.asset_check(asset="remapped_tokenizer", name="documents_no_longer")
def documents_no_longer(settings: SettingsResource, remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Hardly a held-out document takes more tokens than before (`longer_documents_ceiling`)."""
    lengths = read_certificate(remapped_tokenizer.path)["heldout_lengths"]
    share = lengths["longer"] / max(lengths["texts"], 1)
    return verdict(
        share <= settings.selection.longer_documents_ceiling,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="These documents use what the train split does not: see the documents that grew on the asset's page; "
        "let the corpus hold more of their kind, or reassign fewer ids.",
        documents=lengths["texts"],
        documents_longer=lengths["longer"],
        share_longer=share,
        ceiling=settings.selection.longer_documents_ceiling,
    )


@dg.asset_check(asset="remapped_tokenizer", name="token_saving_floor")
def token_saving_floor(settings: SettingsResource, remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """New tokens save enough of the held-out text's tokens to be worth training (`saving_floor`)."""
    lengths = read_certificate(remapped_tokenizer.path)["heldout_lengths"]
    saving = 1 - lengths["other"] / max(lengths["base"], 1)
    return verdict(
        saving >= settings.selection.saving_floor,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Rows of new tokens have to be learned, and this saves little: fine-tuning the base model as it is will "
        "likely do as well. Try merge_scope: across, more candidates, or text of the domain alone.",
        token_saving=saving,
        floor=settings.selection.saving_floor,
    )
