"""Writing a tokenizer for tiktoken: ranks, pattern, special tokens, and the id of each rank.

tiktoken merges the adjacent pair whose *result* has the lowest rank, and returns ranks as ids. In a vocabulary with
reassigned ids the two differ: ranks follow the order of the merges, and `ids` in `encoding.json` maps ranks to ids.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.core.tokens.byte_level import BYTE_TO_CHARACTER, bytes_of, is_byte_level
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.errors import InputError, short_repr

RANKS, ENCODING, README = "ranks.tiktoken", "encoding.json", "README.md"
# the loader that the README shows; the check below runs it
LOADER = '''\
import base64
import json
import unicodedata
from pathlib import Path

import tiktoken


class Tokenizer:
    """encode and decode with the ids of the model."""

    def __init__(self, folder):
        about = json.loads((Path(folder) / "encoding.json").read_text(encoding="utf-8"))
        # not tiktoken.load, which caches the content of a path forever
        lines = (Path(folder) / "ranks.tiktoken").read_text(encoding="ascii").splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
        special = {text: len(ranks) + n for n, text in enumerate(about["special_tokens"])}
        self.encoding = tiktoken.Encoding(
            about["name"], pat_str=about["pattern"], mergeable_ranks=ranks, special_tokens=special
        )
        self.ids = about["ids"] + list(about["special_tokens"].values())
        self.ranks = {token_id: rank for rank, token_id in enumerate(self.ids)}
        self.form = about["normalization"]

    def encode(self, text):
        text = unicodedata.normalize(self.form, text) if self.form else text
        return [self.ids[rank] for rank in self.encoding.encode(text, allowed_special="all")]

    def decode(self, ids):
        return self.encoding.decode([self.ranks[token_id] for token_id in ids])
'''
_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class TiktokenExport:
    """The result of writing a tokenizer for tiktoken.

    Attributes:
        tokens: number of ranks.
        texts: number of texts compared.
        differing: number of texts whose ids differ from those of the BPE form.
    """

    tokens: int
    texts: int
    differing: int

    @property
    def agreement(self) -> float:
        """Share of the texts with equal ids."""
        return 1 - self.differing / max(1, self.texts)


def write_tiktoken(tokenizer: Tokenizer, folder: Path, texts: Iterable[str], *, name: str) -> TiktokenExport:
    """Write a tokenizer for tiktoken, open it with tiktoken, and compare the ids of texts.

    Args:
        tokenizer: the BPE form of the model's tokenizer.
        folder: an existing folder.
        texts: the texts; where ids differ, the files say so.
        name: the encoding's name.

    Raises:
        InputError: no single regular expression splits text as the tokenizer does.
    """
    pattern = _pattern(tokenizer)
    ranked = rank_tokens(tokenizer)
    normalizer: Any = tokenizer.normalizer
    about: dict[str, Any] = {
        "name": name,
        "pattern": pattern,
        "normalization": None if normalizer is None else "NFC",  # no other is accepted
        "special_tokens": {
            token.content: token_id for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
        },
        "ids": [token_id for token_id, _ in ranked],
    }
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, (_, token) in enumerate(ranked))
    (folder / RANKS).write_text("".join(lines), encoding="ascii")
    (folder / ENCODING).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")
    compared = list(texts)
    differences = find_differences(folder, tokenizer, compared)
    found = TiktokenExport(len(ranked), len(compared), len(differences))
    about["compared"] = {"texts": found.texts, "differing": found.differing, "examples": differences[:_MAX_EXAMPLES]}
    (folder / ENCODING).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(found, differences), encoding="utf-8")
    return found


def rank_tokens(tokenizer: Tokenizer) -> list[tuple[int, bytes]]:
    """Id and bytes of each token that merges can produce, by rank: single bytes first, then in the order of merges.

    A token that no merge produces comes last if `ignore_merges` lets a whole pre-token become it, else it is left out.
    """
    bpe = read_bpe(tokenizer)
    ids = [bpe.ids[character] for character in BYTE_TO_CHARACTER.values() if character in bpe.ids]
    ids += dict.fromkeys(token_id for _, _, token_id in bpe.merges)
    if bpe.ignores_merges:
        ids += range(bpe.size)
    wanted = [i for i in dict.fromkeys(ids) if i not in bpe.added_ids and is_byte_level(bpe.strings[i])]
    return [(token_id, bytes_of(bpe.strings[token_id])) for token_id in wanted]


def load_exported(folder: Path) -> Any:
    """The exported tokenizer, with the loader of its README."""
    namespace: dict[str, Any] = {}
    exec(LOADER, namespace)  # noqa: S102 (the constant above)
    return namespace["Tokenizer"](folder)


def find_differences(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> list[dict[str, Any]]:
    """Texts whose ids differ between the exported files, as tiktoken reads them, and the tokenizer.

    Raises:
        RuntimeError: decoding the ids does not return a text.
    """
    exported = load_exported(folder)
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    differences = []
    for text, ids in zip(texts, expected, strict=True):
        found = exported.encode(text)
        if exported.form is None and exported.decode(found) != text:
            raise RuntimeError(f"{folder}: tiktoken does not return the text {short_repr(text)}")
        if found != ids:
            differences.append({"text": text, "tiktoken": found, "tokenizer": ids})
    return differences


def _pattern(tokenizer: Tokenizer) -> str:
    pattern = read_pretokenization(tokenizer).pattern
    if pattern is None:
        raise InputError(
            "tiktoken was requested, but it splits text with one regular expression, and none is equivalent to this"
            " tokenizer's pre-tokenizer",
            remedy="Export the other formats: `ivr export --formats huggingface,gguf`.",
        )
    return pattern


def _readme(found: TiktokenExport, differences: list[dict[str, Any]]) -> str:
    agreement = f"All {found.texts:,} texts that were compared have the ids of the model's `tokenizer.json`."
    if differences:
        agreement = (
            f"{found.differing:,} of {found.texts:,} texts that were compared have other ids than with the model's "
            "`tokenizer.json`: tiktoken merges any two neighbors whose result is a token, `tokenizers` only the pairs "
            f"in its list of merges. `{ENCODING}` has examples. Use `tokenizer.json` where exact ids matter."
        )
    return f"""# Tokenizer for tiktoken

`{RANKS}` contains the tokens by merge rank, `{ENCODING}` the pattern, the special tokens and the id of each rank.
Ranks are not ids: the vocabulary was changed in place, so the ids of the model do not follow the order of the merges.
The loader maps one to the other.

{agreement}

```python
{LOADER}```

```python
tokenizer = Tokenizer(".")
tokenizer.decode(tokenizer.encode("Hello"))
```
"""
