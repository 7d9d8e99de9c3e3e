"""Fewer new tokens than there are rules for: the base's strings and rows are back at the ids of the others."""

from pathlib import Path

from tokenizers import Tokenizer

from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.counts import count_pretokens
from ivr_dagster.core.training.fewer_new_tokens import write_model_without, write_tokenizer_with
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, check_rules


def test_the_tokenizer_has_the_first_new_tokens_and_else_the_bases(
    tiny_bpe: Tokenizer, topics: list[str], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    bpe = read_bpe(tiny_bpe)
    rules = [
        RemapRule(554, bpe.strings[554], "Ġaz", ("Ġa", "z")),
        RemapRule(555, bpe.strings[555], "Ġaa", ("Ġa", "a")),
    ]
    check_rules(RemapRules(tuple(rules)), bpe)
    PreTrainedTokenizerFast(tokenizer_object=tiny_bpe, eos_token="<|endoftext|>").save_pretrained(tmp_path / "base")
    original = TokenizerFolder(tmp_path / "base")
    write_tokenizer_with(
        RemapRules(tuple(rules[:1])),
        original,
        original,
        tmp_path / "fewer",
        count_pretokens(topics[:5], tiny_bpe),
        exceptions=10,
    )
    fewer = TokenizerFolder(tmp_path / "fewer")
    expected = list(bpe.strings)
    expected[rules[0].id] = rules[0].new_token
    assert strings_by_id(fewer.backend()) == expected
    assert fewer.end_of_text_id() == bpe.ids["<|endoftext|>"]
    both = remap_tokenizer(tiny_bpe, bpe, RemapRules(tuple(rules))).tokenizer
    assert strings_by_id(both)[rules[1].id] == rules[1].new_token


def test_the_model_has_the_bases_rows_at_the_ids_not_given_away_and_else_its_own(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(tiny / "model")
    with torch.no_grad():
        model.transformer.wte.weight[[3, 7, 9]] = 1.0
        model.transformer.h[0].ln_1.weight.fill_(2.0)
    model.save_pretrained(tmp_path / "initialized")
    (tmp_path / "fewer").mkdir()
    write_model_without({7, 9}, tiny / "model", tmp_path / "initialized", tmp_path / "fewer")
    rows, base = read_embeddings(tmp_path / "fewer")["wte"], read_embeddings(tiny / "model")["wte"]
    assert torch.equal(rows[3], torch.ones(16))
    others = [n for n in range(257) if n != 3]
    assert torch.equal(rows[others], base[others])
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "fewer")
    assert torch.equal(loaded.transformer.h[0].ln_1.weight, torch.full((16,), 2.0))
