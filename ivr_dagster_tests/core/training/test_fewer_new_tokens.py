"""A model and a tokenizer with some of the rules: other ids have the base's strings and rows."""

from pathlib import Path

from tokenizers import Tokenizer

from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.training.fewer_new_tokens import (
    best_rules,
    write_model_with_base_rows,
    write_tokenizer_with_rules,
)
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, check_rules


def test_tokenizer_has_the_new_tokens_of_its_rules_and_base_tokens_elsewhere(
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
    tokenizer = TokenizerFolder(tmp_path / "base", tmp_path / "base" / "tokenizer.json")
    write_tokenizer_with_rules(RemapRules(tuple(rules[:1])), tokenizer, tmp_path / "fewer", topics[:5], exceptions=10)
    fewer = TokenizerFolder(tmp_path / "fewer")
    expected = list(bpe.strings)
    expected[rules[0].id] = rules[0].new_token
    assert strings_by_id(fewer.backend()) == expected
    assert fewer.end_of_text_id() == bpe.ids["<|endoftext|>"]
    both = remap_tokenizer(tiny_bpe, bpe, RemapRules(tuple(rules))).tokenizer
    assert strings_by_id(both)[rules[1].id] == rules[1].new_token


def test_model_has_base_rows_at_the_given_ids_and_its_own_elsewhere(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(tiny / "model")
    with torch.no_grad():
        model.transformer.wte.weight[[3, 7, 9]] = 1.0
        model.transformer.h[0].ln_1.weight.fill_(2.0)
    model.save_pretrained(tmp_path / "initialized")
    (tmp_path / "fewer").mkdir()
    base_model, initialized = ModelFolder(tiny / "model"), ModelFolder(tmp_path / "initialized")
    write_model_with_base_rows({7, 9}, base_model, initialized, tmp_path / "fewer")
    rows, base = read_embeddings(tmp_path / "fewer")["wte"], read_embeddings(tiny / "model")["wte"]
    assert torch.equal(rows[3], torch.ones(16))
    others = [n for n in range(257) if n != 3]
    assert torch.equal(rows[others], base[others])
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "fewer")
    assert torch.equal(loaded.transformer.h[0].ln_1.weight, torch.full((16,), 2.0))


def test_best_rules_save_the_most_tokens_in_the_texts(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    bpe = read_bpe(tiny_bpe)
    tokens = {551: ("Ġ", "q", "z"), 552: ("Ġ", "q"), 553: ("x", "q"), 554: ()}
    rules = RemapRules(tuple(RemapRule(i, bpe.strings[i], "".join(parts) or "é", parts) for i, parts in tokens.items()))
    remap_tokenizer(tiny_bpe, bpe, RemapRules(rules.rules[:3])).tokenizer.save(str(tmp_path / "tokenizer.json"))
    # 2 x 2 tokens, 3 x 1 tokens and none; the byte without a base token comes first
    texts = [" qz qz q q q"]
    assert [rule.id for rule in best_rules(rules, TokenizerFolder(tmp_path), texts)] == [554, 551, 552, 553]
