"""Tokenizer folders: what AutoTokenizer needs around a `tokenizer.json`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ivr_dagster.core.errors import InputError

KEPT_FILES = ("chat_template.jinja",)
# all that AutoTokenizer reads where there is a `tokenizer.json`
LOADED_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *KEPT_FILES)
# what transformers writes about how a tokenizer was loaded, no business of whoever loads it next
HOW_LOADED = ("is_local", "local_files_only")
CERTIFICATE = "agreement.json"


def write_original_tokenizer(source: Path, target: Path) -> None:
    """A copy of the base tokenizer in one form, whatever form it came in: `tokenizer.json` and its settings.

    Raises:
        InputError: transformers finds no fast tokenizer in `source`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no tokenizer can be loaded ({error})",
            where=source,
            remedy="Give a folder with tokenizer.json and tokenizer_config.json, or with vocab.json and merges.txt.",
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            "the tokenizer has no fast form (tokenizer.json)", where=source, remedy="Convert it with transformers."
        )
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(target)
    write_tokenizer(tokenizer.backend_tokenizer, target, target)


def write_tokenizer(tokenizer: Tokenizer, like: Path, target: Path) -> None:
    """Write `tokenizer` with the settings of the tokenizer folder `like`: special tokens, chat template, padding side.

    The class becomes the one that takes `tokenizer.json` as it is; model classes such as GPT2Tokenizer would build a
    BPE of their own. Decoding does not "clean up" spaces, or it would not give the text back.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((like / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in HOW_LOADED}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (target / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for name in KEPT_FILES:
        if (like / name).is_file() and like != target:
            shutil.copyfile(like / name, target / name)
    for name in ("vocab.json", "merges.txt"):  # of a BPE, which `tokenizer.json` may no longer be
        (target / name).unlink(missing_ok=True)
    tokenizer.save(str(target / "tokenizer.json"), pretty=False)


def write_copy(source: Path, target: Path) -> None:
    """Put the tokenizer of one folder into another, which may hold a model, its files byte for byte.

    transformers' save_pretrained would note how it was loaded, and a class that earlier versions do not know.
    """
    for name in LOADED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_certificate(certificate: Mapping[str, object], folder: Path) -> None:
    """What was compared and found, beside the tokenizer, as `agreement.json`."""
    text = json.dumps(certificate, ensure_ascii=False, indent=1) + "\n"
    (folder / CERTIFICATE).write_text(text, encoding="utf-8")


def read_certificate(folder: Path) -> dict[str, Any]:
    """What :func:`write_certificate` wrote.

    Raises:
        InputError: there is none.
    """
    file = folder / CERTIFICATE
    if not file.is_file():
        raise InputError("no certificate beside the tokenizer", where=file, remedy="Materialize the tokenizer again.")
    certificate: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return certificate
