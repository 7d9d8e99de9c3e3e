"""A BPE tokenizer in the terms of llama.cpp: a named pre-tokenizer, tokens with types, merges by rank, special ids.

llama.cpp contains the pre-tokenizers of known models and selects one by name (`tokenizer.ggml.pre`). Its converter
recognizes a tokenizer by a hash of ids, which vocabulary surgery changes; here the patterns in `tokenizer.json` decide.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.core.tokenizer.folder import TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.core.tokens.pretokens import GPT2_PATTERN, pre_tokenizer_parts
from ivr_dagster.errors import InputError

# `llama_token_type` in llama.h
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
# The names of llama.cpp's pre-tokenizers (src/llama-vocab.cpp) by the patterns that split the text one after the other,
# and whether llama.cpp then keeps a pre-token that is in the vocabulary whole, whatever the merges.
_NAMES: Mapping[tuple[str, ...], Mapping[str, bool]] = {
    (GPT2_PATTERN,): {"gpt-2": False},
    (r"\p{N}", GPT2_PATTERN): {"smollm": False},
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACE}",): {"llama-bpe": True, "smaug-bpe": False},
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS_AND_SPACE}",): {"qwen2": False},
    (rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_END}",): {"gpt-4o": False},
    (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_END}",): {"tekken": True},
    (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_V3): {"deepseek-v3": False},
}
OTHER_FORMATS = "Export the other formats: `ivr export --formats huggingface,tiktoken`"


@dataclass(frozen=True)
class LlamaCppTokenizer:
    """The tokenizer's part of a GGUF file.

    Attributes:
        pre: name of the pre-tokenizer.
        tokens: the token of every embedding row, in the byte-level alphabet; added tokens unchanged.
        types: the type of every token.
        merges: both halves of each merge separated by a space, by merge rank.
        special_ids: by role (`bos`, `eos`, `pad`, `unk`).
        add_bos, add_eos: whether encoding a text adds these tokens.
        chat_template: Jinja, None if the tokenizer has none.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None

    def metadata(self) -> dict[str, Any]:
        """Keys and values of the GGUF file."""
        prefix = "tokenizer.ggml"
        return {
            f"{prefix}.model": "gpt2",  # byte-level BPE
            f"{prefix}.pre": self.pre,
            f"{prefix}.tokens": list(self.tokens),
            f"{prefix}.token_type": list(self.types),
            f"{prefix}.merges": list(self.merges),
            **{f"{prefix}.{_KEYS[role]}": token_id for role, token_id in self.special_ids.items()},
            f"{prefix}.add_bos_token": self.add_bos,
            f"{prefix}.add_eos_token": self.add_eos,
            **({"tokenizer.chat_template": self.chat_template} if self.chat_template else {}),
        }


_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "padding_token_id",
    "unk": "unknown_token_id",
}


def describe_tokenizer(folder: TokenizerFolder, rows: int, pre: str) -> LlamaCppTokenizer:
    """The BPE form of a model's tokenizer in the terms of llama.cpp.

    Args:
        folder: the model's folder.
        rows: number of embedding rows; rows without a token become unused tokens.
        pre: name of the pre-tokenizer.

    Raises:
        InputError: there are more tokens than rows.
    """
    tokenizer = folder.bpe_form()
    strings = strings_by_id(tokenizer)
    if len(strings) > rows:
        raise InputError(
            f"the tokenizer has {len(strings):,} tokens, the model {rows:,} embedding rows",
            where=folder.path,
            remedy="Export a model and tokenizer that belong together.",
        )
    added = tokenizer.get_added_tokens_decoder()
    types = [NORMAL if i not in added else CONTROL if added[i].special else USER_DEFINED for i in range(len(strings))]
    padding = range(len(strings), rows)
    specification = json.loads(tokenizer.to_str())
    loaded: Any = folder.load()
    special_ids = _special_ids(loaded)
    template = loaded.chat_template
    first, last = _ends_of_an_encoding(tokenizer)
    return LlamaCppTokenizer(
        pre=pre,
        tokens=(*strings, *(f"[PAD{i}]" for i in padding)),
        types=(*types, *(UNUSED for _ in padding)),
        merges=tuple(" ".join(pair) for pair in specification["model"]["merges"]),
        special_ids=special_ids,
        add_bos=first is not None and first == special_ids.get("bos"),
        add_eos=last is not None and last == special_ids.get("eos"),
        chat_template=template.get("default") if isinstance(template, dict) else template,
    )


