"""A model and a tokenizer with some of the rules: other ids have the base's strings and rows."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ivr_dagster.core.embedding.extract import read_embeddings
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.bpe import read_bpe, strings_by_id
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.unigram import distill
from ivr_dagster.core.tokenizer.write import write_unigram_form
from ivr_dagster.core.training.fewer_new_tokens import (
    best_rules,
    write_model_with_base_rows,
    write_tokenizer_with_rules,
)
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, applied_rules, check_rules, write_remapped_bpe


@pytest.mark.parametrize("form", ["bpe", "unigram"])
def test_tokenizer_has_the_new_tokens_of_its_rules_and_base_tokens_elsewhere(
    form: str, tiny_bpe: Tokenizer, topics: list[str], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    bpe = read_bpe(tiny_bpe)
    rules = RemapRules(
        (
            RemapRule(554, bpe.strings[554], "Ġaz", ("Ġa", "z"), halves=("Ġa", "z")),
            RemapRule(555, bpe.strings[555], "Ġaa", ("Ġa", "a"), halves=("Ġa", "a")),
        )
    )
    check_rules(rules, bpe)
    PreTrainedTokenizerFast(tokenizer_object=tiny_bpe, eos_token="<|endoftext|>").save_pretrained(tmp_path / "base")
    base = TokenizerFolder(tmp_path / "base", tmp_path / "base" / "tokenizer.json")
    remapped = TokenizerFolder(tmp_path / "bpe")
    write_remapped_bpe(remap_tokenizer(tiny_bpe, bpe, rules), rules, base, remapped.path)
    assert strings_by_id(remapped.backend())[555] == "Ġaa"
    if form == "unigram":
        (tmp_path / "unigram").mkdir()
        write_unigram_form(distill(remapped.backend(), remapped.bpe()).tokenizer, remapped, tmp_path / "unigram")
        remapped = TokenizerFolder(tmp_path / "unigram")
    some = RemapRules(rules.rules[:1])
    (tmp_path / "fewer").mkdir()
    write_tokenizer_with_rules(some, remapped, tmp_path / "fewer", topics[:5], exceptions=10)
    fewer = TokenizerFolder(tmp_path / "fewer")
    expected = list(bpe.strings)
    expected[554] = "Ġaz"
    assert strings_by_id(fewer.backend()) == expected == strings_by_id(fewer.bpe_form())
    assert type(fewer.backend().model).__name__.lower() == form
    assert fewer.backend().encode(" az aa").tokens == ["Ġaz", "Ġa", "a"]
    assert applied_rules(fewer).new_tokens() == some.new_tokens()
    assert fewer.end_of_text_id() == bpe.ids["<|endoftext|>"]


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
    used = {half for left, right, _ in bpe.merges for half in (left, right)}
    ids = [i for i in reversed(range(300, bpe.size - 1)) if i not in used]
    rows = [
        ("é", (), ()),
        ("qz", ("q", "z"), ("q", "z")),
        ("Ġqz", ("Ġ", "qz"), ("Ġ", "q", "z")),
        ("xq", ("x", "q"), ("x", "q")),
        ("jj,j", (), ("j", "j", ",", "j")),
    ]
    made = [
        RemapRule(i, bpe.strings[i], new, constituents, halves=halves)
        for i, (new, halves, constituents) in zip(ids, rows, strict=False)
    ]
    remap_tokenizer(tiny_bpe, bpe, RemapRules(tuple(made[1:]))).save(str(tmp_path / "tokenizer.json"))
    rules = RemapRules(tuple(made))

    def best(text: str) -> list[str]:
        return [rule.new_token for rule in best_rules(rules, TokenizerFolder(tmp_path), [text])]

    # a merge also counts inside longer tokens, a phrase saves all tokens but one; bytes without a token come first
    assert best("jj,j qz qz qz qz qz xq") == ["é", "qz", "Ġqz", "jj,j", "xq"]
    assert best("jj,j\nqz\njj,j\nqz") == ["é", "jj,j", "qz", "Ġqz", "xq"]
    assert best("") == ["é", "qz", "Ġqz", "xq", "jj,j"]  # halves first
