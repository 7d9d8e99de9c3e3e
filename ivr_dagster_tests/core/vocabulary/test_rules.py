"""Remap rules: their YAML file, edits, and validation."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.core.vocabulary.rules import (
    HEADER,
    RemapRule,
    RemapRules,
    applied_rules,
    check_rules,
    edited_rules,
    is_as_written,
    read_rules,
    rules_as_yaml,
    rules_from_yaml,
    write_remapped_bpe,
)
from ivr_dagster.errors import InputError
from ivr_dagster.storage.content_hash import content_hash

RULE = RemapRule(700, "Ġzoo", "Ġofthe", ("Ġof", "the"), {"sacrificed": 0, "new": 9, "saving": 9})
TEXT = rules_as_yaml(RemapRules((RULE,)))
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
        halves=st.just(()) | st.tuples(STRING, STRING),
    ),
    max_size=5,
).map(lambda rules: RemapRules(tuple(rules)))


@given(RULES)
def test_rules_survive_a_round_trip_through_yaml(rules: RemapRules) -> None:
    text = rules_as_yaml(rules)
    assert text.startswith(HEADER)
    assert rules_from_yaml(text) == rules
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text(rules_as_yaml(replace(rules, edited=True)), encoding="utf-8")
        assert read_rules(file) == rules  # without parsing
        rules_as_yaml(RemapRules((RULE,)))
        rules_as_yaml(RemapRules(()))
        assert read_rules(file) == rules
        file.write_text(f"# mine\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
        assert read_rules(file) == rules


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_string_is_what_a_yaml_parser_reads(string: str) -> None:
    row = yaml.safe_load(rules_as_yaml(RemapRules((RemapRule(7, string, string, (string, "a")),))))["rules"][0]
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
def test_words_with_a_meaning_in_yaml_remain_strings(word: str) -> None:
    rules = RemapRules((RemapRule(7, word, word, (word,)),))
    assert rules_from_yaml(rules_as_yaml(rules)) == rules


@pytest.mark.parametrize(
    ("old", "new", "edited"),
    [
        ("saving: 9", "saving: 10", False),
        ("computed:", "# mine\ncomputed:", False),
        ("\nrules:\n", "\n# mine\nrules:\n", False),
        ("id: 700", "id: 0x2bc", False),
        ("id: 700", "id: 701", True),
        ("computed: ", "computed: 0", True),
        ("Ġzoo", "Ġzoos", True),
        ("- the", "- th\n  - e", True),
        ("Ġofthe", "Ġof", True),
    ],
)
def test_edits_of_ids_and_strings_are_recognized(old: str, new: str, edited: bool, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    assert edited_rules(file) is None
    file.write_text(TEXT, encoding="utf-8")
    assert is_as_written(TEXT) and edited_rules(file) is None
    text = TEXT.replace(old, new)
    file.write_text(text, encoding="utf-8")
    assert text != TEXT and not is_as_written(text)
    assert rules_from_yaml(text).edited is edited
    assert edited_rules(file) == (read_rules(file) if edited else None)


def test_rules_written_by_hand_count_as_edited() -> None:
    text = "rules:\n- id: 700\n  sacrificed_token: Ġzoo\n  new_token: Ġofthe\n  constituents: [Ġof, the]\n"
    assert rules_from_yaml(text) == RemapRules((replace(RULE, frequencies={}),), edited=True)


def test_digest_covers_ids_and_strings_only() -> None:
    rules = RemapRules((RULE,))
    assert RemapRules((replace(RULE, frequencies={}),), edited=True).digest() == rules.digest()
    changes = (
        {"id": 1},
        {"sacrificed_token": "x"},
        {"new_token": "x"},
        {"constituents": ("Ġofthe",)},
        {"halves": ("Ġof", "the")},
        {"halves": ("Ġo", "fthe")},
    )
    assert len({RemapRules((replace(RULE, **change),)).digest() for change in changes} | {rules.digest()}) == 7


# as written by earlier versions, which had no halves
EARLIER = """\
# Remap rules: each id below changes its string from sacrificed_token to new_token.
computed: DIGEST
written: 0
rules:
- id: 700
  sacrificed_token: "Ġzoo"
  new_token: "Ġofthe"
  constituents:
  - "Ġof"
  - the
  frequencies:
    sacrificed: 0
    new: 9
    saving: 9
