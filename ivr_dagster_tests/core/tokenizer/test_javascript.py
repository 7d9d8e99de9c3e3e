"""Distilled tokenizers in @huggingface/tokenizers, which transformers.js uses too: the same ids as in `tokenizers`."""

import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of, text_of
from ivr_dagster.core.tokens.counts import count_pretokens
from ivr_dagster_tests.exported_models import LLAMA3_PATTERN, QWEN2_PATTERN, lines_of_five_kinds
from ivr_dagster_tests.node_packages import in_node, needs_node_packages

from .conftest import ODD_PARTS

PATTERNS = {"llama3": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}
MERGES, ODD_TEXTS, EXCEPTIONS = 1_500, 20_000, 10_000

pytestmark = [pytest.mark.slow, needs_node_packages]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """A thousand lines of five kinds, and runs of up to 70 characters."""
    chosen, runs = random.Random(0), "=-_#*.(? \n\t'7"
    return [
        *lines_of_five_kinds(),
        *("".join(run * chosen.randint(1, 70) for run in chosen.choices(runs, k=6)) for _ in range(200)),
    ]


@pytest.fixture(scope="module", params=["gpt2", "gpt2_odd", "lacking_bytes", *PATTERNS])
def distillation(request: pytest.FixtureRequest, train_bpe: Callable[..., Tokenizer], lines: list[str]) -> Distillation:
    """GPT-2's vocabulary with exceptions from text or from odd types, and small ones with other pre-tokenizers."""
    if request.param in ("gpt2", "gpt2_odd"):
        found: Distillation = request.getfixturevalue("gpt2_exact" if request.param == "gpt2" else "gpt2_exact_on_odd")
        return found
    chosen = random.Random(1)
    texts = [*lines, *("".join(chosen.choices(ODD_PARTS, k=chosen.randint(1, 6))) for _ in range(ODD_TEXTS))]
    if request.param in PATTERNS:
        split = pre_tokenizers.Split(Regex(PATTERNS[request.param]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        base = train_bpe(texts, MERGES, pre_tokenizer=pre_tokenizers.Sequence([split, byte_level]))
    else:
        base = train_bpe(texts, MERGES, alphabet=sorted(CHARACTER_TO_BYTE.keys() - {*string_of("d^]-\\[&한")}))
    return distill(base, read_bpe(base), count_pretokens(texts, base), exceptions=EXCEPTIONS)


def test_javascript_has_the_same_ids(distillation: Distillation, lines: list[str], tmp_path: Path) -> None:
    assert distillation.exceptions
    strings = filter(lambda text: "\ufffd" not in text, map(text_of, distillation.exceptions))
    texts = [*lines, *chain.from_iterable((text, f"x{text}", f"{text}x", f"----{text}") for text in strings)]
    distillation.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")

    found = in_node("tokenizers.mjs", tmp_path, tmp_path, lines=texts)["ids"]

    expected = [encoding.ids for encoding in distillation.tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [text for text, ids, wanted in zip(texts, found, expected, strict=True) if ids != wanted] == []
