"""The remapped tokenizer in both forms: kept ids, reachable new tokens, unchanged text elsewhere, exact round trip."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from ivr_dagster.core.tokenizer.agreement import measure_agreement
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokenizer.write import write_copy, write_original_tokenizer, write_unigram_form
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of, text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, token_frequencies
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import (
    bpe_with,
    complete_rules,
    remap_tokenizer,
    unaffected_types,
    unreachable_tokens,
)
from ivr_dagster.core.vocabulary.rules import (
    RemapRule,
    RemapRules,
    applied_rules,
    check_rules,
    rules_as_yaml,
    rules_from_yaml,
    write_remapped_bpe,
)
from ivr_dagster.core.vocabulary.table import candidates_table, rules_from_table
from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.settings import SelectionSettings
from ivr_dagster.storage.content_hash import content_hash

from .conftest import LLAMA3_PATTERN

DIGITS_FIRST = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["<|endoftext|>", " of the", " of them", "\x00", "\u0301", "====", "\r\n", "\n  ", " class", "한국", "qxzv"]
    )
).map("".join)


def free_leaves(bpe: ByteLevelBPE) -> list[int]:
    """Ids that may be reassigned alone, the last merges first."""
    used = {half for left, right, _ in bpe.merges for half in (left, right)}
    return sorted(
        (i for i in bpe.merge_of if i not in used and not text_of(bpe.strings[i]).strip().isnumeric()),
        key=lambda i: -bpe.ranks[i],
    )


def rules_for(bpe: ByteLevelBPE, *new_tokens: str) -> RemapRules:
    """Rules without halves that assign the last leaves to these tokens."""
    rules = [
        RemapRule(i, bpe.strings[i], new, tuple(new)) for i, new in zip(free_leaves(bpe), new_tokens, strict=False)
    ]
    return RemapRules(tuple(rules))


def select_rules(
    base: Tokenizer, texts: list[str], budget: int, merge_scope: str = "within"
) -> tuple[PretokenCounts, RemapRules]:
    bpe, counts = read_bpe(base), count_pretokens(texts, base)
    settings = SelectionSettings.model_validate({"merge_scope": merge_scope})
    selection = choose_candidates(base, bpe, counts, texts, settings, budget=budget)
    return counts, rules_from_table(candidates_table(selection, bpe, token_frequencies(counts, base)))


def both_forms(base: Tokenizer, rules: RemapRules, counts: PretokenCounts | None = None) -> list[Tokenizer]:
    bpe_form = remap_tokenizer(base, read_bpe(base), rules)
    return [bpe_form, distill(bpe_form, read_bpe(bpe_form), counts, exceptions=10_000).tokenizer]


def assert_reachable(tokenizer: Tokenizer, rules: RemapRules) -> None:
    for rule in rules:
        text = text_of(rule.new_token)
        found = tokenizer.model.tokenize(rule.new_token) if "\ufffd" in text else ()
        ids = [token.id for token in found] or tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == [rule.id], rule.new_token


def test_selection_yields_valid_rules(rules: RemapRules, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    assert 295 <= len(rules) <= 300
    check_rules(rules, gpt2_bpe)
    assert rules_from_yaml(rules_as_yaml(rules)) == rules
    assert complete_rules(rules, gpt2, gpt2_bpe) == (rules, [])


def test_both_forms_have_the_ids_of_the_rules_and_of_the_base_elsewhere(
    rules: RemapRules, remapped: Tokenizer, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE
) -> None:
    expected = gpt2.get_vocab() | {rule.new_token: rule.id for rule in rules}
    for rule in rules:
        del expected[rule.sacrificed_token]
    assert remapped.get_vocab() == expected
    assert len(expected) == gpt2_bpe.size


def test_new_tokens_are_reachable_in_both_forms(rules: RemapRules, remapped: Tokenizer) -> None:
    assert unreachable_tokens(remapped, rules) == []
    assert_reachable(remapped, rules)


def test_kept_tokens_still_encode_to_themselves(rules: RemapRules, remapped: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    changed = {rule.id for rule in rules} | gpt2_bpe.added_ids
    kept = [string for token_id, string in enumerate(gpt2_bpe.strings) if token_id not in changed]
    pieces = {string: [token.value for token in remapped.model.tokenize(string)] for string in kept}
    assert {string: found for string, found in pieces.items() if found != [string]} == {}


def test_types_without_new_or_sacrificed_tokens_keep_the_base_ids(
    rules: RemapRules, remapped: Tokenizer, gpt2: Tokenizer, topics_counts: PretokenCounts
) -> None:
    changed = {rule.id for rule in rules}
    types = topics_counts.types
    before, after = ([tokenizer.encode(piece).ids for piece in types] for tokenizer in (gpt2, remapped))
    unaffected = [n for n in range(len(types)) if changed.isdisjoint(before[n]) and changed.isdisjoint(after[n])]
    assert len(unaffected) > 5_000
    assert [types[n] for n in unaffected if before[n] != after[n]] == []
    assert unaffected_types(gpt2, remapped, rules, topics_counts) == [(n, True) for n in unaffected]


def test_differing_type_is_reported(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> None:
    leaf = bpe.strings[free_leaves(bpe)[1]]
    counts = count_pretokens([f"{text_of(leaf)} of of", " qx"], tiny_bpe)
    other = bpe_with(tiny_bpe, {}, [], sacrificed={leaf})
    assert [(counts.types[n], same) for n, same in unaffected_types(tiny_bpe, other, rules_for(bpe, "qx"), counts)] == [
        (piece, piece != text_of(leaf)) for piece in counts.types
    ]


def test_unigram_form_agrees_with_the_bpe_form_on_the_counted_text(
    remapped_bpe: Tokenizer, distillation: Distillation, topics_counts: PretokenCounts
) -> None:
    stored = Tokenizer.from_str(distillation.tokenizer.to_str())
    agreement = measure_agreement(remapped_bpe, stored, topics_counts)
    assert (agreement.share, agreement.divergences) == (1.0, [])
    assert agreement.types > 5_000
    assert len(distillation.exceptions) < 30


def assert_other_text_unchanged(base: Tokenizer, remapped: Tokenizer, rules: RemapRules, text: str) -> None:
    """Pre-token by pre-token, except in phrases."""
    changed = {rule.id for rule in rules}
    for piece in read_pretokenization(base).splitter(base)(text):
        before, after = base.encode(piece).ids, remapped.encode(piece).ids
        if changed.isdisjoint(before) and changed.isdisjoint(after):
            assert before == after
    before, after = base.encode(text).ids, remapped.encode(text).ids
    if changed.isdisjoint(before) and changed.isdisjoint(after):
        assert before == after


@given(TEXT | st.text(st.sampled_from("abcdehilnorstuwx ._\n"), max_size=60))
def test_other_text_is_unchanged_and_any_text_round_trips(
    gpt2: Tokenizer, remapped_bpe: Tokenizer, distillation: Distillation, rules: RemapRules, text: str
) -> None:
    assert_other_text_unchanged(gpt2, remapped_bpe, rules, text)
    for tokenizer in (remapped_bpe, distillation.tokenizer):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert ids.count(50_256) == text.count("<|endoftext|>")


@pytest.fixture(scope="module", params=["within", "across"])
def small_forms(
    request: pytest.FixtureRequest, small_base: Tokenizer, topics: list[str]
) -> tuple[RemapRules, PretokenCounts, list[Tokenizer]]:
    """A small base remapped with as many rules as it allows: rules, counts, both forms."""
    counts, rules = select_rules(small_base, topics[10:40], 90, request.param)
    check_rules(rules, read_bpe(small_base))
    return rules, counts, both_forms(small_base, rules, counts)


def test_small_bases_are_remapped_in_both_forms(
    small_forms: tuple[RemapRules, PretokenCounts, list[Tokenizer]], small_base: Tokenizer, topics: list[str]
) -> None:
    rules, counts, (bpe_form, unigram_form) = small_forms
    assert bpe_form.get_vocab() == unigram_form.get_vocab()
    assert sorted(bpe_form.get_vocab().values()) == list(range(small_base.get_vocab_size()))
    for tokenizer in (bpe_form, unigram_form):
        assert_reachable(tokenizer, rules)
        assert [counts.types[n] for n, same in unaffected_types(small_base, tokenizer, rules, counts) if not same] == []
        for text in [*topics[10:50], "한국 12345\r\n\n  (of the), ==== \x00<|endoftext|>"]:
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    types = count_pretokens(topics[10:40], bpe_form)  # phrases are pre-tokens too
    assert measure_agreement(bpe_form, unigram_form, counts).share == 1.0
    assert measure_agreement(bpe_form, unigram_form, types).share > 0.999
    phrases = [rule for rule in rules if not rule.halves]
    model = json.loads(bpe_form.to_str())["model"]
    assert model["ignore_merges"] == (bool(phrases) or json.loads(small_base.to_str())["model"]["ignore_merges"])
    for phrase in phrases:
        text = text_of(phrase.new_token)
        assert len(read_pretokenization(small_base).splitter(small_base)(text)) > 1
        assert read_pretokenization(bpe_form).splitter(bpe_form)(text) == [text]


@given(TEXT | st.text(st.sampled_from("abcdehilnorstuwx ._\n"), max_size=60))
def test_other_text_of_small_bases_is_unchanged_and_any_text_round_trips(
    small_base: Tokenizer, small_forms: tuple[RemapRules, PretokenCounts, list[Tokenizer]], text: str
) -> None:
    rules, _, forms = small_forms
    assert_other_text_unchanged(small_base, forms[0], rules, text)
    for tokenizer in forms:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@given(st.lists(st.text("abcd ", max_size=12), min_size=1, max_size=6), st.lists(st.text("abcd ", max_size=12)))
@settings(max_examples=12)
def test_any_small_bpe_is_remapped_exactly(
    train_bpe: Callable[..., Tokenizer], pretraining: list[str], texts: list[str]
) -> None:
    base = train_bpe(pretraining * 2, 8)
    if len(free_leaves(read_bpe(base))) <= 3:
        return  # the new token may need both halves
    counts, rules = select_rules(base, texts * 2, 1)
    tokenizer = remap_tokenizer(base, read_bpe(base), rules)
    assert_reachable(tokenizer, rules)
    for text in (*pretraining, *texts, "".join(texts)):
        assert_other_text_unchanged(base, tokenizer, rules, text)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    exact = distill(tokenizer, read_bpe(tokenizer), counts, exceptions=100).tokenizer
    assert measure_agreement(tokenizer, exact, counts).share == 1.0
    assert exact.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_written_folders_contain_base_and_rules_and_load_in_transformers(
    rules: RemapRules,
    remapped_bpe: Tokenizer,
    distillation: Distillation,
    gpt2_bpe: ByteLevelBPE,
    topics: list[str],
    tmp_path: Path,
) -> None:
    base, bpe_form, unigram_form, model = (TokenizerFolder(tmp_path / name) for name in ("base", "bpe", "uni", "model"))
    write_original_tokenizer(SAMPLE_MODEL, base.path)
    for target in (bpe_form.path, tmp_path / "again"):
        write_remapped_bpe(remapped_bpe, rules, base, target)
    assert content_hash(bpe_form.path) == content_hash(tmp_path / "again")
    for folder in (unigram_form, model):
        folder.path.mkdir()
    write_unigram_form(distillation.tokenizer, bpe_form, unigram_form.path)
    write_copy(unigram_form, model.path)
    for each in (bpe_form, unigram_form, model):
        assert each.base_bpe().ids == gpt2_bpe.ids
        assert each.base_backend().to_str() == base.backend().to_str()
        assert each.bpe_form().to_str() == remapped_bpe.to_str() == each.in_form("bpe").backend().to_str()
        assert applied_rules(each).digest() == rules.digest() and not applied_rules(each).edited
        expected = remapped_bpe if each is bpe_form else distillation.tokenizer
        loaded = each.load()
        assert loaded.eos_token_id == 50_256
        for text in [*topics, "It is n't , of the<|endoftext|> a . \x00한국"]:
            ids = loaded(text).input_ids
            assert ids == expected.encode(text).ids
            assert loaded.decode(ids) == text


def test_folder_without_a_bpe_form_is_refused(gpt2_distilled: Tokenizer, tmp_path: Path) -> None:
    gpt2_distilled.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"found a Unigram model\. Choose a folder with bpe_tokenizer\.json") as error:
        TokenizerFolder(tmp_path).in_form("bpe")
    assert error.value.where == tmp_path / "tokenizer.json"


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
def test_phrases_are_supported_by_other_pre_tokenizers(
    pre_tokenizer: pre_tokenizers.PreTokenizer, train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base, texts = train_bpe(topics[:10], 600, pre_tokenizer=pre_tokenizer), topics[10:30]
    counts, rules = select_rules(base, texts, 150, "across")
    check_rules(rules, read_bpe(base))
    assert any("Ġ" in rule.new_token[1:] and rule.new_token[-1].isalpha() for rule in rules)
    for tokenizer in both_forms(base, rules, counts):
        assert_reachable(tokenizer, rules)
        for text in [*texts, "한국 12345\r\n\n  (of the), ==== \x00<|endoftext|>"]:
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_phrases_are_refused_if_unused_tokens_of_the_base_would_come_back(
    bpe_of: Callable[..., Tokenizer],
) -> None:
    base = bpe_of(["bc", "ab", "abc", "zz"], [("b", "c"), ("a", "b"), ("ab", "c"), ("z", "z")])  # never makes abc
    bpe = read_bpe(base)
    phrase = RemapRule(bpe.ids["zz"], "zz", "aĠb", ("a", "Ġ", "b"))
    with pytest.raises(InputError, match=r"produce 1 tokens that the base never produces, such as 'abc'") as error:
        remap_tokenizer(base, bpe, RemapRules((phrase,)))
    assert error.value.where == "merge_scope"
    instead = replace(phrase, id=bpe.ids["abc"], sacrificed_token="abc")
    tokenizer = remap_tokenizer(base, bpe, RemapRules((instead,)))
    assert tokenizer.encode("a b").tokens == ["aĠb"]
    assert tokenizer.encode("abc").tokens == base.encode("abc").tokens == ["a", "bc"]


def test_everything_around_the_model_is_that_of_the_base(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> None:
    base = Tokenizer.from_str(tiny_bpe.to_str())
    base.normalizer = normalizers.NFC()
    base.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 556)]
    )
    base.add_special_tokens([AddedToken("<|im_start|>", normalized=False)])
    base.add_tokens([AddedToken("lone", single_word=True, normalized=False)])
    rules = complete_rules(rules_for(bpe, "qx", "ĠqxĠzv"), base, bpe)[0]
    plain = RemapRules(rules.rules[-1:])  # without the phrase
    assert [rule.new_token for rule in plain] == ["qx"]

    def around(tokenizer: Tokenizer, *without: str) -> dict[str, Any]:
        return {key: value for key, value in json.loads(tokenizer.to_str()).items() if key not in {"model", *without}}

    for chosen, without in ((plain, ()), (rules, ("pre_tokenizer",))):
        tokenizer = remap_tokenizer(base, bpe, chosen)
        assert around(tokenizer, *without) == around(base, *without)
        unigram = distill(tokenizer, read_bpe(tokenizer)).tokenizer
        assert around(unigram, "pre_tokenizer") == around(base, "pre_tokenizer")
        for text in ("lone <|im_start|>cloned cafe\u0301 qx zv<|endoftext|>", ""):
            for each in (tokenizer, unigram):
                assert each.decode(each.encode(text).ids, skip_special_tokens=False) == base.decode(
                    base.encode(text).ids, skip_special_tokens=False
                )


@pytest.fixture
def remap(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> Callable[..., list[Tokenizer]]:
    """A function that remaps the tiny BPE to the given new tokens and checks that all are reachable in both forms."""

    def remap_to(*new_tokens: str) -> list[Tokenizer]:
        rules = rules_for(bpe, *new_tokens)
        check_rules(rules, bpe)
        completed, _ = complete_rules(rules, tiny_bpe, bpe)
        forms = both_forms(tiny_bpe, completed)
        for tokenizer in forms:
            assert_reachable(tokenizer, completed)
            assert unreachable_tokens(tokenizer, completed) == []
        return forms

    return remap_to


def test_part_of_a_character_can_be_a_new_token(remap: Callable[..., list[Tokenizer]]) -> None:
    part = string_of("한")[:2]
    for tokenizer in remap(part):
        assert tokenizer.encode("한").tokens == [part, string_of("한")[2]]
        assert tokenizer.decode(tokenizer.encode("한국 한").ids) == "한국 한"


def test_new_token_across_pretokens_becomes_part_of_the_pattern(
    remap: Callable[..., list[Tokenizer]], tiny_bpe: Tokenizer
) -> None:
    assert len(read_pretokenization(tiny_bpe).splitter(tiny_bpe)(" qx zv")) == 2
    for tokenizer in remap("ĠqxĠzv", "qxz"):
        assert tokenizer.encode(" qx zv qx zvqxz").tokens[0] == "ĠqxĠzv"
        assert tokenizer.encode(" qx zv. qx zvs").tokens.count("ĠqxĠzv") == 1


def test_new_token_may_end_in_whitespace(remap: Callable[..., list[Tokenizer]]) -> None:
    for tokenizer in remap("qxĠ", "qĊ"):
        assert tokenizer.encode("q\nq").tokens == ["qĊ", "q"]
        assert tokenizer.encode("qx  a").tokens == ["qxĠ", "Ġa"]
        assert tokenizer.encode("qx a").tokens == ["q", "x", "Ġa"]


def test_unreachable_tokens_are_reported(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> None:
    # if digits are split first, no lookahead can detect where whitespace ends
    base = train_bpe(topics[:10], 300, pre_tokenizer=DIGITS_FIRST)
    bpe = read_bpe(base)
    rules = complete_rules(rules_for(bpe, "qxĠ", "qxz", "qĊ", "q12"), base, bpe)[0]
    assert set(unreachable_tokens(remap_tokenizer(base, bpe, rules), rules)) == {"qxĠ", "qĊ"}


def test_without_rules_the_tokenizer_is_that_of_the_base(small_base: Tokenizer) -> None:
    assert remap_tokenizer(small_base, read_bpe(small_base), RemapRules(())).to_str() == small_base.to_str()


def test_rule_adds_a_missing_byte_and_other_missing_bytes_are_still_dropped(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    missing = {"~", *string_of("é")}
    base = train_bpe(topics[:10], 300, alphabet=sorted(CHARACTER_TO_BYTE.keys() - missing))
    bpe = read_bpe(base)
    new = ["~", *string_of("é")]
    rules = RemapRules(tuple(replace(rule, constituents=()) for rule in rules_for(bpe, *new)))
    assert rules_from_yaml(rules_as_yaml(rules)) == rules
    check_rules(rules, bpe)
    assert complete_rules(rules, base, bpe) == (rules, [])
    for tokenizer in both_forms(base, rules):
        assert_reachable(tokenizer, rules)
        for text in ["~", "a~b", " ~~~~~~~~ ~", "café", "é", "the ~ of\n~~ é~é<|endoftext|>"]:
            lost = text.replace("~", "").replace("é", "")
            assert base.decode(base.encode(text).ids, skip_special_tokens=False) == lost
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
        assert tokenizer.encode("~é").ids == [rule.id for rule in rules]
    for only_one in both_forms(base, RemapRules(rules.rules[:1])):
        assert only_one.decode(only_one.encode("a~é b").ids) == "a~ b"


def test_run_longer_than_the_new_token_keeps_the_base_ids(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base = train_bpe(topics[:30], 200)
    bpe, new = read_bpe(base), "Ġ" * 10
    rules = complete_rules(rules_for(bpe, new), base, bpe)[0]
    counts = PretokenCounts([" " * n for n in range(1, 40)], np.full(39, 5), {}, 0, 0)
    bpe_form, unigram_form = both_forms(base, rules, counts)
    assert bpe_form.encode(" " * 10).tokens == [new]
    assert all(same for _, same in unaffected_types(base, bpe_form, rules, counts))
    assert measure_agreement(bpe_form, unigram_form, counts).share == 1.0


# complete_rules


def without_halves(rules: RemapRules, wanted: Callable[[RemapRule], bool] = lambda rule: True) -> RemapRules:
    return replace(rules, rules=tuple(replace(rule, halves=()) if wanted(rule) else rule for rule in rules))


def assert_complete(base: Tokenizer, rules: RemapRules, added: Sequence[RemapRule], given: RemapRules) -> None:
    """The rules are valid with all halves, and every new token is reachable."""
    check_rules(rules, read_bpe(base))
    assert {(r.id, r.new_token) for r in rules} == {(r.id, r.new_token) for r in [*given, *added]}
    assert_reachable(remap_tokenizer(base, read_bpe(base), rules), rules)


def test_rules_of_an_earlier_version_get_their_halves(
    small_forms: tuple[RemapRules, PretokenCounts, list[Tokenizer]], small_base: Tokenizer
) -> None:
    rules = small_forms[0]
    by_id = replace(without_halves(rules), rules=tuple(sorted(without_halves(rules), key=lambda rule: rule.id)))
    completed, added = complete_rules(by_id, small_base, read_bpe(small_base))
    assert len(added) <= 2  # the selection is closed, but tokens of a length may be merged in another order
    assert_complete(small_base, completed, added, rules)
    # some tokens can be merged in several ways; most are merged as they were selected
    halves = {rule.new_token: rule.halves for rule in rules}
    assert sum(rule.halves == halves.get(rule.new_token) for rule in completed) > 0.9 * len(rules)


@given(st.data())
@settings(max_examples=20)
def test_deleted_halves_are_found_again(
    small_forms: tuple[RemapRules, PretokenCounts, list[Tokenizer]], small_base: Tokenizer, data: st.DataObject
) -> None:
    rules = small_forms[0]
    lost = data.draw(st.sets(st.sampled_from([rule.new_token for rule in rules if rule.halves]), max_size=20))
    given_rules = without_halves(rules, lambda rule: rule.new_token in lost)
    completed, added = complete_rules(given_rules, small_base, read_bpe(small_base))
    assert_complete(small_base, completed, added, rules)
    order = [rule for rule in completed if rule.new_token not in lost and rule not in added]
    assert order == [rule for rule in rules if rule.new_token not in lost]


def test_missing_tokens_are_added_at_the_last_free_leaves(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> None:
    rules, free = rules_for(bpe, "qxzv", "Ġtheq"), free_leaves(bpe)[2:]
    completed, added = complete_rules(rules, tiny_bpe, bpe)
    assert [(rule.new_token, rule.halves, rule.constituents, rule.id) for rule in added] == [
        ("qx", ("q", "x"), ("q", "x"), free[0]),
        ("qxz", ("qx", "z"), ("q", "x", "z"), free[1]),
    ]
    assert [rule.sacrificed_token for rule in added] == [bpe.strings[i] for i in free[:2]]
    assert {rule.new_token: rule.halves for rule in completed if rule not in added} == {
        "qxzv": ("qxz", "v"),
        "Ġtheq": ("Ġthe", "q"),
    }
    assert_complete(tiny_bpe, completed, added, rules)
    assert rules_from_yaml(rules_as_yaml(completed)) == completed


@given(st.lists(st.text("qxztheof", min_size=2, max_size=6), max_size=6, unique=True))
@settings(max_examples=40)
def test_any_rules_are_completed(small_base: Tokenizer, new_tokens: list[str]) -> None:
    bpe = read_bpe(small_base)
    rules = rules_for(bpe, *(new for new in new_tokens if new not in bpe.ids))
    try:
        completed, added = complete_rules(rules, small_base, bpe)
    except InputError as error:
        # a vocabulary may have tokens that its merges do not make
        assert bpe.ignores_merges and "is not the concatenation of two tokens" in error.message
        return
    assert all(rule.halves for rule in completed)
    assert_complete(small_base, completed, added, rules)


def test_added_token_does_not_take_the_id_of_a_part(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> None:
    first, last = free_leaves(bpe)[:2]
    # constituents as bytes: only the segmentation shows that the last leaf is a part of the second rule
    rows = [(first, "qxz"), (free_leaves(bpe)[2], bpe.strings[last] + "qxzv")]
    rules = RemapRules(tuple(RemapRule(i, bpe.strings[i], new, tuple(new)) for i, new in rows))
    completed, added = complete_rules(rules, tiny_bpe, bpe)
    assert added and last not in {rule.id for rule in added}
    assert_complete(tiny_bpe, completed, added, rules)


def test_half_without_halves_is_merged_at_its_place(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> None:
    rows = [("qx", ()), ("qxz", ("qx", "z")), ("xz", ("x", "z"))]
    rules = RemapRules(
        tuple(
            replace(rule, halves=halves)
            for rule, (_, halves) in zip(rules_for(bpe, *(new for new, _ in rows)), rows, strict=True)
        )
    )
    completed, added = complete_rules(rules, tiny_bpe, bpe)
    assert [rule.new_token for rule in completed] == ["qx", "qxz", "xz"]
    assert_complete(tiny_bpe, completed, added, rules)


def test_token_without_an_id_for_its_parts_is_refused_with_its_line(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["ab"], [("a", "b")])
    text = "rules:\n- {id: 256, sacrificed_token: ab, new_token: qxz, constituents: [q, x, z]}\n"
    with pytest.raises(InputError) as error:
        complete_rules(rules_from_yaml(text), base, read_bpe(base), "edited.yaml")
    assert error.value.where == "edited.yaml:2"
    assert error.value.message == (
        "new token 'qxz' is not the concatenation of two tokens, but of q + x + z, and no id is left for 'qx'"
    )
    assert error.value.remedy == "Delete this rule or another one; it needs 'qx' = 'q' + 'x'."


def test_token_whose_only_intermediate_is_taken_is_refused_with_its_line(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["xy", "yz", "zz"], [("z", "z")], ignore_merges=True)  # xy and yz are whole pre-tokens only
    text = "rules:\n- {id: 258, sacrificed_token: zz, new_token: xyz, constituents: [x, y, z]}\n"
    with pytest.raises(InputError) as error:
        complete_rules(rules_from_yaml(text), base, read_bpe(base), "edited.yaml")
    assert error.value.where == "edited.yaml:2"
    assert error.value.message == "new token 'xyz' is not the concatenation of two tokens, but of x + y + z"
    assert error.value.remedy == "Delete this rule."
