"""The model card: `README.md` beside the adapted model's weights, for whoever gets that folder and nothing else.

The form is the Hugging Face hub's: YAML between `---`, then Markdown (https://huggingface.co/docs/hub/model-cards).
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from ivr_dagster.core.evaluation.figures import EvaluationReport
from ivr_dagster.core.evaluation.report import code, quality_table, summary, table
from ivr_dagster.storage.atomic import atomic_write

CARD = "README.md"
# a card with this line is ours and written anew by every evaluation
MARK = "<!-- Written by `ivr evaluate`, which replaces it every time. Delete this line to keep what you change. -->"


@dataclass(frozen=True)
class Provenance:
    """Where an adapted model comes from.

    Attributes:
        base_model: an id on the hub, or a folder's name.
        on_hub: which of the two.
        base_version: the commit on the hub, or a hash of the folder's content.
        architecture: `model_type` of its configuration.
        corpus_digest: hash of the cleaned corpus.
        train_documents: documents to learn from.
        train_bytes: UTF-8 bytes of text trained on, repetitions not counted; None where that is not known.
        heldout_documents: documents held out.
        rules: how many ids changed their string.
        vocabulary: ids in all.
    """

    base_model: str
    on_hub: bool
    base_version: str
    architecture: str
    corpus_digest: str
    train_documents: int
    train_bytes: int | None
    heldout_documents: int
    rules: int
    vocabulary: int


def model_card(report: EvaluationReport, source: Provenance) -> str:
    """The card as Markdown with its YAML head. The text's language is not named: nobody told it."""
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": source.base_model, "base_model_relation": "finetune"} if source.on_hub else {}),
        "tags": [source.architecture, "vocabulary-adaptation", "domain-adaptation", "ivr-dagster"],
    }
    title = source.base_model.rpartition("/")[2]
    origin = (
        f"[{source.base_model}](https://huggingface.co/{source.base_model})"
        if source.on_hub
        else f"`{source.base_model}` (a folder)"
    )
    rows = [
        ("base model", f"{origin}, {'commit' if source.on_hub else 'content'} `{source.base_version}`"),
        ("ids with a new string", f"{source.rules:,} of {source.vocabulary:,}"),
        ("corpus", f"`{source.corpus_digest}` (hash of its documents)"),
        ("documents", f"{source.train_documents:,} to learn from, {source.heldout_documents:,} held out"),
    ]
    if source.train_bytes is not None:
        rows += [("text trained on", f"{source.train_bytes:,} bytes")]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        MARK,
        f"# {title}, adapted",
        f"{origin} on a vocabulary of the same size that suits its domain better: {source.rules:,} ids of tokens that"
        " the domain hardly uses were given to strings that it uses all the time (in-place vocabulary reassignment),"
        " then the model was fine-tuned on text of the domain. Architecture and number of parameters are the base"
        " model's.",
        "## How it does",
        *summary(report),
        quality_table(report),
        "BPB: bits per byte of held-out text; lower is better, and it may be compared between tokenizers.",
        "## Use",
        "The tokenizer in this folder belongs to these weights; no other fits them, the base model's neither.",
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file lies\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'ids = tokenizer(tokenizer.eos_token + "Once", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0], skip_special_tokens=True))\n"
        "```",
        "## Where it comes from",
        table(("", ""), rows),
    ]
    if report.settings:
        parts += [
            "## Settings",
            table(("setting", "value"), [(key, code(str(value))) for key, value in report.settings.items()]),
        ]
    parts += [
        "## Licence",
        "The weights stay under the base model's licence, the training text under its own; who passes the model on has"
        " to see to both.",
    ]
    return "\n\n".join(parts) + "\n"


def write_model_card(folder: Path, card: str) -> bool:
    """Put the card into a model's folder, whole; one that a person has written stays, and False is returned."""
    file = folder / CARD
    if file.is_file() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
        return False
    with atomic_write(file) as staged:
        staged.write_text(card, encoding="utf-8")
    return True
