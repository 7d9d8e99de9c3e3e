"""A model and a tokenizer with some of the rules: other ids have the base's strings and rows."""

from collections import Counter
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
        RemapRule(554, bpe.strings[554], "Ġaz", ("Ġa", "z"), halves=("Ġa", "z")),
        RemapRule(555, bpe.strings[555], "Ġaa", ("Ġa", "a"), halves=("Ġa", "a")),
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
    both = remap_tokenizer(tiny_bpe, bpe, RemapRules(tuple(rules)))
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
    parts = {552: ("Ġ", "q"), 551: ("Ġq", "z"), 553: ("x", "q"), 554: ()}
    rules = RemapRules(
        tuple(
            RemapRule(i, bpe.strings[i], "".join(halves) or "é", tuple("".join(halves)), halves=halves)
            for i, halves in parts.items()
        )
    )
    tokenizer = saved(tmp_path, remap_tokenizer(tiny_bpe, bpe, RemapRules(rules.rules[:3])), tiny_bpe)
    # `Ġq` is merged five times, two of them inside `Ġqz`; the byte without a base token comes first
    texts = [" qz qz q q q"]
    kept = [[rule.id for rule in best_rules(rules, tokenizer, texts, number)] for number in (1, 2, 3, 4)]
    assert kept == [[554], [552, 554], [552, 551, 554], [552, 551, 553, 554]]


def test_best_rules_include_the_rule_of_a_token_that_is_made_of_their_sacrificed_one(
    tiny_bpe: Tokenizer, tmp_path: Path
) -> None:
    bpe = read_bpe(tiny_bpe)
    used_once = Counter(half for left, right, _ in bpe.merges for half in {left, right})
    inner, _, outer = next(
        merge for merge in reversed(bpe.merges) if merge[0] in bpe.merge_of and used_once[merge[0]] == 1
    )
    unused = RemapRule(outer, bpe.strings[outer], "xq", ("x", "q"), halves=("x", "q"))
    best = RemapRule(inner, bpe.strings[inner], "zq", ("z", "q"), halves=("z", "q"))
    rules = RemapRules((unused, best))
    tokenizer = saved(tmp_path, remap_tokenizer(tiny_bpe, bpe, rules), tiny_bpe)
    assert best_rules(rules, tokenizer, ["zq zq"], 1) == rules
    assert best_rules(rules, tokenizer, ["xq xq"], 1) == RemapRules((unused,))


def saved(folder: Path, tokenizer: Tokenizer, base: Tokenizer) -> TokenizerFolder:
    tokenizer.save(str(folder / "tokenizer.json"))
    base.save(str(folder / "base_tokenizer.json"))
    return TokenizerFolder(folder)
