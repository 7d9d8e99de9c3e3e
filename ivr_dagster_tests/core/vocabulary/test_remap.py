"""Rules through YAML and back, their faults, and the tokenizer that follows from them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import count_tokens
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.folder import TOKENIZER, TokenizerFolder
from ivr_dagster.core.tokenizer.write import write_copy, write_original_tokenizer, write_tokenizer
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of, text_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, token_frequencies
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.remap import (
    Remapping,
    remap_tokenizer,
    remapped_strings,
    unreachable_tokens,
    untouched_types,
    write_remapped_tokenizer,
)
from ivr_dagster.core.vocabulary.rules import (
    HEADER,
    RemapRule,
    RemapRules,
    applied_rules,
    check_rules,
    is_as_written,
    is_edited,
    read_rules,
    rules_as_yaml,
    rules_from_yaml,
    write_applied_rules,
)
from ivr_dagster.core.vocabulary.selection import candidates_table, rules_from_table
from ivr_dagster.errors import InputError
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.storage.content_hash import content_hash

STRING = st.text(sorted(CHARACTER_TO_BYTE), min_size=1, max_size=8) | st.sampled_from(
    ["null", "true", "~", "1e3", "0x1F", "2024-01-01", "-", ":", "#", "'", '"', "yes", "<<", "=", "x" * 1500]
)
RULES = st.lists(
    st.builds(
        RemapRule,
        id=st.integers(0, 60_000),
        sacrificed_token=STRING,
        new_token=STRING,
        constituents=st.lists(STRING, max_size=4).map(tuple),
        frequencies=st.just({}) | st.just({"sacrificed": 0, "new": 7, "saving": 12}),
    ),
    max_size=5,
).map(lambda rules: RemapRules(tuple(rules)))


@given(RULES)
def test_rules_come_back_from_yaml_as_computed(rules: RemapRules) -> None:
    text = rules_as_yaml(rules)
    assert text.startswith(HEADER)
    assert rules_from_yaml(text) == rules
    assert rules_from_yaml(text.encode().decode("utf-8-sig")) == rules


@given(RULES)
def test_rules_that_were_written_just_now_are_read_as_any_parser_would(rules: RemapRules) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text(rules_as_yaml(replace(rules, edited=True)), encoding="utf-8")
        assert read_rules(file) == rules_from_yaml(file.read_text(encoding="utf-8")) == rules
        rules_as_yaml(RemapRules((RULE,)))
        assert read_rules(file) == rules
        file.write_text(f"# mine\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
        assert read_rules(file) == rules


RULE = RemapRule(700, "Ġzoo", "Ġofthe", ("Ġof", "the"), {"sacrificed": 0, "new": 9, "saving": 9})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_string_in_a_rule_is_what_a_yaml_parser_reads(string: str) -> None:
    rules = RemapRules((RemapRule(7, string, string, (string, "a")),))
    row = yaml.safe_load(rules_as_yaml(rules))["rules"][0]
    assert row == {
        "id": 7,
        "sacrificed_token": string,
        "new_token": string,
        "constituents": [string, "a"],
        "frequencies": {},
    }


@pytest.mark.parametrize(
    "word", ["yes", "No", "null", "12", "1e5", "0x1f", "~", "=", "-", "- a", "a: b", "#", "Ġ#", "é"]
)
def test_words_that_yaml_reads_as_something_else_come_back_as_strings(word: str) -> None:
    rules = RemapRules((RemapRule(7, word, word, (word,)),))
    assert rules_from_yaml(rules_as_yaml(rules)) == rules


def test_a_file_is_edited_once_a_person_changed_its_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    text = rules_as_yaml(RemapRules((RULE,)))
    assert is_as_written(text)
    no_matter = [("saving: 9", "saving: 10"), ("computed:", "# mine\ncomputed:"), ("\nrules:\n", "\n# mine\nrules:\n")]
    matters = [("id: 700", "id: 701"), ("computed: ", "computed: 0"), ("Ġzoo", "Ġzoos")]
    unedited = [text, *(text.replace(*change) for change in no_matter)]
    edited = [text.replace(*change) for change in matters]
    assert not any(map(is_as_written, [*unedited[1:], *edited]))
    for texts, expected in ((unedited, False), (edited, True)):
        for each in texts:
            file.write_text(each, encoding="utf-8")
            assert is_edited(file) is expected


def test_any_edit_of_ids_or_strings_is_noticed_and_of_frequencies_and_comments_not() -> None:
    text = rules_as_yaml(RemapRules((RULE,)))
    for old, new in [("id: 700", "id: 701"), ("Ġzoo", "Ġzoos"), ("- the", "- th\n  - e"), ("Ġofthe", "Ġof")]:
        edited = text.replace(old, new)
        assert edited != text
        assert rules_from_yaml(edited).edited
    for old, new in [("saving: 9", "saving: 10"), ("\nrules:", "\n# mine\nrules:"), ("id: 700", "id: 0x2bc")]:
        same = text.replace(old, new)
        assert same != text
        assert not rules_from_yaml(same).edited


def test_rules_written_by_hand_count_as_edited() -> None:
    text = "rules:\n- id: 700\n  sacrificed_token: Ġzoo\n  new_token: Ġofthe\n  constituents: [Ġof, the]\n"
    found = rules_from_yaml(text)
    assert found.edited
    assert found.rules == (replace(RULE, frequencies={}),)


def test_the_digest_is_of_ids_and_strings_alone() -> None:
    rules = RemapRules((RULE,))
    assert RemapRules((replace(RULE, frequencies={}),), edited=True).digest() == rules.digest()
    changes = ({"id": 1}, {"sacrificed_token": "x"}, {"new_token": "x"}, {"constituents": ("Ġofthe",)})
    assert len({RemapRules((replace(RULE, **change),)).digest() for change in changes} | {rules.digest()}) == 5


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("rules:\n- id: 1\n  x: [\n", "edited.yaml:4", "the remap rules cannot be read as YAML"),
        ("rules:\n\t- id: 1\n", "edited.yaml:2", "the remap rules cannot be read as YAML"),
        ("rules: \x01\n", "edited.yaml:1", "the remap rules cannot be read as YAML"),
        ("- id: 1\n", "edited.yaml", "a list under the key `rules` was expected"),
        ("rules: 5\n", "edited.yaml", "a list under the key `rules` was expected"),
        ("", "edited.yaml", "a list under the key `rules` was expected"),
    ],
)
def test_what_is_no_list_of_rules_is_refused_with_file_and_line(text: str, where: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        rules_from_yaml(text, "edited.yaml")
    assert error.value.where == where
    assert error.value.message.startswith(message)
    assert "\n" not in str(error.value)


GOOD = "- {id: 1, sacrificed_token: a, new_token: bc, constituents: [b, c]}\n"


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("- 17\n", "17"),
        ("- {sacrificed_token: a, new_token: bc, constituents: [b, c]}\n", "`id` must be a whole number, found None"),
        ("- {id: 1.5, sacrificed_token: a, new_token: bc, constituents: [b]}\n", "found 1.5"),
        ("- {id: yes, sacrificed_token: a, new_token: bc, constituents: [b]}\n", "found True"),
        ("- {id: 7, sacrificed_token: 12, new_token: bc, constituents: [b]}\n", "`sacrificed_token` must be a string"),
        ("- {id: 7, sacrificed_token: a, new_token: null, constituents: [b]}\n", "`new_token` must be a string"),
        ("- {id: 7, sacrificed_token: a, new_token: '', constituents: [b]}\n", "id 7: `new_token` must be a string"),
        ("- {id: 7, sacrificed_token: a, new_token: bc, constituents: bc}\n", "found 'bc'"),
        ("- {id: 7, sacrificed_token: a, new_token: bc}\n", "`constituents` must be a list of strings, found None"),
        ("- {id: 7, sacrificed_token: a, new_token: b1, constituents: [b, 1]}\n", "found ['b', 1]"),
        (
            "- {id: 7, sacrificed_token: a, new_token: bc, constituents: [b, c], frequencies: {new: often}}\n",
            "`frequencies` must hold whole numbers, found {'new': 'often'}",
        ),
        (
            "- {id: 7, sacrificed_token: a, new_token: bc, constituents: [b, c], frequencies: 3}\n",
            "`frequencies` must hold whole numbers, found 3",
        ),
    ],
)
def test_a_rule_of_the_wrong_shape_is_named_with_file_and_line(rule: str, found: str) -> None:
    with pytest.raises(InputError) as error:
        rules_from_yaml(f"# mine\nrules:\n{GOOD}{rule}{GOOD}", "edited.yaml")
    assert "edited.yaml:4: " in str(error.value)
    assert found in str(error.value)
    assert "edited.yaml:3" not in str(error.value)


def test_all_rules_of_the_wrong_shape_are_reported_together() -> None:
    with pytest.raises(InputError, match=r"edited.yaml:2: .*; edited.yaml:4: "):
        rules_from_yaml(f"rules:\n- 17\n{GOOD}- 18\n", "edited.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"rules:\n{GOOD}rules:\n{GOOD}", "edited.yaml:3: duplicate key 'rules', first in line 1"),
        ("rules:\n- {id: 1, id: 2, new_token: b}\n", "edited.yaml:2: duplicate key 'id'"),
        (f"rules:\n- &a {GOOD[2:]}- *a\n", "edited.yaml:2: the value at an anchor is used again by an alias"),
        ("rules: " + "[" * 900, "edited.yaml"),
        ("rules:\n- {id: 2024-99-99}\n", "edited.yaml:2: the rule has an invalid value (month must be"),
        ("rules:\n- {id: !!python/object/apply:os.abort []}\n", "edited.yaml:2: the rule has an invalid value"),
        ("rules:\n- {id: 0x" + "f" * 9000 + "}\n", "2: `id` must be from 0 to 2,147,483,647, found an integer of"),
    ],
)
def test_what_yaml_has_and_rules_do_not_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        rules_from_yaml(text, "edited.yaml")
    assert told in str(error.value)
    assert len(str(error.value)) < 600


def test_faults_of_rules_from_a_file_are_told_with_their_lines(bpe: ByteLevelBPE) -> None:
    text = f"rules:\n{GOOD}- {{id: 500, sacrificed_token: x, new_token: qxz, constituents: [q, x, z]}}\n{GOOD}"
    with pytest.raises(InputError) as error:
        check_rules(rules_from_yaml(text), bpe, "edited.yaml")
    told = str(error.value)
    assert (
        f"edited.yaml:3: id 500 is {bpe.strings[500]!r}, not 'x'; edited.yaml:4: id 1 is given away twice, first"
        in told
    )


@pytest.fixture(scope="module")
def bpe(tiny_bpe: Tokenizer) -> ByteLevelBPE:
    """256 bytes and 300 tokens, " the" and "12"-less."""
    return read_bpe(tiny_bpe)


def rule_for(bpe: ByteLevelBPE, new_token: str, *constituents: str, token_id: int = 500) -> RemapRule:
    return RemapRule(token_id, bpe.strings[token_id], new_token, constituents or tuple(new_token))


def faults_of(bpe: ByteLevelBPE, *rules: RemapRule) -> list[str]:
    with pytest.raises(InputError) as error:
        check_rules(RemapRules(rules), bpe, "edited.yaml")
    assert error.value.where == "edited.yaml"
    return error.value.message.split("; ")


def test_rules_that_fit_pass(bpe: ByteLevelBPE) -> None:
    check_rules(RemapRules((rule_for(bpe, "qxz"), rule_for(bpe, "Ġtheq", "Ġthe", "q", token_id=501))), bpe)
    check_rules(RemapRules(()), bpe)


def test_an_id_given_away_twice_is_a_fault(bpe: ByteLevelBPE) -> None:
    assert faults_of(bpe, rule_for(bpe, "qxz"), rule_for(bpe, "qxq")) == ["id 500 is given away twice"]


@pytest.mark.parametrize("token_id", [-1, 557, 60_000])
def test_an_unknown_id_is_a_fault(bpe: ByteLevelBPE, token_id: int) -> None:
    rule = RemapRule(token_id, "x", "qxz", ("q", "x", "z"))
    assert faults_of(bpe, rule) == [f"id {token_id} is not in the vocabulary of 557"]


@pytest.mark.parametrize("string", ["a", "7", "<|endoftext|>"])
def test_a_protected_id_is_a_fault(bpe: ByteLevelBPE, string: str) -> None:
    (fault,) = faults_of(bpe, rule_for(bpe, "qxz", token_id=bpe.ids[string]))
    assert fault.startswith(f"id {bpe.ids[string]} ({string!r}) is protected")


def test_a_sacrificed_token_that_is_not_the_ids_is_a_fault(bpe: ByteLevelBPE) -> None:
    rule = replace(rule_for(bpe, "qxz"), sacrificed_token="Ġzoo")
    assert faults_of(bpe, rule) == [f"id 500 is {bpe.strings[500]!r}, not 'Ġzoo'"]


def test_a_new_token_given_twice_is_a_fault(bpe: ByteLevelBPE) -> None:
    faults = faults_of(bpe, rule_for(bpe, "qxz"), rule_for(bpe, "qxz", token_id=501))
    assert faults == ["new token 'qxz' is given twice"]


def test_a_new_token_that_exists_is_a_fault(bpe: ByteLevelBPE) -> None:
    assert faults_of(bpe, rule_for(bpe, "Ġthe")) == [f"new token 'Ġthe' exists already with id {bpe.ids['Ġthe']}"]


def test_a_new_token_outside_the_alphabet_is_a_fault(bpe: ByteLevelBPE) -> None:
    faults = faults_of(bpe, rule_for(bpe, "of the", "of", "Ġthe"))
    assert faults[0] == "new token 'of the' is not in the byte-level alphabet (a space is Ġ)"


def test_a_constituent_that_is_no_token_is_a_fault(bpe: ByteLevelBPE) -> None:
    assert faults_of(bpe, rule_for(bpe, "qxz", "q", "xz")) == [
        "new token 'qxz': constituent 'xz' is no token of the base"
    ]


def test_constituents_that_make_up_something_else_are_a_fault(bpe: ByteLevelBPE) -> None:
    assert faults_of(bpe, rule_for(bpe, "qxz", "q", "x")) == ["new token 'qxz': constituents make up 'qx'"]


@pytest.mark.parametrize("new_token", ["qxz", "Ġthe", "a"])
def test_only_a_byte_that_the_base_lacks_has_no_constituents(bpe: ByteLevelBPE, new_token: str) -> None:
    fault = faults_of(bpe, replace(rule_for(bpe, new_token), constituents=()))[0]
    exists = f"new token {new_token!r} exists already with id"
    assert fault.startswith(exists if new_token in bpe.ids else f"new token {new_token!r}: constituents make up ''")


def test_all_faults_are_reported_together_and_many_are_counted(bpe: ByteLevelBPE) -> None:
    rules = [rule_for(bpe, "qxz", "q"), replace(rule_for(bpe, "Ġthe"), id=9_999, constituents=("Ġthe",))]
    assert len(faults_of(bpe, *rules)) == 3
    many = faults_of(bpe, *(replace(rule_for(bpe, f"qx{'z' * n}"), id=1_000 + n) for n in range(1, 26)))
    assert many[0].startswith("id 1001 ") and many[19].startswith("id 1020 ")
    assert many[20:] == ["and 5 more"]


def test_a_real_selection_makes_rules_that_fit(rules: RemapRules, gpt2_bpe: ByteLevelBPE) -> None:
    assert len(rules) == 300
    check_rules(rules, gpt2_bpe)
    assert rules_from_yaml(rules_as_yaml(rules)) == rules


def test_the_vocabulary_keeps_its_size_and_every_id_without_a_rule_its_string(
    rules: RemapRules, remapped: Tokenizer, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE
) -> None:
    assert remapped.get_vocab_size(with_added_tokens=True) == gpt2.get_vocab_size(with_added_tokens=True)
    new = rules.new_tokens()
    strings = remapped_strings(gpt2_bpe, rules)
    for token_id, string in enumerate(gpt2_bpe.strings):
        assert remapped.id_to_token(token_id) == strings[token_id] == new.get(token_id, string)
    for rule in rules:
        assert remapped.token_to_id(rule.sacrificed_token) is None


def test_every_new_token_is_reachable(rules: RemapRules, remapped: Tokenizer) -> None:
    assert unreachable_tokens(remapped, rules) == []
    whole = [rule for rule in rules if "\ufffd" not in text_of(rule.new_token)]
    assert [remapped.encode(text_of(rule.new_token)).ids for rule in whole] == [[rule.id] for rule in whole]


def test_every_kept_token_still_encodes_to_itself(
    rules: RemapRules, remapped: Tokenizer, gpt2_bpe: ByteLevelBPE
) -> None:
    gone = {rule.id for rule in rules} | gpt2_bpe.added_ids
    kept = [string for token_id, string in enumerate(gpt2_bpe.strings) if token_id not in gone]
    pieces = {string: [token.value for token in remapped.model.tokenize(string)] for string in kept}
    assert {string: found for string, found in pieces.items() if found != [string]} == {}


def test_every_type_without_new_or_sacrificed_tokens_has_the_bases_ids(
    rules: RemapRules, remapping: Remapping, gpt2: Tokenizer, topics_counts: PretokenCounts
) -> None:
    changed = {rule.id for rule in rules}
    types = topics_counts.types
    before, after = ([tokenizer.encode(piece).ids for piece in types] for tokenizer in (gpt2, remapping.tokenizer))
    untouched = [n for n in range(len(types)) if changed.isdisjoint(before[n]) and changed.isdisjoint(after[n])]
    assert len(untouched) > 5_000
    assert [types[n] for n in untouched if before[n] != after[n]] == []
    assert untouched_types(gpt2, remapping.tokenizer, rules, topics_counts) == [(n, True) for n in untouched]
    assert remapping.exceptions


@pytest.fixture(scope="module")
def differing(rules: RemapRules, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts) -> list[int]:
    """Untouched types that get other ids without exceptions, the most frequent first."""
    plain = remap_tokenizer(gpt2, gpt2_bpe, rules).tokenizer
    return [n for n, same in untouched_types(gpt2, plain, rules, topics_counts) if not same]


def test_few_types_need_an_exception_which_is_the_type_and_its_first_piece(
    differing: list[int], remapping: Remapping, topics_counts: PretokenCounts
) -> None:
    assert 0 < len(differing) < 20
    assert {string_of(topics_counts.types[n]) for n in differing} <= remapping.exceptions.keys()
    assert all(string.startswith(piece) and piece != string for string, piece in remapping.exceptions.items())


def test_the_most_frequent_type_has_the_first_exception(
    differing: list[int], rules: RemapRules, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    one = remap_tokenizer(gpt2, gpt2_bpe, rules, topics_counts, exceptions=1)
    left = [n for n, same in untouched_types(gpt2, one.tokenizer, rules, topics_counts) if not same]
    assert left == differing[1:]


def test_without_counts_or_when_none_are_wanted_there_are_no_exceptions(
    tiny_bpe: Tokenizer, bpe: ByteLevelBPE, topics: list[str]
) -> None:
    rules, counts = RemapRules((rule_for(bpe, "qxz"),)), count_pretokens(topics, tiny_bpe)
    assert remap_tokenizer(tiny_bpe, bpe, rules, exceptions=9).exceptions == {}
    assert remap_tokenizer(tiny_bpe, bpe, rules, counts).exceptions == {}
    assert remap_tokenizer(tiny_bpe, bpe, rules, counts, exceptions=9).exceptions


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("merges", [600, 1500])
def test_small_vocabularies_keep_the_ids_of_untouched_types_too(
    merges: int, across: bool, train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base = train_bpe(topics[:30], merges)
    bpe, texts = read_bpe(base), topics[10:50]
    counts = count_pretokens(texts, base)
    selection = choose_candidates(base, bpe, counts, texts, budget=80, across=across)
    rules = rules_from_table(candidates_table(selection, bpe, token_frequencies(counts, base)))
    found = remap_tokenizer(base, bpe, rules, counts, exceptions=10_000)
    assert [counts.types[n] for n, same in untouched_types(base, found.tokenizer, rules, counts) if not same] == []
    assert unreachable_tokens(found.tokenizer, rules) == []
    for text in texts:
        assert found.tokenizer.decode(found.tokenizer.encode(text).ids) == text


def test_runs_keep_the_bases_ids_where_a_new_run_stands_in_none_of_them(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base = train_bpe(topics[:30], 200)
    bpe, new = read_bpe(base), "Ġ" * 10
    rules = RemapRules((rule_for(bpe, new, "Ġ" * 8, "ĠĠ", token_id=bpe.size - 2),))
    counts = PretokenCounts([" " * 11], np.array([5]), {}, 0, 0)
    found = remap_tokenizer(base, bpe, rules, counts, exceptions=9)
    assert untouched_types(base, found.tokenizer, rules, counts) == [(0, True)]


TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["<|endoftext|>", " of the", " of them", "\x00", "\u0301", "====", "\r\n", "\n  ", " class", "한국"]
    )
).map("".join)


@given(TEXT)
def test_any_text_comes_back_from_the_remapped_tokenizer(remapped: Tokenizer, text: str) -> None:
    ids = remapped.encode(text).ids
    assert remapped.decode(ids, skip_special_tokens=False) == text
    assert ids.count(50_256) == text.count("<|endoftext|>")


def test_help_topics_come_back_from_the_remapped_tokenizer(remapped: Tokenizer, topics: list[str]) -> None:
    for text in topics:
        assert remapped.decode(remapped.encode(text).ids) == text


def test_the_remapped_tokenizer_gives_the_same_ids_and_text_when_loaded_by_transformers(
    tmp_path: Path, remapped: Tokenizer, topics: list[str]
) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(remapped, SAMPLE_MODEL, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in [*topics[:5], "It is n't , of the<|endoftext|> a . \x00한국"]:
        ids = loaded(text).input_ids
        assert ids == remapped.encode(text).ids
        assert loaded.decode(ids) == text
    assert loaded.eos_token_id == 50_256


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ],
    ids=["Llama 3", "SmolLM2"],
)
def test_other_bases_are_adapted_with_every_new_token_reachable_and_any_text_coming_back(
    pre_tokenizer: pre_tokenizers.PreTokenizer, train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    base = train_bpe(topics[:10], 600, pre_tokenizer=pre_tokenizer)
    bpe, texts = read_bpe(base), topics[10:30]
    counts = count_pretokens(texts, base)
    selection = choose_candidates(base, bpe, counts, texts, budget=150, across=True)
    rules = rules_from_table(candidates_table(selection, bpe, token_frequencies(counts, base)))
    check_rules(rules, bpe)
    tokenizer = remap_tokenizer(base, bpe, rules, counts, exceptions=10_000).tokenizer
    assert unreachable_tokens(tokenizer, rules) == []
    assert any("Ġ" in rule.new_token[1:] and rule.new_token[-1].isalpha() for rule in rules)
    for text in [*texts, "한국 12345\r\n\n  (of the), ==== \x00<|endoftext|>"]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    before, after = count_tokens(base, texts)[0], count_tokens(tokenizer, texts)[0]
    assert before - after >= 0.9 * (selection.tokens_before - selection.tokens_after)


@pytest.fixture
def remap(tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> Callable[..., tuple[Tokenizer, RemapRules]]:
    """A function that gives the tiny BPE new tokens at ids 500, 501, ..."""

    def with_new(*new_tokens: str) -> tuple[Tokenizer, RemapRules]:
        rules = RemapRules(tuple(rule_for(bpe, t, token_id=500 + n) for n, t in enumerate(new_tokens)))
        check_rules(rules, bpe)
        return remap_tokenizer(tiny_bpe, bpe, rules).tokenizer, rules

    return with_new


def test_part_of_a_character_can_be_a_new_token(remap: Callable[..., tuple[Tokenizer, RemapRules]]) -> None:
    part = string_of("한")[:2]
    tokenizer, rules = remap(part)
    assert unreachable_tokens(tokenizer, rules) == []
    assert tokenizer.encode("한").tokens == [part, string_of("한")[2]]
    assert tokenizer.decode(tokenizer.encode("한국 한").ids) == "한국 한"


def test_a_new_token_across_pre_tokens_becomes_part_of_the_pattern(
    remap: Callable[..., tuple[Tokenizer, RemapRules]], tiny_bpe: Tokenizer
) -> None:
    tokenizer, rules = remap("ĠqxĠzv", "qxz")
    assert len(read_pretokenization(tiny_bpe).splitter(tiny_bpe)(" qx zv")) == 2
    assert unreachable_tokens(tokenizer, rules) == []
    assert tokenizer.encode(" qx zv qx zvqxz").tokens[0] == "Ġqxの".replace("の", "Ġzv")
    assert tokenizer.encode(" qx zv. qx zvs").tokens.count("ĠqxĠzv") == 1


def test_new_tokens_may_end_in_white_space(remap: Callable[..., tuple[Tokenizer, RemapRules]]) -> None:
    tokenizer, rules = remap("qxĠ", "qĊ", string_of(" 한")[:2] + "Ġ")
    assert unreachable_tokens(tokenizer, rules) == []
    assert tokenizer.encode("q\nq").tokens == ["qĊ", "q"]
    assert tokenizer.encode("qx  a").tokens == ["qxĠ", "Ġa"]
    assert tokenizer.encode("qx a").tokens == ["q", "x", "Ġa"]


def test_a_new_token_that_nothing_can_produce_is_reported(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    # where digits are cut first, no look ahead tells how far white space goes
    digits = pre_tokenizers.Digits(individual_digits=True)
    both = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    base = train_bpe(topics[:10], 300, pre_tokenizer=both)
    bpe = read_bpe(base)
    rules = RemapRules(tuple(rule_for(bpe, t, token_id=500 + n) for n, t in enumerate(["qxĠ", "qxz", "qĊ", "q12"])))
    assert unreachable_tokens(remap_tokenizer(base, bpe, rules).tokenizer, rules) == ["qxĠ", "qĊ"]


def test_no_rules_are_the_distilled_tokenizer(tiny_bpe: Tokenizer, bpe: ByteLevelBPE, topics: list[str]) -> None:
    tokenizer = remap_tokenizer(tiny_bpe, bpe, RemapRules(())).tokenizer
    assert tokenizer.get_vocab() == tiny_bpe.get_vocab()
    assert tokenizer.encode(topics[0]).ids == tiny_bpe.encode(topics[0]).ids


def test_a_file_of_rules_names_its_tokens_in_plain_unicode() -> None:
    assert yaml.safe_load(rules_as_yaml(RemapRules((RULE,))))["rules"][0]["new_token"] == "Ġofthe"
    assert "new_token: Ġofthe" in rules_as_yaml(RemapRules((RULE,)))


def test_rules_that_are_not_utf8_are_named_with_byte_and_offset(tmp_path: Path) -> None:
    file = tmp_path / "remap_rules.yaml"
    file.write_bytes(b"rules:\n- new_token: \xff\n")
    with pytest.raises(InputError, match=r"remap_rules\.yaml:2: .*byte 0xff at offset 20"):
        read_rules(file)


@pytest.fixture(scope="module")
def without_some_bytes(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> Tokenizer:
    """A BPE that drops "~" and "é" without a word."""
    missing = {"~", *string_of("é")}
    return train_bpe(topics[:10], 300, alphabet=sorted(CHARACTER_TO_BYTE.keys() - missing))


def test_a_byte_that_the_base_lacks_gets_a_token_and_texts_with_it_come_back(without_some_bytes: Tokenizer) -> None:
    bpe = read_bpe(without_some_bytes)
    rules = RemapRules(
        tuple(RemapRule(400 + n, bpe.strings[400 + n], c, ()) for n, c in enumerate("~" + string_of("é")))
    )
    again = rules_from_yaml(rules_as_yaml(rules))
    assert again == rules
    check_rules(again, bpe)
    tokenizer = remap_tokenizer(without_some_bytes, bpe, again).tokenizer
    assert unreachable_tokens(tokenizer, again) == []
    for text in ["~", "a~b", " ~~~~~~~~ ~", "café", "é", "the ~ of\n~~ é~é<|endoftext|>"]:
        lost = text.replace("~", "").replace("é", "")
        assert without_some_bytes.decode(without_some_bytes.encode(text).ids, skip_special_tokens=False) == lost
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("~é").ids == [400, *(again.rules[n].id for n in (1, 2))]


def test_bytes_without_a_rule_are_dropped_as_the_base_drops_them(without_some_bytes: Tokenizer) -> None:
    bpe = read_bpe(without_some_bytes)
    rules = RemapRules((RemapRule(400, bpe.strings[400], "~", ()),))
    tokenizer = remap_tokenizer(without_some_bytes, bpe, rules).tokenizer
    assert tokenizer.decode(tokenizer.encode("a~é b").ids) == "a~ b"


def test_a_remapped_tokenizer_folder_carries_its_base_and_its_rules(
    rules: RemapRules, remapping: Remapping, gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, tmp_path: Path
) -> None:
    base, folder, model = (TokenizerFolder(tmp_path / name) for name in ("base", "remapped", "model"))
    write_original_tokenizer(SAMPLE_MODEL, base.path)
    for target in (folder, TokenizerFolder(tmp_path / "again")):
        write_remapped_tokenizer(remapping.tokenizer, rules, base.path / TOKENIZER, base, target.path)
    assert content_hash(folder.path) == content_hash(tmp_path / "again")
    model.path.mkdir()
    write_copy(folder, model.path)
    for carried in (folder, model):
        assert carried.base_bpe().ids == gpt2_bpe.ids
        assert carried.base_backend().to_str() == base.backend().to_str()
        assert applied_rules(carried).digest() == rules.digest() and not applied_rules(carried).edited
        assert carried.load().get_vocab() == remapping.tokenizer.get_vocab()


def test_rules_that_differ_in_frequencies_only_are_written_alike(tmp_path: Path) -> None:
    for name, rule in (("a", RULE), ("b", replace(RULE, frequencies={"new": 1}))):
        (tmp_path / name).mkdir()
        write_applied_rules(RemapRules((rule,)), tmp_path / name)
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")


def test_a_tokenizer_without_rules_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="comes without its remap rules") as error:
        applied_rules(TokenizerFolder(tmp_path))
    assert error.value.where == tmp_path / "remap_rules.yaml"
