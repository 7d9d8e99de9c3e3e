"""Distilled tokenizers in @huggingface/tokenizers, which transformers.js uses too: the same ids as in `tokenizers`.

`make node` installs the package; without it these tests are skipped.
"""

import json
import random
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of, text_of
from ivr_dagster.core.tokens.counts import count_pretokens

from .conftest import ODD_PARTS

NODE = Path(__file__).parents[2] / "node"
OF_EACH_KIND, MERGES, EXCEPTIONS = 200, 1_500, 10_000
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama3": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
}
MIXED = [*"🙂🚀éñßøžΩЖשहไあア中한½Ⅷ٣…“”—€\u0301", "👩\u200d👩\u200d👧", "🇰🇷", "1️⃣", " ", "  ", "a", "don't", "."]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (NODE / "node_modules").is_dir(), reason="node packages are missing: make node"),
]


@pytest.fixture(scope="module")
def lines(topics: list[str]) -> list[str]:
    """English, Korean, code, runs with spaces and numbers, mixed Unicode: `OF_EACH_KIND` of each."""
    chosen, kinds = random.Random(0), range(OF_EACH_KIND)
    syllables = [chr(n) for n in range(0xAC00, 0xD7A4)]
    english = chosen.sample([line for text in topics for line in text.splitlines() if len(line) > 30], OF_EACH_KIND)
    korean = [" ".join("".join(chosen.choices(syllables, k=chosen.randint(1, 5))) for _ in range(9)) for _ in kinds]
    source = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
    code = source.splitlines(keepends=True)[:OF_EACH_KIND]
    runs = [
        "".join(character * chosen.randint(1, 70) for character in chosen.choices("=-_#*.(? \n\t'7", k=6))
        for _ in kinds
    ]
    mixed = ["".join(chosen.choices(MIXED, k=25)) for _ in kinds]
    return [*english, *korean, *code, *runs, *mixed]


@pytest.fixture(scope="module", params=["gpt2", "gpt2_odd", "gpt2_lacking", *PATTERNS])
def distillation(request: pytest.FixtureRequest, train_bpe: Callable[..., Tokenizer], lines: list[str]) -> Distillation:
    """GPT-2's vocabulary with exceptions from text or from odd types, and small ones with other pre-tokenizers."""
    if request.param in ("gpt2", "gpt2_odd"):
        found: Distillation = request.getfixturevalue("gpt2_exact" if request.param == "gpt2" else "gpt2_exact_on_odd")
        return found
    chosen = random.Random(1)
    texts = [*lines, *("".join(chosen.choices(ODD_PARTS, k=chosen.randint(1, 6))) for _ in range(20_000))]
    if request.param in PATTERNS:
        split = pre_tokenizers.Split(Regex(PATTERNS[request.param]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        base = train_bpe(texts, MERGES, pre_tokenizer=pre_tokenizers.Sequence([split, byte_level]))
    else:
        base = train_bpe(texts, MERGES, alphabet=sorted(CHARACTER_TO_BYTE.keys() - {*string_of("d^]-\\[&한")}))
    return distill(base, read_bpe(base), count_pretokens(texts, base), exceptions=EXCEPTIONS)


def test_javascript_has_the_same_ids(distillation: Distillation, lines: list[str], tmp_path: Path) -> None:
    tokenizer, exceptions = distillation.tokenizer, distillation.exceptions
    assert any(string.removeprefix(piece) in exceptions for string, piece in exceptions.items())
    strings = filter(lambda text: "\ufffd" not in text, map(text_of, exceptions))
    texts = [*lines, *chain.from_iterable((text, f"x{text}", f"{text}x", f"----{text}") for text in strings)]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    request, result = tmp_path / "request.json", tmp_path / "result.json"
    request.write_text(json.dumps({"lines": texts}))
    command = ["node", str(NODE / "tokenizers.mjs"), str(tmp_path), str(request), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr

    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    found = json.loads(result.read_text())["ids"]
    assert [text for text, ids, wanted in zip(texts, found, expected, strict=True) if ids != wanted] == []
