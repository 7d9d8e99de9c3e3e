"""The stages of the command line and the assets each makes, in order."""

from collections.abc import Iterable
from itertools import groupby

STAGES: dict[str, tuple[str, ...]] = {
    "init": ("cleaned_corpus", "original_tokenizer"),
    "analyze": ("pretoken_counts", "token_stats", "token_sequences"),
    "distill-tokenizer": ("distilled_tokenizer",),
    "select": ("replacement_candidates", "selection_log"),
    "remap": ("remap_rules", "remapped_tokenizer"),
    "align": ("original_embeddings", "reordered_embeddings", "fitted_embeddings", "initialized_model"),
    "train": ("training_blocks", "sft_checkpoint", "vanilla_sft_checkpoint", "vanilla_compute_checkpoint"),
    "evaluate": ("evaluation_report",),
}

# stages of seconds, which `ivr run` makes in one run of Dagster: each run costs it about half a second
LIGHT = ("init", "analyze", "distill-tokenizer", "select", "remap")

# beside the stages: made only when it is asked for by name
TUNING = ("tuning_study",)

# vanilla baselines: the variant that the evaluation calls them → the asset
BASELINES = {"vanilla_sft": "vanilla_sft_checkpoint", "vanilla_compute_sft": "vanilla_compute_checkpoint"}


def baselines(*, vanilla: bool, vanilla_compute: bool) -> dict[str, str]:
    """Those of `BASELINES` that these settings ask for; the second only beside the first, whose text it takes."""
    wanted = {"vanilla_sft": vanilla, "vanilla_compute_sft": vanilla and vanilla_compute}
    return {variant: asset for variant, asset in BASELINES.items() if wanted[variant]}


def stage_assets(stage: str, *, vanilla: bool, vanilla_compute: bool) -> list[str]:
    """The assets of a stage, in order, without baselines that are not asked for."""
    left_out = set(BASELINES.values()) - set(baselines(vanilla=vanilla, vanilla_compute=vanilla_compute).values())
    return [name for name in STAGES[stage] if name not in left_out]


def stage_of(asset: str) -> str:
    """The command that makes an asset."""
    return next((stage for stage, names in STAGES.items() if asset in names), "tune" if asset in TUNING else "run")


def run_together(stages: Iterable[str]) -> list[list[str]]:
    """The stages, in order, those that one run makes in one list."""
    return [
        each
        for is_light, group in groupby(stages, key=LIGHT.__contains__)
        for each in ([list(group)] if is_light else [[stage] for stage in group])
    ]
