"""The embedded default of the pipeline: a small model with GPT-2's vocabulary, and a corpus from the standard library.

`ivr run --sample` needs neither network nor downloads: `model/` is a GPT-2 architecture trained on the standard
library's code (`benchmarks/train_sample_model.py`), the corpus is its docstrings and help topics (`corpus.py`), and
`sft_config.yaml` fine-tunes within seconds on two cores.
"""

from pathlib import Path

SAMPLE_MODEL: Path = Path(__file__).parent / "model"
"""Folder with model and tokenizer; loads with AutoModelForCausalLM and AutoTokenizer."""

SAMPLE_SFT_CONFIG: Path = Path(__file__).parent / "sft_config.yaml"
"""Training settings for the sample model and corpus."""
