"""The model card of the adapted model, for readers who receive only the model folder.

YAML front matter, then Markdown, as on the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards). The
evaluation writes it to its own folder as `model_card.md`; `ivr export` copies it into the exported model folder.
"""

from dataclasses import dataclass

import yaml

from ivr_dagster.core.evaluation.figures import EvaluationReport
from ivr_dagster.core.evaluation.report import quality_table, settings_table, summary, table

MODEL_CARD = "model_card.md"


@dataclass(frozen=True)
class Provenance:
    """What an adapted model was made from.

    Attributes:
        base_model: hub id, or name of the folder.
        is_on_hub: whether `base_model` is a hub id.
        base_version: commit on the hub, or content hash of the folder.
        architecture: `model_type` of the model's configuration.
        corpus_digest: hash of the cleaned corpus.
        train_documents: number of training documents.
        train_bytes: UTF-8 bytes of training text, without repetitions; None if unknown.
        heldout_documents: number of held-out documents.
        rules: number of reassigned ids.
        vocabulary: number of ids in total.
    """

    base_model: str
    is_on_hub: bool
    base_version: str
    architecture: str
    corpus_digest: str
    train_documents: int
    train_bytes: int | None
    heldout_documents: int
    rules: int
    vocabulary: int


def model_card(report: EvaluationReport, source: Provenance) -> str:
    """The card. It does not name the language of the text, which is unknown."""
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": source.base_model, "base_model_relation": "finetune"} if source.is_on_hub else {}),
        "tags": [source.architecture, "vocabulary-adaptation", "domain-adaptation", "ivr-dagster"],
    }
    origin, kind = f"`{source.base_model}` (a local folder)", "content hash"
    if source.is_on_hub:
        origin, kind = f"[{source.base_model}](https://huggingface.co/{source.base_model})", "commit"
    rows = [
        ("base model", f"{origin}, {kind} `{source.base_version}`"),
        ("reassigned ids", f"{source.rules:,} of {source.vocabulary:,}"),
        ("corpus", f"`{source.corpus_digest}` (hash of its documents)"),
        ("documents", f"{source.train_documents:,} for training, {source.heldout_documents:,} held out"),
    ]
    if source.train_bytes is not None:
        rows += [("training text", f"{source.train_bytes:,} bytes")]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {source.base_model.rpartition('/')[2]}, adapted",
        f"{origin} with a vocabulary of the same size adapted to a domain: {source.rules:,} ids of tokens that the"
        " domain hardly uses were reassigned to strings that it uses often (in-place vocabulary reassignment), and the"
        " model was fine-tuned on text from the domain. Architecture and number of parameters are unchanged.",
        "## Results",
        *summary(report),
        quality_table(report),
        "BPB: bits per byte of held-out text; lower is better, comparable between tokenizers.",
        "## Usage",
        "Use the tokenizer of the model's folder. No other tokenizer works with these weights, not even the base's.",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # the model folder\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'ids = tokenizer(tokenizer.eos_token + "Once", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0], skip_special_tokens=True))\n"
        "```",
        "## Provenance",
        table(("", ""), rows),
        *(["## Settings", settings_table(report)] if report.settings else []),
        "## License",
        "The base model's license applies to the weights, and the training text has its own license. Check both before"
        " you share the model.",
    ]
    return "\n\n".join(parts) + "\n"
