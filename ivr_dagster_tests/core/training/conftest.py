"""A model, a tokenizer and blocks small enough to be trained within a test."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ivr_dagster.core.training.blocks import write_blocks

END = 256
BLOCK = 16


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower beside other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/` (GPT-2, 2 layers, dropout as usual), `tokenizer/` (bytes) and `blocks/` (50 blocks)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=257, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=END, eos_token_id=END
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet | {"<|endoftext|>": END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder / "tokenizer")
    ids = np.random.default_rng(2)
    write_blocks(
        (ids.integers(0, 256, 39) for _ in range(20)), folder / "blocks", block_size=BLOCK, eos_id=END, vocab_size=257
    )
    return folder
