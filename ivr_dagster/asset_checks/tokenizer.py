"""What the distilled tokenizer must keep: ids, text, and the base tokenizer's segmentation."""

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.agreement import ROUND_TRIP_BYTES, heldout_sample, measure_round_trip
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(
    asset="distilled_tokenizer", name="ids_kept", blocking=True, additional_ins=beside("original_tokenizer")
)
def distilled_ids_kept(
    distilled_tokenizer: TokenizerFolder, original_tokenizer: TokenizerFolder
) -> dg.AssetCheckResult:
    """The distilled tokenizer has exactly the base tokenizer's string → id map."""
    base, distilled = original_tokenizer.backend().get_vocab(), distilled_tokenizer.backend().get_vocab()
    differing = sum(distilled.get(string) != token_id for string, token_id in base.items())
    return verdict(
        base == distilled,
        remedy="The distillation is at fault, not the corpus: please report the base tokenizer.",
        vocabulary_size=len(distilled),
        vocabulary_size_base=len(base),
        ids_differing=differing,
    )


@dg.asset_check(asset="distilled_tokenizer", name="round_trip", blocking=True, additional_ins=beside("cleaned_corpus"))
def distilled_round_trip(distilled_tokenizer: TokenizerFolder, cleaned_corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """decode(encode(text)) gives held-out documents, up to 0.4 MB of them, back character by character."""
    return round_trip_verdict(distilled_tokenizer, cleaned_corpus)


@dg.asset_check(asset="distilled_tokenizer", name="agreement_floor", blocking=True)
def agreement_floor(settings: SettingsResource, distilled_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Agreement with the base tokenizer on train and held-out text is at or above the floor (`agreement_floor`)."""
    certificate = read_certificate(distilled_tokenizer.path)
    agreement, heldout = (float(certificate[split]["agreement"]) for split in ("train", "heldout"))
    return verdict(
        min(agreement, heldout) >= settings.tokenizer.agreement_floor,
        remedy="See the worst divergences on the asset's page; lower agreement_floor only if they don't matter to you.",
        agreement=agreement,
        agreement_heldout=heldout,
        floor=settings.tokenizer.agreement_floor,
    )


def round_trip_verdict(tokenizer: TokenizerFolder, corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """The round trip of held-out documents, up to `ROUND_TRIP_BYTES` of them, as a check's result."""
    result = measure_round_trip(tokenizer.backend(), heldout_sample(corpus, ROUND_TRIP_BYTES))
    first = ""
    if result.failure is not None:
        text, back = result.failure
        at = next((n for n, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
        first = f"{text[max(0, at - 20) : at + 20]!r} came back as {back[max(0, at - 20) : at + 20]!r}"
    return verdict(
        result.holds,
        remedy="A text does not survive encoding; see the first failure, and please report it.",
        documents=result.texts,
        exact=result.exact,
        first_failure=first,
    )
