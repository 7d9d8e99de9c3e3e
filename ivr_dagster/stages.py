"""The stages of the command line and the assets each makes, in order."""

STAGES: dict[str, tuple[str, ...]] = {
    "init": ("cleaned_corpus", "original_tokenizer"),
    "analyze": ("pretoken_counts", "token_stats", "token_sequences"),
    "distill-tokenizer": ("distilled_tokenizer",),
    "select": ("replacement_candidates", "selection_log"),
    "remap": ("remap_rules", "remapped_tokenizer"),
    "align": ("original_embeddings", "reordered_embeddings", "initialized_model"),
    "train": ("training_blocks", "sft_checkpoint", "vanilla_sft_checkpoint"),
    "evaluate": ("evaluation_report",),
}

# the asset that only exists while the setting `vanilla` is on
VANILLA = "vanilla_sft_checkpoint"
