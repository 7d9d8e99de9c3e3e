"""What a model writes after a prompt, and how fast: samples for people to read, no measure of quality."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ivr_dagster.core.evaluation.bits_per_byte import byte_lengths
from ivr_dagster.core.tokenizer.bpe import strings_by_id
from ivr_dagster.errors import InputError


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        text: the text without the prompt, cut to the bytes asked for.
        ids: all tokens it wrote, the one that reaches the bytes asked for included, the end-of-text token not.
    """

    text: str
    ids: tuple[int, ...]


def continue_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_bytes: int,
    seed: int = 42,
    temperature: float = 0.0,
    device: str = "cpu",
) -> list[Continuation]:
    """Let the model go on with each prompt; the continuations come back without the prompts.

    As in scoring, the end-of-text token is the first context; a prompt too long for the model's context loses its
    beginning. A continuation ends with the end-of-text token or after `max_new_bytes` UTF-8 bytes (bytes and not
    tokens, so that models with different tokenizers write equally much), and never inside a character. The same
    arguments give the same texts; the generators of torch are left as they were.

    Args:
        model: a causal LM of transformers; moved to `device`.
        tokenizer: its tokenizer, a fast one of transformers, with an end-of-text token.
        prompts: any texts; an empty one lets the model begin a document.
        max_new_bytes: bytes of a continuation, at most.
        seed: of the sampling; each prompt is sampled from it anew.
        temperature: 0 takes the likeliest token every time; above, tokens are sampled.
        device: cpu, cuda or mps.

    Raises:
        InputError: the tokenizer has no end-of-text token; a negative length or temperature.
    """
    import torch

    _check(tokenizer, max_new_bytes, temperature)
    writer = _Writer(tokenizer, max_new_bytes, temperature, ends=True)
    was_training = model.training
    model.to(device).eval()
    cuda = [torch.cuda.current_device()] if device.startswith("cuda") else []
    try:
        with torch.random.fork_rng(devices=cuda):
            written = []
            for prompt in prompts:
                torch.manual_seed(seed)
                ids, sequence, _ = writer.write(model, prompt, device)
                text = writer.text(ids, sequence).encode()[:max_new_bytes]
                new = [token for token in sequence[len(ids) :] if token != tokenizer.eos_token_id]
                written.append(Continuation(text.decode(errors="ignore").rstrip("\ufffd"), tuple(new)))
            return written
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Speed:
    """What a model wrote in a second: tokens, and bytes of text that they stood for."""

    tokens: float
    bytes: float


def generation_speed(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, new_bytes: int, rounds: int = 2, device: str = "cpu"
) -> Speed:
    """Tokens and bytes of text that the model writes in a second, greedily, one prompt after the other.

    It writes `new_bytes` after each prompt: the end-of-text token is forbidden, so that all models do the same work. A
    short unmeasured continuation comes first. Tokens a second are those of the fastest continuation, for whatever else
    the machine does only ever slows them. Bytes depend on what is written: a small model soon repeats itself, in tokens
    longer or shorter than usual.

    Args:
        model: a causal LM of transformers; moved to `device`.
        tokenizer: its tokenizer, a fast one of transformers, with an end-of-text token.
        prompts: any texts; at least one.
        new_bytes: UTF-8 bytes to write after each; fewer where the model's context ends before.
        rounds: how often each prompt is gone on with.
        device: cpu, cuda or mps.

    Raises:
        InputError: as :func:`continue_texts`; no prompt.
    """
    _check(tokenizer, new_bytes, 0.0)
    if not prompts:
        raise InputError("no prompt to go on with was given", where="prompts", remedy="Give one; it may be empty")
    was_training = model.training
    model.to(device).eval()
    try:
        _Writer(tokenizer, min(8, new_bytes), 0.0, ends=False).write(model, prompts[0], device)
        writer = _Writer(tokenizer, new_bytes, 0.0, ends=False)
        tokens = size = 0
        fastest = 0.0
        for prompt in [*prompts] * rounds:
            ids, sequence, seconds = writer.write(model, prompt, device)
            written = sequence[len(ids) :]
            tokens += len(written)
            size += writer.bytes_of(written)
            fastest = max(fastest, len(written) / seconds)
        return Speed(fastest, fastest * size / tokens)
    finally:
        model.train(was_training)


def _check(tokenizer: Any, size: int, temperature: float) -> None:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer names no end-of-text token",
            where=tokenizer.name_or_path,
            remedy="Set eos_token in its tokenizer_config.json",
        )
    if size < 1 or temperature < 0:
        raise InputError(
            f"{size} bytes at temperature {temperature} were asked for",
            remedy="Take 1 or more bytes and a temperature of 0 or more",
        )


class _Writer:
    """Writes up to so many bytes; `ends` says whether the end-of-text token may end a text before."""

    def __init__(self, tokenizer: Any, size: int, temperature: float, *, ends: bool) -> None:
        self._tokenizer, self._size, self._temperature, self._ends = tokenizer, size, temperature, ends
        self._lengths = byte_lengths(strings_by_id(tokenizer.backend_tokenizer)).tolist()

    def bytes_of(self, ids: Sequence[int]) -> int:
        """Bytes that tokens stand for; rows of the model without a token stand for none."""
        return sum(self._lengths[token] for token in ids if token < len(self._lengths))

    def text(self, ids: Sequence[int], sequence: Sequence[int]) -> str:
        """What `sequence` says beyond the prompt `ids`."""
        # Decoded with the prompt, for a decoder may treat the beginning of a text differently; and the prompt's
        # last token may end inside a character that the continuation completes.
        known, whole = (
            self._tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for part in (ids, sequence)
        )
        return str(whole).removeprefix(str(known).rstrip("\ufffd"))

    def write(self, model: Any, prompt: str, device: str) -> tuple[list[int], list[int], float]:
        """The prompt's ids, those of prompt and continuation, and the seconds it took."""
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        config_class: Any = GenerationConfig
        end = self._tokenizer.eos_token_id
        ids = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None:
            ids = ids[-(context // 2) :]
        ids = [end, *ids]
        bytes_of, size = self.bytes_of, self._size

        class LongEnough(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                # bytes by token, no decoding: what is timed is the model
                long = bytes_of(input_ids[0, len(ids) :].tolist()) >= size
                return torch.full((1,), long, dtype=torch.bool, device=input_ids.device)

        settings = config_class(
            max_new_tokens=size if context is None else min(size, context - len(ids)),
            eos_token_id=end,
            pad_token_id=end,
            do_sample=self._temperature > 0,
            **({"temperature": self._temperature, "top_k": 0} if self._temperature > 0 else {}),
            **({} if self._ends else {"suppress_tokens": [end]}),
        )
        sequence = torch.tensor([ids], device=device)
        with torch.inference_mode():
            started = time.perf_counter()
            output = model.generate(
                sequence,
                attention_mask=torch.ones_like(sequence),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([LongEnough()]),
            )
            written = output[0].tolist()
            seconds = time.perf_counter() - started
        return ids, written, seconds
