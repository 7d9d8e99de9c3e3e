"""The model card of the adapted model, for readers who receive only the model folder.

YAML front matter, then Markdown, as on the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards). The
evaluation writes it to its own folder as `model_card.md`; `ivr export` copies it into the exported model folder.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from ivr_dagster.core.evaluation.figures import VARIANTS, EvaluationReport
from ivr_dagster.core.evaluation.report import headline, hyperparameters, quality_table, settings_table, summary, table

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
        languages: codes of the text's languages, such as `ko`; empty if unknown.
        license: the Hub's identifier of the license, such as `apache-2.0`; empty if unknown.
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
    languages: tuple[str, ...] = ()
    license: str = ""


def model_card(report: EvaluationReport, source: Provenance) -> str:
    """The card as Markdown."""
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
        f"---\n{_metadata(report, source).to_yaml()}\n---",
        f"# {_name(source)}",
        f"{origin} with a vocabulary of the same size adapted to a domain: {source.rules:,} ids of tokens that the"
        " domain hardly uses were reassigned to strings that it uses often (in-place vocabulary reassignment), and the"
        " model was fine-tuned on text from the domain. Architecture and number of parameters are unchanged.",
        "## Results",
        *headline(report),
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
        *hyperparameters(report),
        "## License",
        "The base model's license applies to the weights, and the training text has its own license. Check both before"
        " you share the model.",
    ]
    return "\n\n".join(parts) + "\n"


def license_of(folder: Path) -> str:
    """The license that the model card in a folder states; empty without a valid card."""
    card = folder / "README.md"
    try:
        stated = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError, YAMLError):
        return ""
    return stated if isinstance(stated, str) else ""


def _name(source: Provenance) -> str:
    return f"{source.base_model.rpartition('/')[2]}, adapted"


def _metadata(report: EvaluationReport, source: Provenance) -> ModelCardData:
    """The front matter, with the figures of the fine-tuned model as the Hub's `model-index`."""
    results = []
    if "sft" in report.variants:
        text = f"held-out documents of corpus {source.corpus_digest[:12]}"
        figures = (
            ("bits_per_byte", f"Bits per byte, {VARIANTS['sft']}", report.variants["sft"].bpb),
            ("token_saving", "Share of tokens saved compared with the base tokenizer", report.token_saving),
        )
        results = [
            EvalResult("text-generation", "text", text, kind, round(value, 4), metric_name=name)
            for kind, name, value in figures
        ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        language=list(source.languages) or None,
        license=source.license or None,
        base_model=source.base_model if source.is_on_hub else None,
        base_model_relation="finetune" if source.is_on_hub else None,
        tags=[source.architecture, "vocabulary-adaptation", "domain-adaptation", "ivr-dagster"],
        model_name=_name(source) if results else None,
        eval_results=results or None,
    )
