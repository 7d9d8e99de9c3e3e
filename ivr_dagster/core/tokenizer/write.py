"""Tokenizer folders: what AutoTokenizer needs around a `tokenizer.json`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ivr_dagster.core.model.files import CONFIG, embedding_rows, read_config
from ivr_dagster.core.tokenizer.bpe import check_byte_level, strings_by_id
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, REMAP_RULES, TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokens.pretokens import read_pretokenization, specification
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.errors import InputError, short_message

KEPT_FILES = ("chat_template.jinja",)
# all that AutoTokenizer reads where there is a `tokenizer.json`
LOADED_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *KEPT_FILES)
# what transformers writes about how a tokenizer was loaded, no business of whoever loads it next
HOW_LOADED = ("is_local", "local_files_only")
# other files in which transformers looks for settings
MORE_SETTINGS = (
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates", "processor_config.json", "tokenizer.model", "tekken.json"),
)
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
# what transformers writes of GPT-2's class, in this order
GPT2_SETTINGS: dict[str, Any] = {
    "add_prefix_space": False,
    "backend": "tokenizers",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "errors": "replace",
    "model_max_length": None,
    "pad_token": None,
    "tokenizer_class": "GPT2Tokenizer",
    "unk_token": "<|endoftext|>",
}
CERTIFICATE = "agreement.json"


def write_original_tokenizer(source: Path, target: Path) -> None:
    """A copy of the base tokenizer in one form, whatever form it came in: `tokenizer.json` and its settings.

    GPT-2's own is told by its files, which spares the seconds that transformers takes to be imported.

    Raises:
        InputError: transformers finds no fast tokenizer in `source`; it is no byte-level BPE, or not the tokenizer of
            the model that is described beside it.
    """
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = _gpt2_tokenizer(source)
    if tokenizer is not None:
        config = _read_json(source / "tokenizer_config.json")
        _write_config(GPT2_SETTINGS | {"model_max_length": config["model_max_length"]}, target)
    else:
        tokenizer = _write_by_transformers(source, target)
    _check(tokenizer, source)
    write_tokenizer(tokenizer, target, target)


def _write_by_transformers(source: Path, target: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    remedy = "Give a folder with tokenizer.json and tokenizer_config.json, or with vocab.json and merges.txt."
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing narrower, and a class may fail in any way on odd settings
        if (source / "tokenizer.json").is_file():
            read_tokenizer(source / "tokenizer.json")  # where this is at fault, it says so more clearly
        raise InputError(
            f"no tokenizer can be loaded ({short_message(error)})",
            where=source,
            remedy=remedy,
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            "the tokenizer has no fast form (tokenizer.json)", where=source, remedy="Convert it with transformers."
        )
    # beside a model's config.json AutoTokenizer makes an empty tokenizer out of nothing
    if not any((source / name).is_file() for name in ("tokenizer.json", *tokenizer.vocab_files_names.values())):
        raise InputError("no tokenizer can be loaded (no file of one is there)", where=source, remedy=remedy)
    tokenizer.save_pretrained(target)
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _check(tokenizer: Tokenizer, source: Path) -> None:
    """See that it is a byte-level BPE and of the model beside it; what is at fault is the file in `source`."""
    file = source / "tokenizer.json"
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    try:
        check_byte_level(tokenizer)
        read_pretokenization(tokenizer)
        if any(tokenizer.id_to_token(token) is None for token in range(size)):
            strings_by_id(tokenizer)  # names the hole
    except InputError as error:
        raise InputError(error.message, where=file if file.is_file() else source, remedy=error.remedy) from error
    if (source / CONFIG).is_file():
        _check_belongs(size, read_config(source), source)


def _check_belongs(size: int, config: Mapping[str, Any], source: Path) -> None:
    """See that a tokenizer of so many ids may be that of a model, whose matrices may be padded beyond it."""
    rows, remedy = embedding_rows(config), "Give the model and the tokenizer that belong together."
    if rows is None:
        return
    if size > rows or 2 * size <= rows:
        raise InputError(
            f"the tokenizer has {size:,} tokens, the model {rows:,} embedding rows (vocab_size in {CONFIG})",
            where=source,
            remedy=remedy,
        )
    for name in ("eos_token_id", "bos_token_id"):
        told = config.get(name)
        # beyond the model's own rows it is a default that nobody set
        lost = [token for token in (told if isinstance(told, list) else [told]) if token in range(size, rows)]
        if lost:
            raise InputError(
                f"{name} is {lost[0]} in {CONFIG}, and the tokenizer has {size:,} tokens", where=source, remedy=remedy
            )


def _gpt2_tokenizer(source: Path) -> Tokenizer | None:
    """The tokenizer that transformers makes of a folder that is GPT-2's but for vocabulary and merges, else None.

    Its class builds a tokenizer of its own out of a `tokenizer.json`. Where the file says nothing else than the class
    does, and the settings are the class's, what comes of it is known.
    """
    files = [source / name for name in ("tokenizer.json", "tokenizer_config.json")]
    if not all(file.is_file() for file in files) or any((source / name).exists() for name in MORE_SETTINGS):
        return None
    try:
        spec, config = map(_read_json, files)
        model = _read_json(source / CONFIG) if (source / CONFIG).is_file() else {}
        if not _is_gpt2s(spec, config, model):
            return None
        tokenizer = Tokenizer.from_file(str(files[0]))
    except Exception:  # noqa: BLE001 (files of any form, and tokenizers raises nothing narrower; transformers tells)
        return None
    parts = [tokenizer.pre_tokenizer, tokenizer.decoder, tokenizer.post_processor]
    own = [pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()]
    if not isinstance(tokenizer.model, models.BPE) or [*map(specification, parts[:2])] != [*map(specification, own)]:
        return None
    if tokenizer.post_processor is None:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    elif not isinstance(tokenizer.post_processor, processors.ByteLevel):
        return None
    tokenizer.model.continuing_subword_prefix = tokenizer.model.end_of_word_suffix = ""
    return tokenizer


def _is_gpt2s(spec: Mapping[str, Any], config: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` says nothing else than GPT-2's class does, but for vocabulary and merges."""
    added = spec.get("added_tokens", [])
    kind = config.get("tokenizer_class", GPT2_CLASSES[0] if model else None)
    rest = {key: value for key, value in config.items() if key not in ("tokenizer_class", "model_max_length")}
    return (
        kind in GPT2_CLASSES
        and model.get("model_type", "gpt2") == "gpt2"
        and model.get("tokenizer_class", kind) == kind
        and isinstance(config.get("model_max_length"), int)
        and rest.items() <= GPT2_SETTINGS.items()
        and [(token["content"], token["special"]) for token in added] == [("<|endoftext|>", True)]
        and not any(added[0][flag] for flag in ("single_word", "lstrip", "rstrip"))
        and not any(spec.get(part) for part in ("normalizer", "truncation", "padding"))
        and not any(value for key, value in spec["model"].items() if key not in ("type", "vocab", "merges"))
    )


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write_config(config: Mapping[str, Any], folder: Path) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def write_tokenizer(tokenizer: Tokenizer, like: Path, target: Path, *, base: Path | None = None) -> None:
    """Write `tokenizer` with the settings of the tokenizer folder `like`: special tokens, chat template, padding side.

    The class becomes the one that takes `tokenizer.json` as it is; model classes such as GPT2Tokenizer would build a
    BPE of their own. Decoding does not "clean up" spaces, or it would not give the text back.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = _read_json(like / "tokenizer_config.json")
    config = {key: value for key, value in config.items() if key not in HOW_LOADED}
    _write_config(
        config | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}, target
    )
    for name in KEPT_FILES:
        if (like / name).is_file() and like != target:
            shutil.copyfile(like / name, target / name)
    for name in ("vocab.json", "merges.txt"):  # of a BPE, which `tokenizer.json` may no longer be
        (target / name).unlink(missing_ok=True)
    tokenizer.save(str(target / TOKENIZER), pretty=False)
    if base is not None:
        shutil.copyfile(base, target / BASE_TOKENIZER)


def write_copy(tokenizer: TokenizerFolder, target: Path) -> None:
    """Copy a tokenizer and its context (base tokenizer, remap rules) into a model folder, byte for byte.

    save_pretrained would record how the tokenizer was loaded, and a class that earlier versions do not know.
    """
    files = {name: tokenizer.path / name for name in LOADED_FILES}
    files |= {BASE_TOKENIZER: tokenizer.base_file, REMAP_RULES: tokenizer.rules_file}
    for name, file in files.items():
        if file.is_file():
            shutil.copyfile(file, target / name)


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
