"""Checks of the cleaned corpus."""

import dagster as dg

from ivr_dagster.asset_checks import verdict
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.resources.settings import SettingsResource


@dg.asset_check(asset="cleaned_corpus", name="heldout_floor")
def heldout_floor(settings: SettingsResource, cleaned_corpus: CleanedCorpus) -> dg.AssetCheckResult:
    """Enough documents are held out for meaningful confidence intervals (setting `heldout_floor`)."""
    documents = cleaned_corpus.count("heldout")
    return verdict(
        documents >= settings.corpus.heldout_floor,
        severity=dg.AssetCheckSeverity.WARN,
        remedy="Token saving and bits per byte are measured on these documents alone: raise heldout_fraction, or cut "
        "long .txt files into smaller documents (text_split_bytes).",
        heldout_documents=documents,
        train_documents=cleaned_corpus.count("train"),
        floor=settings.corpus.heldout_floor,
    )
