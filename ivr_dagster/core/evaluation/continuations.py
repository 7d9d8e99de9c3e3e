"""What a model writes after a prompt: samples for people to read, no measure of quality."""

from collections.abc import Sequence
from typing import Any

from ivr_dagster.core.errors import InputError


def continue_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_bytes: int,
    seed: int = 42,
    temperature: float = 0.0,
    device: str = "cpu",
) -> list[str]:
    """Let the model go on with each prompt; the continuations come back without the prompts.

    As in scoring, the end-of-text token is the first context; a prompt too long for the model's context loses its
    beginning. A continuation ends with the end-of-text token or after `max_new_bytes` UTF-8 bytes (bytes and not
    tokens, so that models with different tokenizers write equally much), and never inside a character. The same
    arguments give the same texts; the generators of torch are left as they were.

    Args:
        model: a causal LM of transformers; moved to `device`.
        tokenizer: its tokenizer, of transformers, with an end-of-text token.
        prompts: any texts; an empty one lets the model begin a document.
        max_new_bytes: bytes of a continuation, at most.
        seed: of the sampling; each prompt is sampled from it anew.
        temperature: 0 takes the likeliest token every time; above, tokens are sampled.
        device: cpu, cuda or mps.

    Raises:
        InputError: the tokenizer has no end-of-text token; a negative length or temperature.
    """
    import torch

    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer names no end-of-text token",
            where=tokenizer.name_or_path,
            remedy="Set eos_token in its tokenizer_config.json",
        )
    if max_new_bytes < 1 or temperature < 0:
        raise InputError(
            f"{max_new_bytes} bytes at temperature {temperature} were asked for",
            remedy="Take 1 or more bytes and a temperature of 0 or more",
        )
    was_training = model.training
    model.to(device).eval()
    cuda = [torch.cuda.current_device()] if device.startswith("cuda") else []
    try:
        with torch.random.fork_rng(devices=cuda):
            texts = []
            for prompt in prompts:
                torch.manual_seed(seed)
                texts.append(_continue(model, tokenizer, prompt, max_new_bytes, temperature, device))
            return texts
    finally:
        model.train(was_training)


def _continue(model: Any, tokenizer: Any, prompt: str, max_new_bytes: int, temperature: float, device: str) -> str:
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    config_class: Any = GenerationConfig
    end = tokenizer.eos_token_id
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None:
        ids = ids[-(context // 2) :]
    ids = [end, *ids]

    def written(sequence: Sequence[int]) -> str:
        # Decoded with the prompt, for a decoder may treat the beginning of a text differently; and the prompt's
        # last token may end inside a character that the continuation completes.
        known, whole = (
            tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for part in (ids, sequence)
        )
        return str(whole).removeprefix(str(known).rstrip("\ufffd"))

    class LongEnough(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            long = len(written(input_ids[0].tolist()).encode()) >= max_new_bytes
            return torch.full((1,), long, dtype=torch.bool, device=input_ids.device)

    limit = max_new_bytes if context is None else min(max_new_bytes, context - len(ids))
    settings = config_class(
        max_new_tokens=limit,
        eos_token_id=end,
        pad_token_id=end,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0} if temperature > 0 else {}),
    )
    sequence = torch.tensor([ids], device=device)
    with torch.inference_mode():
        output = model.generate(
            sequence,
            attention_mask=torch.ones_like(sequence),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([LongEnough()]),
        )
    text = written(output[0].tolist()).encode()[:max_new_bytes]
    return text.decode(errors="ignore").rstrip("\ufffd")
