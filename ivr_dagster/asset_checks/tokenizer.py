"""Checks of the distilled tokenizer: ids, round trip, agreement with the base tokenizer."""

import dagster as dg

from ivr_dagster.asset_checks import beside, verdict
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.tokenizer.agreement import ROUND_TRIP_BYTES, heldout_sample, measure_round_trip
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import read_certificate
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(asset="distilled_tokenizer", name="ids_kept", blocking=True)
def distilled_ids_kept(distilled_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """The distilled tokenizer has exactly the base tokenizer's string → id map."""
    base, distilled = distilled_tokenizer.base_backend().get_vocab(), distilled_tokenizer.backend().get_vocab()
    return verdict(
        base == distilled,
        remedy="This is an error in the distillation, not in the corpus: please report the base tokenizer.",
        vocabulary_size=len(distilled),
        vocabulary_size_base=len(base),
        ids_differing=sum(distilled.get(string) != token_id for string, token_id in base.items()),
    )


@dg.asset_check(asset="distilled_tokenizer", name="round_trip", blocking=True, additional_ins=beside("cleaned_corpus"))
def distilled_round_trip(distilled_tokenizer: TokenizerFolder, cleaned_corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """decode(encode(text)) reproduces up to 0.4 MB of held-out documents exactly."""
    return round_trip_verdict(distilled_tokenizer, cleaned_corpus)


@dg.asset_check(asset="distilled_tokenizer", name="agreement_floor", blocking=True)
def agreement_floor(settings: SettingsResource, distilled_tokenizer: TokenizerFolder) -> dg.AssetCheckResult:
    """Agreement with the base tokenizer on train and held-out text is at least `agreement_floor`."""
    return agreement_verdict(distilled_tokenizer, settings.tokenizer.agreement_floor)


def agreement_verdict(tokenizer: TokenizerFolder, floor: float) -> dg.AssetCheckResult:
    """Whether a distilled tokenizer's certificate reaches a floor."""
    certificate = read_certificate(tokenizer.path)
    agreement, heldout = (float(certificate[split]["agreement"]) for split in ("train", "heldout"))
    return verdict(
        min(agreement, heldout) >= floor,
        remedy="See the worst divergences on the asset's page. Lower agreement_floor if they do not matter to you.",
        agreement=agreement,
        agreement_heldout=heldout,
        floor=floor,
    )


def round_trip_verdict(tokenizer: TokenizerFolder, corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """The result of a round trip of up to `ROUND_TRIP_BYTES` of held-out documents."""
    result = measure_round_trip(tokenizer.backend(), heldout_sample(corpus, ROUND_TRIP_BYTES))
    failure = ""
    if result.failure is not None:
        text, decoded = result.failure
        pairs = enumerate(zip(text, decoded, strict=False))
        at = next((n for n, (a, b) in pairs if a != b), min(len(text), len(decoded)))
        part = slice(max(0, at - 20), at + 20)
        failure = f"{text[part]!r} was decoded as {decoded[part]!r}"
    return verdict(
        result.is_exact,
        remedy="A text does not survive encoding. Please report the first failure.",
        documents=result.texts,
        exact=result.exact,
        first_failure=failure,
    )