"""


def test_file_of_an_earlier_version_has_the_same_digest_and_is_unedited() -> None:
    content = json.dumps([[700, "Ġzoo", "Ġofthe", ["Ġof", "the"]]])
    assert RemapRules((RULE,)).digest() == content_hash(content)
    text = EARLIER.replace("DIGEST", content_hash(content))
    assert rules_from_yaml(text) == RemapRules((RULE,))
    assert "halves:" not in rules_as_yaml(RemapRules((RULE,)))
    assert rules_from_yaml(text.replace("id: 700", "id: 701")).edited


def test_rules_keep_the_order_of_merges() -> None:
    rules = tuple(replace(RULE, id=i, halves=("Ġof", "the")) for i in (9, 3, 7))
    text = rules_as_yaml(RemapRules(rules))
    assert [rule.id for rule in rules_from_yaml(text)] == [9, 3, 7]
    assert rules_from_yaml(text).digest() != RemapRules(rules[::-1]).digest()


def test_applied_rules_do_not_depend_on_frequencies(tiny_bpe: Tokenizer, tmp_path: Path) -> None:
    base = TokenizerFolder(tmp_path / "base")
    base.path.mkdir()
    tiny_bpe.save(str(base.file))
    (base.path / "tokenizer_config.json").write_text("{}")
    written = []
    for rule in (RULE, replace(RULE, frequencies={"new": 1})):
        write_remapped_bpe(tiny_bpe, RemapRules((rule,)), base, tmp_path / "remapped")
        written.append((tmp_path / "remapped" / "remap_rules.yaml").read_bytes())
    assert written[0] == written[1]
    remapped = TokenizerFolder(tmp_path / "remapped")
    assert applied_rules(remapped) == RemapRules((replace(RULE, frequencies={}),))
    assert remapped.base_backend().to_str() == remapped.bpe_form().to_str() == tiny_bpe.to_str()
    with pytest.raises(InputError, match="has no remap rules") as error:
        applied_rules(TokenizerFolder(tmp_path / "nowhere"))
    assert error.value.where == tmp_path / "nowhere" / "remap_rules.yaml"


def fault_in(text: str) -> InputError:
    with pytest.raises(InputError) as error:
        rules_from_yaml(text, "edited.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return error.value


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
def test_text_without_a_list_of_rules_is_refused(text: str, where: str, message: str) -> None:
    error = fault_in(text)
    assert error.where == where
    assert error.message.startswith(message)


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
            "`frequencies` must be whole numbers, found {'new': 'often'}",
        ),
        (
            "- {id: 7, sacrificed_token: a, new_token: bc, constituents: [b, c], frequencies: 3}\n",
            "`frequencies` must be whole numbers, found 3",
        ),
        (
            "- {id: 7, sacrificed_token: a, new_token: bcd, constituents: [b, c, d], halves: [b, c, d]}\n",
            "rule for id 7: `halves` must be a list of two strings, found ['b', 'c', 'd']",
        ),
        ("- {id: 7, sacrificed_token: a, new_token: b1, constituents: [b], halves: [b, 1]}\n", "found ['b', 1]"),
        ("- {id: 7, sacrificed_token: a, new_token: bc, constituents: [b], halves: bc}\n", "found 'bc'"),
        ("- {id: 2024-99-99}\n", "the rule has an invalid value (month must be"),
        ("- {id: !!python/object/apply:os.abort []}\n", "the rule has an invalid value"),
        ("- {id: 0x" + "f" * 9000 + "}\n", "`id` must be from 0 to 2,147,483,647, found an integer of"),
    ],
)
def test_rules_of_the_wrong_type_are_reported_with_their_lines(rule: str, found: str) -> None:
    message = str(fault_in(f"# mine\nrules:\n{GOOD}{rule}{GOOD}"))
    assert "edited.yaml:4: " in message and found in message
    assert "edited.yaml:3" not in message
    assert "edited.yaml:6: " in str(fault_in(f"# mine\nrules:\n{GOOD}{rule}{GOOD}{rule}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"rules:\n{GOOD}rules:\n{GOOD}", "edited.yaml:3: duplicate key 'rules', first in line 1"),
        ("rules:\n- {id: 1, id: 2, new_token: b}\n", "edited.yaml:2: duplicate key 'id'"),
        (f"rules:\n- &a {GOOD[2:]}- *a\n", "edited.yaml:2: "),
        ("rules: " + "[" * 900, "edited.yaml"),
    ],
)
def test_duplicate_keys_aliases_and_deep_nesting_are_refused(text: str, message: str) -> None:
    assert message in str(fault_in(text))


def test_rules_that_are_not_utf8_are_refused_with_byte_and_offset(tmp_path: Path) -> None:
    file = tmp_path / "remap_rules.yaml"
    file.write_bytes(b"rules:\n- new_token: \xff\n")
    with pytest.raises(InputError, match=r"remap_rules\.yaml:2: .*byte 0xff at offset 20"):
        read_rules(file)


def test_check_reports_lines_of_the_file(bpe: ByteLevelBPE) -> None:
    text = f"rules:\n{GOOD}- {{id: 500, sacrificed_token: x, new_token: qxz, constituents: [q, x, z]}}\n{GOOD}"
    with pytest.raises(InputError) as error:
        check_rules(rules_from_yaml(text), bpe, "edited.yaml")
    expected = f"edited.yaml:3: id 500 is {bpe.strings[500]!r}, not 'x'; edited.yaml:4: id 1 is reassigned twice, first"
    assert expected in str(error.value)


def rule_for(
    bpe: ByteLevelBPE, new_token: str, *constituents: str, token_id: int = 555, halves: tuple[str, ...] = ()
) -> RemapRule:
    return RemapRule(token_id, bpe.strings[token_id], new_token, constituents or tuple(new_token), halves=halves)


def faults_of(bpe: ByteLevelBPE, *rules: RemapRule) -> list[str]:
    with pytest.raises(InputError) as error:
        check_rules(RemapRules(rules), bpe, "edited.yaml")
    assert error.value.where == "edited.yaml"
    return error.value.message.split("; ")


def test_check_accepts_valid_rules(bpe: ByteLevelBPE) -> None:
    last, one = free_leaves(bpe)[:2]
    the = ("Ġthe", "q")
    check_rules(RemapRules((rule_for(bpe, "qxz", token_id=last), rule_for(bpe, "Ġtheq", *the, token_id=one))), bpe)
    merged = (
        rule_for(bpe, "qx", token_id=last, halves=("q", "x")),
        rule_for(bpe, "Ġtheq", *the, token_id=one, halves=the),
    )
    check_rules(RemapRules(merged), bpe)
    more = rule_for(bpe, "qxĠtheq", "q", "x", *the, token_id=free_leaves(bpe)[2], halves=("qx", "Ġtheq"))
    check_rules(RemapRules((*merged, more)), bpe)
    check_rules(RemapRules(()), bpe)


def free_leaves(bpe: ByteLevelBPE) -> list[int]:
    """Ids that may be reassigned alone, the last merges first."""
    used = {half for left, right, _ in bpe.merges for half in (left, right)}
    return [
        i for i in reversed(range(300, bpe.size - 1)) if i not in used and not bpe.strings[i].strip("Ġ").isnumeric()
    ]


def test_check_refuses_the_id_that_a_kept_token_is_made_of(small_base: Tokenizer) -> None:
    bpe = read_bpe(small_base)
    left, right, made = next(m for m in reversed(bpe.merges) if len(bpe.strings[m[0]]) > 1 and m[2] in free_leaves(bpe))
    rule = rule_for(bpe, "qyz", token_id=left)
    dependents = [token for a, b, token in bpe.merges if left in (a, b)]
    found = faults_of(bpe, rule)
    assert len(found) == 1
    assert found[0].startswith(f"id {left} ({bpe.strings[left]!r}) is needed by the kept token ")
    named = next(
        token
        for token in dependents
        if found[0].endswith(f"{bpe.strings[token]!r}: reassign id {token} as well, or choose another id")
    )
    assert named in dependents
    # with all tokens made of it, in any merge, the id is free
    chosen = {left}
    while more := {token for a, b, token in bpe.merges if a in chosen or b in chosen} - chosen:
        chosen |= more
    assert made in chosen and right not in chosen
    check_rules(RemapRules(tuple(rule_for(bpe, "qyz" + "z" * n, token_id=i) for n, i in enumerate(chosen))), bpe)


def test_check_names_wrong_halves_with_their_lines(bpe: ByteLevelBPE) -> None:
    first, second, third, fourth = free_leaves(bpe)[:4]
    lost = bpe.strings[third]
    rows = [
        (first, "qxz", ("qx", "z")),  # line 2: of a later rule
        (second, "qx", ("q", "x")),  # line 3: valid
        (third, f"q{lost}", ("q", lost)),  # line 4: its half goes
        (fourth, "qxy", ("q", "xz")),  # line 5: another string, with an unknown half
    ]
    lines = ["rules:"]
    for token_id, new, halves in rows:
        rule = {"id": token_id, "sacrificed_token": bpe.strings[token_id], "new_token": new, "halves": list(halves)}
        lines.append(f"- {json.dumps(rule | {'constituents': list(new)}, ensure_ascii=False)}")
    with pytest.raises(InputError) as error:
        check_rules(rules_from_yaml("\n".join(lines)), bpe, "edited.yaml")
    for message in (
        "edited.yaml:2: new token 'qxz': its half 'qx' does not exist yet, move its rule before this one",
        f"edited.yaml:4: new token 'q{lost}': its half {lost!r} loses its id {third}",
        "edited.yaml:5: new token 'qxy': halves make up 'qxz'",
        "edited.yaml:5: new token 'qxy': its half 'xz' does not exist yet, add a rule for it before this one",
    ):
        assert message in str(error.value)
    assert "edited.yaml:3" not in str(error.value)


def test_check_refuses_an_added_token_as_a_half(bpe: ByteLevelBPE) -> None:
    halves = ("<|endoftext|>", "q")
    rule = rule_for(bpe, "<|endoftext|>q", *halves, halves=halves)
    assert faults_of(bpe, rule) == [
        "new token '<|endoftext|>q': its half '<|endoftext|>' is an added token, which is never merged"
    ]


# (id or the token that has it, new token, its constituents) of the rules, and the fault of the last one
FAULTS: dict[str, tuple[list[tuple[int | str, str, str]], str]] = {
    "duplicate id": ([(555, "qxz", "q x z"), (555, "qxq", "q x q")], "id 555 is reassigned twice"),
    "negative id": ([(-1, "qxz", "q x z")], "id -1 is not in the vocabulary of 557"),
    "unknown id": ([(557, "qxz", "q x z")], "id 557 is not in the vocabulary of 557"),
    "byte": ([("a", "qxz", "q x z")], "('a') is protected: bytes, special tokens and digits are kept"),
    "special token": ([("<|endoftext|>", "qxz", "q x z")], "('<|endoftext|>') is protected"),
    "duplicate new token": ([(555, "qxz", "q x z"), (554, "qxz", "q x z")], "new token 'qxz' occurs twice"),
    "existing token": ([(555, "Ġthe", "Ġ t h e")], "new token 'Ġthe' already exists with id"),
    "alphabet": ([(555, "of the", "of Ġthe")], "new token 'of the' is not in the byte-level alphabet (a space is Ġ)"),
    "unknown constituent": ([(555, "qxz", "q xz")], "new token 'qxz': constituent 'xz' is not a base token"),
    "other constituents": ([(555, "qxz", "q x")], "new token 'qxz': constituents make up 'qx'"),
    "no constituents": ([(555, "qxz", "")], "new token 'qxz': constituents make up ''"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_each_fault(fault: str, bpe: ByteLevelBPE) -> None:
    specs, message = FAULTS[fault]
    ids = [bpe.ids[given] if isinstance(given, str) else given for given, _, _ in specs]
    rules = [
        RemapRule(i, bpe.strings[i] if 0 <= i < bpe.size else "x", new, tuple(parts.split()))
        for i, (_, new, parts) in zip(ids, specs, strict=True)
    ]
    assert message in faults_of(bpe, *rules)[0]


def test_check_names_a_wrong_sacrificed_token(bpe: ByteLevelBPE) -> None:
    rule = replace(rule_for(bpe, "qxz"), sacrificed_token="Ġzoo")
    assert faults_of(bpe, rule) == [f"id 555 is {bpe.strings[555]!r}, not 'Ġzoo'"]


def test_check_reports_all_faults_and_counts_many(bpe: ByteLevelBPE) -> None:
    rules = [rule_for(bpe, "qxz", "q"), replace(rule_for(bpe, "Ġthe"), id=9_999, constituents=("Ġthe",))]
    assert len(faults_of(bpe, *rules)) == 3
    many = faults_of(bpe, *(replace(rule_for(bpe, f"qx{'z' * n}"), id=1_000 + n) for n in range(1, 26)))
    assert many[0].startswith("id 1001 ") and many[19].startswith("id 1020 ")
    assert many[20:] == ["and 5 more"]
