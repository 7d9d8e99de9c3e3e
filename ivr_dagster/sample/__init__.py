"""The embedded default of the pipeline: a small model, GPT-2's vocabulary and a corpus that every Python carries.

`ivr run --sample` needs neither network nor downloads: `model/` is a GPT-2 architecture trained on the standard
library's code (`train_model.py` made it), the corpus is the standard library's docstrings and help topics
(`corpus.py`), and `sft_config.yaml` fine-tunes within seconds on two processor cores.
"""

from pathlib import Path

SAMPLE_MODEL: Path = Path(__file__).parent / "model"
"""Model and tokenizer in one folder; loads with AutoModelForCausalLM and AutoTokenizer."""

SAMPLE_SFT_CONFIG: Path = Path(__file__).parent / "sft_config.yaml"
"""Training settings that suit the sample model and corpus."""
