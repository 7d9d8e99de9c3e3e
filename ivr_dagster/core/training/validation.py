"""Validation text: bits per byte during training, comparable between tokenizers and with the evaluation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivr_dagster.core.scoring.bits_per_byte import BitsPerByte, ScoringTokenizer, bits_per_byte
from ivr_dagster.errors import InputError
from ivr_dagster.storage.content_hash import content_hash


@dataclass(frozen=True)
class Validation:
    """Documents to measure bits per byte on.

    Attributes:
        texts: the documents, at least one of them not empty.
        context_bytes: C of :mod:`~ivr_dagster.core.scoring.windows`, the same for all models that are compared.
    """

    texts: tuple[str, ...]
    context_bytes: int

    @classmethod
    def of(cls, texts: Sequence[str], base: ScoringTokenizer, block_size: int) -> "Validation":
        """Validation whose contexts fill a training block of the base tokenizer, which has the most tokens."""
        return cls(tuple(texts), base.fitting_context_bytes(texts, block_size))

    @classmethod
    def read(cls, file: Path) -> "Validation":
        """Read what :meth:`write` wrote.

        Raises:
            InputError: another content.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(tuple(map(str, content["texts"])), int(content["context_bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"expected validation text, {{context_bytes: …, texts: […]}} ({error})",
                where=file,
                remedy="Delete the file, or use a folder that the stage train wrote",
            ) from error

    def write(self, file: Path) -> None:
        """Write the validation as JSON."""
        content = {"context_bytes": self.context_bytes, "texts": self.texts}
        file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    def digest(self) -> str:
        """A hash of the content."""
        return content_hash("\0".join([str(self.context_bytes), *self.texts]))

    def score(
        self,
        model: Any,
        tokenizer: ScoringTokenizer,
        *,
        block_size: int,
        batch: int,
        device: str = "cpu",
        rank: int = 0,
        processes: int = 1,
    ) -> BitsPerByte | None:
        """Score every token once, in windows that do not overlap; None if this process has no text.

        Args:
            model, tokenizer: what is trained.
            block_size: tokens that the model reads at once.
            batch: blocks per forward pass.
            device: cpu, cuda or mps.
            rank: index of this process, which scores every N-th document.
            processes: N.
        """
        texts = self.texts[rank::processes]
        if not any(texts):
            return None
        return bits_per_byte(
            model,
            tokenizer,
            texts,
            context=block_size,
            context_bytes=self.context_bytes,
            stride_bytes=self.context_bytes,
            batch_tokens=batch * block_size,
            device=device,
        )
