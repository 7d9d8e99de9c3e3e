"""Texts on which an exported tokenizer is compared with the BPE form of the model's tokenizer."""

import random

from tokenizers import Tokenizer

from ivr_dagster.core.tokens.byte_level import is_byte_level, whole_text

# characters, spaces and digits that pre-tokenizers treat specially
_UNUSUAL = (
    "",
    " ",
    "  \n\n\t  x  y   ",
    "1234567890 3.14159 1,000,000 0x1F ½ Ⅷ ٣",
    "don't DON'T we'll I'M it's they've  'tis",
    "((((((((((====----____....!!!!",
    "naïve café Å e\u0301 ﬁ Straße ΑΒΓ абв",
    "안녕하세요, 2024년의 한국어입니다. ㅋㅋㅋ",
    "日本語のテキストと中文文本。",
    "👩\u200d👩\u200d👧\u200d👦 🙂🙃 🇰🇷 1️⃣",
    "line\r\nline\rline\u2028line\u00a0space\u3000space",
)
_SEQUENCES, _TOKENS_EACH, _SEED = 2_000, 12, 0


def probe_texts(tokenizer: Tokenizer) -> list[str]:
    """Texts that contain every token, unusual characters, and random sequences of tokens. The same in every run.

    Random sequences place tokens of the domain next to each other in ways that plain text rarely does.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    strings = sorted(string for string in tokenizer.get_vocab() if string not in added and is_byte_level(string))
    texts = [text for text in map(whole_text, strings) if text]
    if not texts:
        return list(_UNUSUAL)
    chosen = random.Random(_SEED)
    sequences = ("".join(chosen.choices(texts, k=_TOKENS_EACH)) for _ in range(_SEQUENCES))
    return [*_UNUSUAL, *texts, *sequences]