def _special_ids(loaded: Any) -> dict[str, int]:
    names = {role: getattr(loaded, f"{role}_token_id") for role in _KEYS}
    if names["bos"] is None:  # without one, llama.cpp takes id 11 of a BPE vocabulary
        names["bos"] = names["eos"]
    return {role: int(token_id) for role, token_id in names.items() if token_id is not None}


def _ends_of_an_encoding(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The special ids that the post-processor adds before and after a text."""
    text = "a"
    plain, full = (tokenizer.encode(text, add_special_tokens=add).ids for add in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            end = start + len(plain)
            return (full[0] if start else None), (full[-1] if end < len(full) else None)
    return None, None


def check_merge_scope(folder: TokenizerFolder) -> None:
    """Check that a tokenizer splits text as its base tokenizer does.

    Raises:
        InputError: it does not, because new tokens join whole pre-tokens.
    """
    if folder.base_file.is_file() and _patterns(folder.bpe_form()) != _patterns(folder.base_backend()):
        raise InputError(
            "GGUF was requested, but new tokens join whole pre-tokens (merge_scope across), which llama.cpp cannot"
            " express",
            where=folder.path,
            remedy=f"Select new tokens with --merge-scope within and train again. {OTHER_FORMATS}.",
        )


def pre_tokenizer_name(folder: TokenizerFolder) -> str:
    """llama.cpp's name of the pre-tokenizer of a tokenizer's BPE form.

    Raises:
        InputError: it has none; or a token depends on `ignore_merges` otherwise than there.
    """
    tokenizer = folder.bpe_form()
    patterns = _patterns(tokenizer)
    names = _NAMES.get(patterns)
    if names is None:
        known = ", ".join(name for each in _NAMES.values() for name in each)
        raise InputError(
            f"GGUF was requested, but llama.cpp has no name for the pre-tokenizer {_short(patterns)}; supported are "
            f"those of {known}",
            where=folder.path / TOKENIZER,
            remedy=f"Name llama.cpp's converter with --gguf-converter. {OTHER_FORMATS}.",
        )
    ignores_merges = bool(getattr(tokenizer.model, "ignore_merges", False))
    for name, ignored in names.items():
        if ignored == ignores_merges:
            return name
    token = _token_that_needs_ignore_merges(tokenizer)
    if token is None:  # both settings give the same ids
        return next(iter(names))
    raise InputError(
        f"GGUF was requested, but llama.cpp's pre-tokenizer {next(iter(names))} and this tokenizer treat pre-tokens in "
        f"the vocabulary differently (ignore_merges), and the token {token!r} depends on it",
        where=folder.path / TOKENIZER,
        remedy=f"{OTHER_FORMATS}.",
    )


def _patterns(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The regular expressions of a pre-tokenizer, in order; other parts as their names."""
    patterns = []
    for part in pre_tokenizer_parts(tokenizer):
        kind = part["type"]
        pattern = part.get("pattern", {}).get("Regex")
        isolated = part.get("behavior") == "Isolated" and not part.get("invert")
        matched = part.get("behavior") == "Removed" and part.get("invert")
        if kind == "Split" and pattern and (isolated or matched):
            patterns.append(str(pattern).replace("\r", r"\r").replace("\n", r"\n"))  # DeepSeek has the characters
        elif kind == "Digits" and part.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "ByteLevel" and part.get("use_regex", True):
            patterns.append(GPT2_PATTERN)
        elif kind != "ByteLevel":
            patterns.append(kind)
    return tuple(patterns)


def _token_that_needs_ignore_merges(tokenizer: Tokenizer) -> str | None:
    """A token that merges alone do not produce from its own string, None if there is none."""
    specification = json.loads(tokenizer.to_str())
    specification["model"]["ignore_merges"] = False
    model: Any = Tokenizer.from_str(json.dumps(specification)).model
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for string, token_id in specification["model"]["vocab"].items():
        if string in CHARACTER_TO_BYTE or string in added:
            continue
        if [token.id for token in model.tokenize(string)] != [token_id]:
            return str(string)
    return None


def _short(patterns: Sequence[str]) -> str:
    text = " + ".join(patterns)
    return text if len(text) <= 120 else text[:120] + " …"
