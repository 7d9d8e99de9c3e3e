"""The handle of a tokenizer folder: cheap to pass between assets, opened where it is used."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, check_byte_level, read_bpe
from ivr_dagster.core.tokens.tokenizer_file import read_tokenizer
from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.file_identity import FileIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"
# the context of a distilled or remapped tokenizer; model folders contain it too
BASE_TOKENIZER, BPE_TOKENIZER, REMAP_RULES = "base_tokenizer.json", "bpe_tokenizer.json", "remap_rules.yaml"


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder that `AutoTokenizer.from_pretrained` loads, or a model folder that contains one.

    Distilled and remapped tokenizers carry the base tokenizer as `base_tokenizer.json`. Remapped ones also carry their
    BPE form as `bpe_tokenizer.json`, if they are a Unigram, and the rules that were applied as `remap_rules.yaml`;
    `core.vocabulary.rules.applied_rules` reads them.

    Attributes:
        path: the folder.
        model: `bpe` for the BPE form of a remapped tokenizer, `unigram` for the tokenizer itself.
        external_base: the base tokenizer's file if it is not in the folder.
        external_rules: the rules' file if it is not in the folder.
    """

    path: Path
    external_base: Path | None = None
    external_rules: Path | None = None
    model: Literal["unigram", "bpe"] = "unigram"

    @property
    def file(self) -> Path:
        """The tokenizer's `tokenizer.json`."""
        return self.bpe_file if self.model == "bpe" else self.path / TOKENIZER

    @property
    def bpe_file(self) -> Path:
        """The BPE form, which may be the tokenizer itself."""
        file = self.path / BPE_TOKENIZER
        return file if file.is_file() else self.path / TOKENIZER

    @property
    def base_file(self) -> Path:
        """The `tokenizer.json` of the base tokenizer."""
        return self.external_base or self.path / BASE_TOKENIZER

    @property
    def rules_file(self) -> Path:
        """The remap rules that lead from the base tokenizer to this one."""
        return self.external_rules or self.path / REMAP_RULES

    def backend(self) -> Tokenizer:
        """The tokenizer without transformers around it. Callers share one object and must not modify it.

        Raises:
            InputError: the folder has no readable tokenizer.
        """
        return read_tokenizer(self.file)

    def bpe(self) -> ByteLevelBPE:
        """The BPE inside the tokenizer.

        Raises:
            InputError: the folder has no readable tokenizer, or its model is not a byte-level BPE.
        """
        return _bpe_of(self.file)

    def has_bpe_form(self) -> bool:
        """Whether there is a BPE form besides the tokenizer itself."""
        return self.bpe_file != self.file

    def bpe_form(self) -> Tokenizer:
        """The tokenizer as a BPE, with the same string → id map.

        Raises:
            InputError: the folder has none.
        """
        tokenizer = read_tokenizer(self.bpe_file)
        try:
            check_byte_level(tokenizer)
        except InputError as error:
            remedy = f"Choose a folder with {BPE_TOKENIZER}: `ivr remap` writes it, and later stages copy it."
            raise InputError(error.message, where=self.bpe_file, remedy=remedy) from error
        return tokenizer

    def in_form(self, model: Literal["unigram", "bpe"]) -> "TokenizerFolder":
        """This remapped tokenizer in a form.

        Raises:
            InputError: the folder does not have it.
        """
        if model == "bpe":
            self.bpe_form()
        return replace(self, model=model)

    def base_backend(self) -> Tokenizer:
        """The base tokenizer that this one was made from.

        Raises:
            InputError: it is missing or unreadable.
        """
        return read_tokenizer(self.base_file)

    def base_bpe(self) -> ByteLevelBPE:
        """The BPE inside the base tokenizer.

        Raises:
            InputError: it is missing or unreadable, or not a byte-level BPE.
        """
        return _bpe_of(self.base_file)

    def load(self) -> "PreTrainedTokenizerFast":
        """The tokenizer as a transformers object, with special tokens, chat template and padding side.

        Raises:
            InputError: there is none, its settings are unreadable, or it needs custom code.
        """
        from transformers import AutoTokenizer

        self.backend()  # its error is clearer than that of transformers
        try:
            loaded: Any = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizer classes raise anything on invalid settings
            raise InputError(
                f"the tokenizer cannot be loaded ({short_message(error)})",
                where=self.path / "tokenizer_config.json",
                remedy="Give a folder that save_pretrained wrote. Custom tokenizer code is never run.",
            ) from error
        tokenizer: PreTrainedTokenizerFast = loaded
        return tokenizer

    def end_of_text_id(self) -> int:
        """The id that separates documents.

        Raises:
            InputError: the tokenizer has no end-of-text token.
        """
        eos_id: Any = self.load().eos_token_id
        if eos_id is None:
            raise InputError(
                "the tokenizer has no end-of-text token",
                where=self.path,
                remedy="Set eos_token in tokenizer_config.json.",
            )
        return int(eos_id)


def _bpe_of(file: Path) -> ByteLevelBPE:
    read_tokenizer(file)  # reports a missing file
    return _read_bpe(file, FileIdentity.of(file))


@lru_cache(maxsize=2)
def _read_bpe(file: Path, identity: FileIdentity) -> ByteLevelBPE:
    try:
        return read_bpe(read_tokenizer(file))
    except InputError as error:
        raise InputError(error.message, where=error.where or file, remedy=error.remedy) from error
