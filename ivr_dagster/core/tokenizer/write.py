"""Writing tokenizer folders: what AutoTokenizer needs around a `tokenizer.json`, and the certificate beside it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ivr_dagster.core.model.files import CONFIG, embedding_rows, read_config
from ivr_dagster.core.tokenizer.bpe import check_byte_level, strings_by_id
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, BPE_TOKENIZER, REMAP_RULES, TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.errors import InputError, short_message

TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# everything that AutoTokenizer reads if there is a `tokenizer.json`
LOADED_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", CHAT_TEMPLATE)
# transformers records how a tokenizer was loaded; that does not belong to the tokenizer
LOADING_KEYS = ("is_local", "local_files_only")
CERTIFICATE = "agreement.json"


def write_original_tokenizer(source: Path, target: Path) -> None:
    """Copy the base tokenizer in one format (`tokenizer.json` and its settings), whatever format `source` has.

    Raises:
        InputError: transformers finds no fast tokenizer in `source`, it is not a byte-level BPE, or it does not belong
            to the model in `source`.
    """
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = _load_fast_tokenizer(source)
    _check_base_tokenizer(tokenizer.backend_tokenizer, source)
    tokenizer.save_pretrained(target)
    write_tokenizer(tokenizer.backend_tokenizer, target, target)


def _load_fast_tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    remedy = f"Give a folder with {TOKENIZER} and {TOKENIZER_CONFIG}, or with vocab.json and merges.txt."
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer classes raise anything on invalid files
        if (source / TOKENIZER).is_file():
            read_tokenizer(source / TOKENIZER)  # if this file is invalid, its error is clearer
        raise InputError(f"no tokenizer can be loaded ({short_message(error)})", where=source, remedy=remedy) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer has no fast form ({TOKENIZER})", where=source, remedy="Convert it with transformers."
        )
    # next to a model's config.json AutoTokenizer silently creates an empty tokenizer
    if not any((source / name).is_file() for name in (TOKENIZER, *tokenizer.vocab_files_names.values())):
        raise InputError("no tokenizer can be loaded (its files are missing)", where=source, remedy=remedy)
    return tokenizer


def _check_base_tokenizer(tokenizer: Tokenizer, source: Path) -> None:
    file = source / TOKENIZER
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    try:
        check_byte_level(tokenizer)
        read_pretokenization(tokenizer)
        if any(tokenizer.id_to_token(token_id) is None for token_id in range(size)):
            strings_by_id(tokenizer)  # reports the missing id
    except InputError as error:
        raise InputError(error.message, where=file if file.is_file() else source, remedy=error.remedy) from error
    if (source / CONFIG).is_file():
        _check_matches_model(size, read_config(source), source)


def _check_matches_model(size: int, config: Mapping[str, Any], source: Path) -> None:
    """Compare the number of tokens with a model's configuration. Embedding matrices may be padded."""
    rows, remedy = embedding_rows(config), "Give a model and tokenizer that belong together."
    if rows is None:
        return
    if size > rows or 2 * size <= rows:
        raise InputError(
            f"the tokenizer has {size:,} tokens, the model {rows:,} embedding rows (vocab_size in {CONFIG})",
            where=source,
            remedy=remedy,
        )
    for name in ("eos_token_id", "bos_token_id"):
        ids = config.get(name)
        # an id beyond the model's rows is an unused default
        unknown = [token_id for token_id in (ids if isinstance(ids, list) else [ids]) if token_id in range(size, rows)]
        if unknown:
            raise InputError(
                f"{name} is {unknown[0]} in {CONFIG}, but the tokenizer has {size:,} tokens",
                where=source,
                remedy=remedy,
            )


def write_tokenizer(tokenizer: Tokenizer, like: Path, target: Path, *, base: Path | None = None) -> None:
    """Write `tokenizer` with the settings of the folder `like`: special tokens, chat template, padding side.

    The class becomes the generic PreTrainedTokenizerFast: model classes such as GPT2Tokenizer rebuild a BPE and ignore
    `tokenizer.json`. Decoding does not "clean up" spaces, so that it returns the exact text.

    Args:
        tokenizer: the tokenizer.
        like: a tokenizer folder; may be `target`.
        target: where to write.
        base: the `tokenizer.json` of the base tokenizer, to be copied as well.
    """
    target.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = json.loads((like / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in LOADING_KEYS}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (target / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
    if (like / CHAT_TEMPLATE).is_file() and like != target:
        shutil.copyfile(like / CHAT_TEMPLATE, target / CHAT_TEMPLATE)
    for name in ("vocab.json", "merges.txt"):  # these describe a BPE, `tokenizer.json` may be a Unigram
        (target / name).unlink(missing_ok=True)
    tokenizer.save(str(target / TOKENIZER), pretty=False)
    if base is not None:
        shutil.copyfile(base, target / BASE_TOKENIZER)


def write_copy(tokenizer: TokenizerFolder, target: Path) -> None:
    """Copy a tokenizer and its context (BPE form, base tokenizer, remap rules) into a folder, byte for byte.

    save_pretrained would record how the tokenizer was loaded, and a class that earlier versions do not know.
    """
    files = {name: tokenizer.path / name for name in LOADED_FILES}
    files |= {TOKENIZER: tokenizer.file, BASE_TOKENIZER: tokenizer.base_file, REMAP_RULES: tokenizer.rules_file}
    if tokenizer.has_bpe_form():
        files[BPE_TOKENIZER] = tokenizer.bpe_file
    target.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        if file.is_file():
            shutil.copyfile(file, target / name)


def write_unigram_form(unigram: Tokenizer, bpe: TokenizerFolder, target: Path) -> None:
    """Write a Unigram distilled from a remapped BPE, with the BPE and its context."""
    write_copy(bpe, target)
    shutil.copyfile(bpe.file, target / BPE_TOKENIZER)
    write_tokenizer(unigram, bpe.path, target)


def write_certificate(certificate: Mapping[str, object], folder: Path) -> None:
    """Write the measured agreement beside the tokenizer, as `agreement.json`."""
    text = json.dumps(certificate, ensure_ascii=False, indent=1) + "\n"
    (folder / CERTIFICATE).write_text(text, encoding="utf-8")


def read_certificate(folder: Path) -> dict[str, Any]:
    """The content of `agreement.json`.

    Raises:
        InputError: the file is missing.
    """
    file = folder / CERTIFICATE
    if not file.is_file():
        raise InputError("the tokenizer has no certificate", where=file, remedy="Materialize the tokenizer again.")
    certificate: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return certificate
