"""Tokenizer folders: what AutoTokenizer needs around a `tokenizer.json`."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from ivr_dagster.core.errors import InputError

KEPT_FILES = ("chat_template.jinja",)


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
