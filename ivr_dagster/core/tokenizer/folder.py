"""The handle of a tokenizer folder: cheap to pass between steps, opened where it is needed."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokens.tokenizer_file import read_known
from ivr_dagster.errors import InputError, short_message
from ivr_dagster.storage.file_identity import FileIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@lru_cache(maxsize=2)
def _read_bpe(file: FileIdentity) -> ByteLevelBPE:
    try:
        return read_bpe(read_known(file))
    except InputError as error:
        raise InputError(error.message, where=error.where or file.path, remedy=error.remedy) from error


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder that `AutoTokenizer.from_pretrained` loads; its `tokenizer.json` is all that encoding takes."""

    path: Path

    def backend(self) -> Tokenizer:
        """The tokenizer itself, without transformers around it; the same object for the same file, not to be changed.

        Raises:
            InputError: there is none.
        """
        return read_known(self._file())

    def bpe(self) -> ByteLevelBPE:
        """The BPE inside it.

        Raises:
            InputError: there is none, or its model is not a byte-level BPE.
        """
        return _read_bpe(self._file())

    def _file(self) -> FileIdentity:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                "no tokenizer there", where=file, remedy="Materialize it, or give a folder with a tokenizer.json."
            )
        return FileIdentity.of(file)

    def load(self) -> "PreTrainedTokenizerFast":
        """The tokenizer as transformers has it: special tokens, chat template, padding side.

        Raises:
            InputError: there is none, or its settings cannot be read or ask for code of its own.
        """
        from transformers import AutoTokenizer

        self.backend()  # a clearer error than transformers' where there is none
        try:
            loaded: Any = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a class makes of settings that make no sense
            raise InputError(
                f"the tokenizer cannot be loaded ({short_message(error)})",
                where=self.path / "tokenizer_config.json",
                remedy="Give a folder that save_pretrained wrote; code that comes with a tokenizer is never run.",
            ) from error
        tokenizer: PreTrainedTokenizerFast = loaded
        return tokenizer

    def end_of_text_id(self) -> int:
        """The id that stands between documents.

        Raises:
            InputError: the tokenizer names no end-of-text token.
        """
        eos_id: Any = self.load().eos_token_id
        if eos_id is None:
            raise InputError(
                "the tokenizer has no end-of-text token",
                where=self.path,
                remedy="Set eos_token in tokenizer_config.json.",
            )
        return int(eos_id)
