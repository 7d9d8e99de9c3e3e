"""Tokenizers: folders that AutoTokenizer loads."""

from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.io_managers.artifacts import FolderIOManager


class TokenizerIOManager(FolderIOManager[TokenizerFolder]):
    """`original_tokenizer`, `distilled_tokenizer`, `remapped_tokenizer`."""

    handle = TokenizerFolder
