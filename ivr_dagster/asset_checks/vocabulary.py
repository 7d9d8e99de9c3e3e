"""Checks of the remapped tokenizer in both forms: ids, round trip, and that its new tokens are useful."""

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.asset_checks.tokenizer import agreement_verdict, round_trip_verdict
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.core.vocabulary.remap import remapped_strings, unreachable_tokens
from ivr_dagster.core.vocabulary.rules import applied_rules
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(asset="remapped_bpe_tokenizer", name="ids_kept", blocking=True)
def remapped_bpe_ids_kept(remapped_bpe_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """The vocabulary has the base's size; ids without a rule keep their string, ids with one have the new token."""
    return _ids_kept(remapped_bpe_tokenizer)


@dg.asset_check(asset="remapped_tokenizer", name="ids_kept", blocking=True)
def remapped_ids_kept(remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """The vocabulary has the base's size; ids without a rule keep their string, ids with one have the new token."""
    return _ids_kept(remapped_tokenizer)


@dg.asset_check(
    asset="remapped_bpe_tokenizer", name="round_trip", blocking=True, additional_ins=beside("cleaned_corpus")
)
def remapped_bpe_round_trip(
    remapped_bpe_tokenizer: TokenizerFolder, cleaned_corpus: CleanedCorpus
) -> dg.AssetCheckResult:
    """decode(encode(text)) reproduces up to 0.4 MB of held-out documents exactly."""
    return round_trip_verdict(remapped_bpe_tokenizer, cleaned_corpus)


@dg.asset_check(asset="remapped_tokenizer", name="round_trip", blocking=True, additional_ins=beside("cleaned_corpus"))
def remapped_round_trip(remapped_tokenizer: TokenizerFolder, cleaned_corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """decode(encode(text)) reproduces up to 0.4 MB of held-out documents exactly."""
    return round_trip_verdict(remapped_tokenizer, cleaned_corpus)


@dg.asset_check(asset="remapped_bpe_tokenizer", name="new_tokens_reachable", blocking=True)
def bpe_new_tokens_reachable(remapped_bpe_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Every new token's own text is encoded as that one token, so that no id is wasted."""
    return _new_tokens_reachable(remapped_bpe_tokenizer)


@dg.asset_check(asset="remapped_tokenizer", name="new_tokens_reachable", blocking=True)
def new_tokens_reachable(remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Every new token's own text is encoded as that one token, so that no id is wasted."""
    return _new_tokens_reachable(remapped_tokenizer)


@dg.asset_check(asset="remapped_bpe_tokenizer", name="other_text_unchanged", blocking=True)
def other_text_unchanged(remapped_bpe_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Train pre-tokens without new or sacrificed tokens have exactly the base tokenizer's ids."""
    certificate = read_certificate(remapped_bpe_tokenizer.path)
    occurrences, identical = (certificate[f"untouched_occurrences{end}"] for end in ("", "_identical"))
    return verdict(
        occurrences == identical,
        remedy="This is an error in the remapping, not in the corpus: please report the base tokenizer.",
        occurrences=occurrences,
        identical=identical,
    )


@dg.asset_check(asset="remapped_tokenizer", name="agreement_floor", blocking=True)
def remapped_agreement_floor(settings: SettingsResource, remapped_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Agreement of the Unigram with the BPE form on train and held-out text is at least `agreement_floor`."""
    return agreement_verdict(remapped_tokenizer, settings.tokenizer.agreement_floor)


def _ids_kept(tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    rules = applied_rules(tokenizer)
    expected = remapped_strings(strings_by_id(tokenizer.base_backend()), rules)
    strings = strings_by_id(tokenizer.backend())
    differing = sum(a != b for a, b in zip(expected, strings, strict=False)) + abs(len(expected) - len(strings))
    return verdict(
        differing == 0,
        remedy="Rules and tokenizer do not belong together. Run `ivr remap` again.",
        vocabulary_size=len(strings),
        vocabulary_size_base=len(expected),
        ids_reassigned=len(rules),
        ids_differing=differing,
    )


def _new_tokens_reachable(tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    rules = applied_rules(tokenizer)
    unreachable = unreachable_tokens(tokenizer.backend(), rules)
    return verdict(
        not unreachable,
        remedy="Delete the rules of these tokens from remap_rules.yaml, or run `ivr select` again.",
        new_tokens=len(rules),
        unreachable=len(unreachable),
        first_unreachable=", ".join(map(repr, unreachable[:10])),
    )


@dg.asset_check(asset="remapped_bpe_tokenizer", name="documents_no_longer")
def documents_no_longer(settings: SettingsResource, remapped_bpe_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """At most `longer_documents_ceiling` of the held-out documents take more tokens than before."""
    lengths = read_certificate(remapped_bpe_tokenizer.path)["heldout_lengths"]
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


@dg.asset_check(asset="remapped_bpe_tokenizer", name="token_saving_floor")
def token_saving_floor(settings: SettingsResource, remapped_bpe_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """New tokens save at least `saving_floor` of the held-out text's tokens."""
    lengths = read_certificate(remapped_bpe_tokenizer.path)["heldout_lengths"]
    saving, floor = 1 - lengths["other"] / max(lengths["base"], 1), settings.selection.saving_floor
    return verdict(
        saving >= floor,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="New rows must be learned, and this saves little: fine-tuning the unchanged base model will likely do "
        "as well. Try merge_scope: across, more candidates, or a corpus of domain text only.",
        token_saving=saving,
        floor=floor,
    )
