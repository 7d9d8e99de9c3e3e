"""Bundles of defaults, chosen by the setting `preset`."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # the packaged model on the standard library's docstrings: minutes on two cores
    "sample": {
        "model_name": "sample",
        "max_candidates": 1000,
        "train_bytes": 150_000,
        "general_share": 0.2,
        "block_size": 256,
        "tune_bytes": 150_000,
        "evaluation_bytes": 60_000,
        "retention_bytes": 30_000,
        "vanilla_compute": False,
    },
    # no accelerator: a model of a hundred million parameters in an afternoon
    "laptop": {
        "train_bytes": 1_000_000,
        "validation_bytes": 30_000,
        "block_size": 256,
        "calibration_bytes": 500_000,
        "tune_trials": 8,
        "tune_bytes": 200_000,
        "evaluation_bytes": 100_000,
        "retention_bytes": 30_000,
    },
    # all text, contexts as long as the model's, and more text for every measurement
    "gpu": {
        "device": "cuda",
        "validation_bytes": 500_000,
        "tune_bytes": 5_000_000,
        "evaluation_bytes": 5_000_000,
        "retention_bytes": 1_000_000,
    },
}
