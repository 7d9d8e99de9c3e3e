"""Writing the fine-tuned model with the BPE form of its tokenizer, for transformers, vLLM, SGLang and transformers.js.

The folder is a model repository: weights, configuration, tokenizer, chat template and model card.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml
from tokenizers import Tokenizer

from ivr_dagster.core.export.gguf import ExportError
from ivr_dagster.core.export.probes import probe_texts
from ivr_dagster.core.model.files import CONFIG, INDEX, weight_files
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_tokenizer
from ivr_dagster.errors import short_repr
from ivr_dagster.storage.content_hash import hash_file

GENERATION_CONFIG, CARD = "generation_config.json", "README.md"


def write_huggingface(model: ModelFolder, card: str, folder: Path, texts: Iterable[str] = ()) -> int:
    """Write a model folder and open it with transformers; returns the number of texts compared.

    Args:
        model: the fine-tuned model with its tokenizer.
        card: the model card.
        folder: an existing folder.
        texts: texts to compare in addition to :func:`probe_texts`.

    Raises:
        InputError: the model has no BPE form of its tokenizer.
        ExportError: transformers does not load what was written.
    """
    tokenizer = TokenizerFolder(model.path).bpe_form()
    copy_model(model, folder)
    write_tokenizer(with_unicode_digits(tokenizer), model.path, folder)
    (folder / CARD).write_text(card, encoding="utf-8")
    for file in weight_files(model.path):
        if hash_file(file) != hash_file(folder / file.name):
            raise ExportError(f"{folder / file.name} differs from {file}")
    ModelFolder(folder).load()
    return _compare_tokenizers(model.path, folder, [*probe_texts(tokenizer), *texts])


def copy_model(model: ModelFolder, folder: Path) -> None:
    """Copy weights and configuration of a model, without its tokenizer."""
    for file in (*weight_files(model.path), *(model.path / name for name in (CONFIG, INDEX, GENERATION_CONFIG))):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def with_unicode_digits(tokenizer: Tokenizer) -> Tokenizer:
    r"""The tokenizer with `Split(\p{N})` for `Digits`, which means the same in Rust.

    @huggingface/tokenizers reads `Digits` as the ASCII digits, and would split other numbers (½, Ⅷ, ٣) differently.
    """
    specification = json.loads(tokenizer.to_str())
    outer = specification["pre_tokenizer"]
    parts = outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]
    for part in parts:
        if part["type"] == "Digits" and part["individual_digits"]:
            part.clear()
            part |= {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}
    return Tokenizer.from_str(json.dumps(specification))


def _compare_tokenizers(model: Path, folder: Path, texts: list[str]) -> int:
    """Compare AutoTokenizer in the new folder with the BPE form in the model's."""
    expected = TokenizerFolder(model).bpe_form()
    loaded = TokenizerFolder(folder).load()
    pairs = zip(
        texts,
        expected.encode_batch_fast(texts, add_special_tokens=True),
        loaded.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=True),
        strict=True,
    )
    for text, wanted, found in pairs:
        if wanted.ids != found.ids:
            raise ExportError(f"{folder}: AutoTokenizer encodes {short_repr(text)} differently than the model's BPE")
    return len(texts)


def plain_card(architecture: str, name: str) -> str:
    """A model card without figures, for a model that was not evaluated."""
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": [architecture, "ivr-dagster"]}
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}, adapted\n\n{name} with a vocabulary of the same "
        "size adapted to a domain, fine-tuned on text from the domain. This model was not evaluated.\n\nUse the "
        "tokenizer of this folder. No other tokenizer works with these weights, not even the base's.\n"
    )
