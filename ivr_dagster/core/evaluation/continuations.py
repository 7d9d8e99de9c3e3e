"""What a model writes after a prompt, and how fast: samples for people to read, not a quality measure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ivr_dagster.core.scoring.bits_per_byte import byte_lengths
from ivr_dagster.core.tokenizer.bpe import strings_by_id

_WARMUP_BYTES = 8
_ROUNDS = 2


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        text: without the prompt, cut to the requested bytes.
        ids: all tokens written, including the last one that exceeds the requested bytes, without end-of-text.
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Speed:
    """Tokens and UTF-8 bytes of text written per second."""

    tokens: float
    bytes: float


def continue_texts(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], *, eos_id: int, max_new_bytes: int, device: str = "cpu"
) -> list[Continuation]:
    """Continue each prompt greedily.

    The end-of-text token comes first, as in scoring; a prompt longer than half the model's context is cut at its start.
    A continuation ends with the end-of-text token or after `max_new_bytes`, never inside a character.

    Args:
        model: a causal LM of transformers; moved to `device`.
        tokenizer: its tokenizer.
        prompts: may be empty strings.
        eos_id: end-of-text id.
        max_new_bytes: maximum UTF-8 bytes of a continuation; bytes, so that all models write equally much.
        device: cpu, cuda or mps.
    """
    generator = _Generator(model, tokenizer, eos_id, device)
    continuations = []
    for prompt in prompts:
        ids, written, _ = generator.generate(prompt, max_new_bytes, may_end=True)
        # Decode prompt and continuation together: decoders may treat the start of a text differently, and the
        # continuation may complete a character that the prompt's last token began.
        before, whole = tokenizer.decode(ids), tokenizer.decode(ids + written)
        new = whole.removeprefix(before.rstrip("\ufffd")).encode()[:max_new_bytes]
        tokens = tuple(token for token in written if token != eos_id)
        continuations.append(Continuation(new.decode(errors="ignore").rstrip("\ufffd"), tokens))
    return continuations


def generation_speed(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], *, eos_id: int, new_bytes: int, device: str = "cpu"
) -> Speed:
    """Tokens and bytes of text that a model writes per second, greedily, one prompt at a time.

    Suppresses the end-of-text token, so that all models do the same work. Tokens per second are those of the fastest
    continuation after a warm-up, since other load only slows a machine down. Bytes per token are those of everything
    written; small models repeat themselves, in tokens longer or shorter than usual.

    Args:
        model: a causal LM of transformers; moved to `device`.
        tokenizer: its tokenizer.
        prompts: at least one.
        eos_id: end-of-text id.
        new_bytes: UTF-8 bytes to write per prompt; fewer if the model's context ends before.
        device: cpu, cuda or mps.
    """
    generator = _Generator(model, tokenizer, eos_id, device)
    generator.generate(prompts[0], min(_WARMUP_BYTES, new_bytes), may_end=False)
    tokens = size = 0
    fastest = 0.0
    for prompt in [*prompts] * _ROUNDS:
        _, written, seconds = generator.generate(prompt, new_bytes, may_end=False)
        tokens += len(written)
        size += generator.bytes_of(written)
        fastest = max(fastest, len(written) / seconds)
    return Speed(fastest, fastest * size / tokens)


class _Generator:
    def __init__(self, model: Any, tokenizer: Tokenizer, eos_id: int, device: str) -> None:
        self._model, self._tokenizer, self._eos_id, self._device = model, tokenizer, eos_id, device
        self._lengths = byte_lengths(strings_by_id(tokenizer)).tolist()

    def bytes_of(self, ids: Sequence[int]) -> int:
        """Bytes of text that ids stand for; padding rows stand for none."""
        return sum(self._lengths[token] for token in ids if token < len(self._lengths))

    def generate(self, prompt: str, max_bytes: int, *, may_end: bool) -> tuple[list[int], list[int], float]:
        """The prompt's ids, the ids written after it, and the seconds it took."""
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        config_class: Any = GenerationConfig
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        context = getattr(self._model.config, "max_position_embeddings", None)
        ids = [self._eos_id, *(ids if context is None else ids[-(context // 2) :])]
        bytes_of = self.bytes_of

        class MaxBytes(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                is_done = bytes_of(input_ids[0, len(ids) :].tolist()) >= max_bytes  # not decoded: it is timed
                return torch.full((1,), is_done, dtype=torch.bool, device=input_ids.device)

        settings = config_class(
            max_new_tokens=max_bytes if context is None else min(max_bytes, context - len(ids)),
            eos_token_id=self._eos_id,
            pad_token_id=self._eos_id,
            do_sample=False,
            suppress_tokens=None if may_end else [self._eos_id],
        )
        sequence = torch.tensor([ids], device=self._device)
        was_training = self._model.training
        self._model.to(self._device).eval()
        try:
            with torch.inference_mode():
                started = time.perf_counter()
                output = self._model.generate(
                    sequence,
                    attention_mask=torch.ones_like(sequence),
                    generation_config=settings,
                    stopping_criteria=StoppingCriteriaList([MaxBytes()]),
                )
                generated = output[0].tolist()
                seconds = time.perf_counter() - started
        finally:
            self._model.train(was_training)
        return ids, generated[len(ids) :], seconds
