"""The remapped tokenizer: kept ids, reachable new tokens, unaffected segmentations, exact round trip."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import count_tokens
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.folder import TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_copy, write_original_tokenizer
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of, text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, token_frequencies
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.vocabulary.candidate import Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import (
    Remapping,
    remap_tokenizer,
    unaffected_types,
    unreachable_tokens,
    write_remapped_tokenizer,
)
from ivr_dagster.core.vocabulary.rules import (
    RemapRule,
    RemapRules,
    applied_rules,
    check_rules,
    rules_as_yaml,
    rules_from_yaml,
)
from ivr_dagster.core.vocabulary.table import candidates_table, rules_from_table
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.settings import SelectionSettings
from ivr_dagster.storage.content_hash import content_hash


def rules_for(bpe: ByteLevelBPE, *new_tokens: str, first_id: int = 500) -> RemapRules:
    """Rules that assign consecutive ids, from `first_id`, to these tokens."""
    rules = [RemapRule(i, bpe.strings[i], new, tuple(new)) for i, new in enumerate(new_tokens, start=first_id)]
    return RemapRules(tuple(rules))


def select_rules(
    base: Tokenizer, texts: list[str], budget: int, merge_scope: str
) -> tuple[PretokenCounts, Selection, RemapRules]:
    bpe, counts = read_bpe(base), count_pretokens(texts, base)
    settings = SelectionSettings.model_validate({"merge_scope": merge_scope})
    selection = choose_candidates(base, bpe, counts, texts, settings, budget=budget)
    return counts, selection, rules_from_table(candidates_table(selection, bpe, token_frequencies(counts, base)))


def test_selection_yields_valid_rules(rules: RemapRules, gpt2_bpe: ByteLevelBPE) -> None:
    assert len(rules) == 300
    check_rules(rules, gpt2_bpe)
    assert rules_from_yaml(rules_as_yaml(rules)) == rules


def test_ids_without_a_rule_keep_their_strings(
    rules: RemapRules, remapped: Tokenizer, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE
) -> None:
    assert remapped.get_vocab_size(with_added_tokens=True) == gpt2.get_vocab_size(with_added_tokens=True)
    new = rules.new_tokens()
    for token_id, string in enumerate(gpt2_bpe.strings):
        assert remapped.id_to_token(token_id) == new.get(token_id, string)
    assert all(remapped.token_to_id(rule.sacrificed_token) is None for rule in rules)


def test_new_tokens_are_reachable(rules: RemapRules, remapped: Tokenizer) -> None:
    assert unreachable_tokens(remapped, rules) == []
    decodable = [rule for rule in rules if "\ufffd" not in text_of(rule.new_token)]
    assert [remapped.encode(text_of(rule.new_token)).ids for rule in decodable] == [[rule.id] for rule in decodable]


def test_kept_tokens_still_encode_to_themselves(rules: RemapRules, remapped: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    changed = {rule.id for rule in rules} | gpt2_bpe.added_ids
    kept = [string for token_id, string in enumerate(gpt2_bpe.strings) if token_id not in changed]
    pieces = {string: [token.value for token in remapped.model.tokenize(string)] for string in kept}
    assert {string: found for string, found in pieces.items() if found != [string]} == {}


def test_unaffected_types_keep_the_base_ids(
    rules: RemapRules, remapping: Remapping, gpt2: Tokenizer, topics_counts: PretokenCounts
) -> None:
    changed = {rule.id for rule in rules}
    types = topics_counts.types
    before, after = ([tokenizer.encode(piece).ids for piece in types] for tokenizer in (gpt2, remapping.tokenizer))
    unaffected = [n for n in range(len(types)) if changed.isdisjoint(before[n]) and changed.isdisjoint(after[n])]
    assert len(unaffected) > 5_000
    assert [types[n] for n in unaffected if before[n] != after[n]] == []
    assert unaffected_types(gpt2, remapping.tokenizer, rules, topics_counts) == [(n, True) for n in unaffected]
    assert remapping.exceptions


def test_exceptions_are_few_and_the_most_frequent_type_comes_first(
    rules: RemapRules, remapping: Remapping, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    def differing(tokenizer: Tokenizer) -> list[int]:
        return [n for n, same in unaffected_types(gpt2, tokenizer, rules, topics_counts) if not same]

    without_exceptions = differing(remap_tokenizer(gpt2, gpt2_bpe, rules).tokenizer)
    assert 0 < len(without_exceptions) < 20
    assert {string_of(topics_counts.types[n]) for n in without_exceptions} <= remapping.exceptions.keys()
    assert all(string.startswith(piece) and piece != string for string, piece in remapping.exceptions.items())
    one_exception = remap_tokenizer(gpt2, gpt2_bpe, rules, topics_counts, exceptions=1)
    assert differing(one_exception.tokenizer) == without_exceptions[1:]


def test_exceptions_need_counts_and_a_positive_limit(tiny_bpe: Tokenizer, bpe: ByteLevelBPE, topics: list[str]) -> None:
    rules, counts = rules_for(bpe, "qxz"), count_pretokens(topics, tiny_bpe)
    assert remap_tokenizer(tiny_bpe, bpe, rules, exceptions=9).exceptions == {}
    assert remap_tokenizer(tiny_bpe, bpe, rules, counts).exceptions == {}
    assert remap_tokenizer(tiny_bpe, bpe, rules, counts, exceptions=9).exceptions


@pytest.mark.parametrize("merge_scope", ["within", "across"])
@pytest.mark.parametrize("merges", [600, 1500])
def test_small_vocabularies_keep_the_ids_of_unaffected_types(
    merges: int, merge_scope: str, train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base, texts = train_bpe(topics[:30], merges), topics[10:50]
    counts, _, rules = select_rules(base, texts, 80, merge_scope)
    found = remap_tokenizer(base, read_bpe(base), rules, counts, exceptions=10_000).tokenizer
    assert [counts.types[n] for n, same in unaffected_types(base, found, rules, counts) if not same] == []
    assert unreachable_tokens(found, rules) == []
    assert all(found.decode(found.encode(text).ids) == text for text in texts)


def test_run_longer_than_the_new_token_keeps_the_base_ids(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base = train_bpe(topics[:30], 200)
    bpe, new = read_bpe(base), "Ġ" * 10
    rules = RemapRules((RemapRule(bpe.size - 2, bpe.strings[bpe.size - 2], new, ("Ġ" * 8, "ĠĠ")),))
    counts = PretokenCounts([" " * 11], np.array([5]), {}, 0, 0)
    found = remap_tokenizer(base, bpe, rules, counts, exceptions=9)
    assert unaffected_types(base, found.tokenizer, rules, counts) == [(0, True)]


TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["<|endoftext|>", " of the", " of them", "\x00", "\u0301", "====", "\r\n", "\n  ", " class", "한국"]
    )
).map("".join)


@given(TEXT)
def test_round_trip_of_any_text_is_exact(remapped: Tokenizer, text: str) -> None:
    ids = remapped.encode(text).ids
    assert remapped.decode(ids, skip_special_tokens=False) == text
    assert ids.count(50_256) == text.count("<|endoftext|>")


@pytest.mark.slow
def test_written_folder_contains_base_and_rules_and_loads_in_transformers(
    rules: RemapRules, remapping: Remapping, gpt2_bpe: ByteLevelBPE, topics: list[str], tmp_path: Path
) -> None:
    base, folder, model = (TokenizerFolder(tmp_path / name) for name in ("base", "remapped", "model"))
    write_original_tokenizer(SAMPLE_MODEL, base.path)
    for target in (folder, TokenizerFolder(tmp_path / "again")):
        write_remapped_tokenizer(remapping.tokenizer, rules, base.path / TOKENIZER, base, target.path)
    assert content_hash(folder.path) == content_hash(tmp_path / "again")
    model.path.mkdir()
    write_copy(folder, model.path)
    for each in (folder, model):
        assert each.base_bpe().ids == gpt2_bpe.ids
        assert each.base_backend().to_str() == base.backend().to_str()
        assert applied_rules(each).digest() == rules.digest() and not applied_rules(each).edited
        loaded = each.load()
        assert loaded.eos_token_id == 50_256
        for text in [*topics, "It is n't , of the<|endoftext|> a . \x00한국"]:
            ids = loaded(text).input_ids
            assert ids == remapping.tokenizer.encode(text).ids
            assert loaded.decode(ids) == text


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_FIRST = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        DIGITS_FIRST,
    ],
    ids=["Llama 3", "SmolLM2"],
)
def test_other_pre_tokenizers_are_supported(
    pre_tokenizer: pre_tokenizers.PreTokenizer, train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base, texts = train_bpe(topics[:10], 600, pre_tokenizer=pre_tokenizer), topics[10:30]
    counts, selection, rules = select_rules(base, texts, 150, "across")
    check_rules(rules, read_bpe(base))
    tokenizer = remap_tokenizer(base, read_bpe(base), rules, counts, exceptions=10_000).tokenizer
    assert unreachable_tokens(tokenizer, rules) == []
    assert any("Ġ" in rule.new_token[1:] and rule.new_token[-1].isalpha() for rule in rules)
    for text in [*texts, "한국 12345\r\n\n  (of the), ==== \x00<|endoftext|>"]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    before, after = count_tokens(base, texts)[0], count_tokens(tokenizer, texts)[0]
    assert before - after >= 0.9 * (selection.tokens_before - selection.tokens_after)


@pytest.fixture
def remap(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> Callable[..., Tokenizer]:
    """A function that remaps the tiny BPE to the given new tokens and checks that all are reachable."""

    def remap_to(*new_tokens: str) -> Tokenizer:
        rules = rules_for(bpe, *new_tokens)
        check_rules(rules, bpe)
        tokenizer = remap_tokenizer(tiny_bpe, bpe, rules).tokenizer
        assert unreachable_tokens(tokenizer, rules) == []
        return tokenizer

    return remap_to


def test_part_of_a_character_can_be_a_new_token(remap: Callable[..., Tokenizer]) -> None:
    part = string_of("한")[:2]
    tokenizer = remap(part)
    assert tokenizer.encode("한").tokens == [part, string_of("한")[2]]
    assert tokenizer.decode(tokenizer.encode("한국 한").ids) == "한국 한"


def test_new_token_across_pretokens_becomes_part_of_the_pattern(
    remap: Callable[..., Tokenizer], tiny_bpe: Tokenizer
) -> None:
    tokenizer = remap("ĠqxĠzv", "qxz")
    assert len(read_pretokenization(tiny_bpe).splitter(tiny_bpe)(" qx zv")) == 2
    assert tokenizer.encode(" qx zv qx zvqxz").tokens[0] == "ĠqxĠzv"
    assert tokenizer.encode(" qx zv. qx zvs").tokens.count("ĠqxĠzv") == 1


def test_new_token_may_end_in_whitespace(remap: Callable[..., Tokenizer]) -> None:
    tokenizer = remap("qxĠ", "qĊ", string_of(" 한")[:2] + "Ġ")
    assert tokenizer.encode("q\nq").tokens == ["qĊ", "q"]
    assert tokenizer.encode("qx  a").tokens == ["qxĠ", "Ġa"]
    assert tokenizer.encode("qx a").tokens == ["q", "x", "Ġa"]


def test_unreachable_tokens_are_reported(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> None:
    # if digits are split first, no lookahead can detect where whitespace ends
    base = train_bpe(topics[:10], 300, pre_tokenizer=DIGITS_FIRST)
    rules = rules_for(read_bpe(base), "qxĠ", "qxz", "qĊ", "q12")
    assert unreachable_tokens(remap_tokenizer(base, read_bpe(base), rules).tokenizer, rules) == ["qxĠ", "qĊ"]


def test_without_rules_the_base_ids_are_kept(tiny_bpe: Tokenizer, bpe: ByteLevelBPE, topics: list[str]) -> None:
    tokenizer = remap_tokenizer(tiny_bpe, bpe, RemapRules(())).tokenizer
    assert tokenizer.get_vocab() == tiny_bpe.get_vocab()
    assert tokenizer.encode(topics[0]).ids == tiny_bpe.encode(topics[0]).ids


def test_rule_adds_a_missing_byte_and_other_missing_bytes_are_still_dropped(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    missing = {"~", *string_of("é")}
    base = train_bpe(topics[:10], 300, alphabet=sorted(CHARACTER_TO_BYTE.keys() - missing))
    bpe = read_bpe(base)
    rules = RemapRules(
        tuple(RemapRule(400 + n, bpe.strings[400 + n], c, ()) for n, c in enumerate("~" + string_of("é")))
    )
    assert rules_from_yaml(rules_as_yaml(rules)) == rules
    check_rules(rules, bpe)
    tokenizer = remap_tokenizer(base, bpe, rules).tokenizer
    assert unreachable_tokens(tokenizer, rules) == []
    for text in ["~", "a~b", " ~~~~~~~~ ~", "café", "é", "the ~ of\n~~ é~é<|endoftext|>"]:
        lost = text.replace("~", "").replace("é", "")
        assert base.decode(base.encode(text).ids, skip_special_tokens=False) == lost
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("~é").ids == [400, 401, 402]
    only_one = remap_tokenizer(base, bpe, RemapRules(rules.rules[:1])).tokenizer
    assert only_one.decode(only_one.encode("a~é b").ids) == "a~ b"
