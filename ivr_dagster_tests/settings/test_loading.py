"""Where settings come from, what is refused, and the file that remembers them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from ivr_dagster.errors import InputError
from ivr_dagster.settings.loading import FIELDS, Settings, load_settings, read_settings_file, save_settings
from ivr_dagster.settings.presets import PRESETS

CHOICES = {
    name: get_args(field.annotation) for name, field in FIELDS.items() if get_origin(field.annotation) is Literal
}


def load(folder: Path, text: str = "", environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
    (folder / "ivr.yaml").write_text(text)
    return load_settings(folder, options=options, environ=environ or {})


def fault_of(folder: Path, text: str = "", environ: Mapping[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load(folder, text, environ, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_option_goes_before_environment_before_file_before_preset_before_default(tmp_path: Path) -> None:
    layers: dict[str, Any] = {"text": "max_candidates: 3", "environ": {"IVR_MAX_CANDIDATES": "2"}, "max_candidates": 1}
    assert load(tmp_path, **layers).get("max_candidates") == 1
    del layers["max_candidates"]
    assert load(tmp_path, **layers).get("max_candidates") == 2
    del layers["environ"]
    assert load(tmp_path, **layers).get("max_candidates") == 3
    assert load(tmp_path, preset="sample").get("max_candidates") == PRESETS["sample"]["max_candidates"] == 1000
    assert load(tmp_path, "max_candidates: 3", preset="sample").get("max_candidates") == 3
    assert load(tmp_path).get("max_candidates") == 4000
    assert load_settings(tmp_path / "nothing there", environ={}) == Settings()


@pytest.mark.parametrize("source", ["text", "environ", "option"])
def test_a_preset_may_come_from_anywhere(tmp_path: Path, source: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "text": {"text": "preset: sample"},
        "environ": {"environ": {"IVR_PRESET": "sample"}},
        "option": {"preset": "sample"},
    }
    assert load(tmp_path, **given[source]).get("model_name") == "sample"


def test_the_file_named_is_read_in_place_of_the_artifacts_own(tmp_path: Path) -> None:
    (tmp_path / "ivr.yaml").write_text("seed: 1")
    (tmp_path / "other.yaml").write_text("seed: 2")
    assert load_settings(tmp_path, config=tmp_path / "other.yaml", environ={}).get("seed") == 2
    with pytest.raises(InputError, match="settings file not found") as error:
        load_settings(tmp_path, config=tmp_path / "missing.yaml", environ={})
    assert error.value.where == tmp_path / "missing.yaml"


def test_the_environment_is_the_processs_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVR_SEED", "7")
    assert load_settings(tmp_path).get("seed") == 7


def test_variables_that_are_no_settings_and_those_of_others_are_passed_over(tmp_path: Path) -> None:
    environ = {"IVR_ARTIFACTS_DIR": "/x", "IVR_CONFIG": "y", "IVR_LOG_LEVEL": "DEBUG", "SEED": "9", "MY_IVR_SEED": "8"}
    assert load(tmp_path, environ=environ) == Settings()


def test_environment_variables_have_the_types_of_the_settings(tmp_path: Path) -> None:
    environ = {"IVR_VANILLA": "false", "IVR_HELDOUT_FRACTION": "0.2", "IVR_SEED": "3", "IVR_TEXT_KEY": "meta.body"}
    found = load(tmp_path, environ=environ)
    values = [found.get(name) for name in ("vanilla", "heldout_fraction", "seed", "text_key")]
    assert values == [False, 0.2, 3, "meta.body"]


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_known_one(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, "# mine\nmax_candidate: 5\n")
    assert f"{tmp_path / 'ivr.yaml'}:2: unknown setting 'max_candidate'" in fault
    assert "Did you mean 'max_candidates'" in fault
    assert "IVR_MERGE_SCOP: unknown setting 'merge_scop'" in fault_of(tmp_path, environ={"IVR_MERGE_SCOP": "within"})
    assert "--sead: unknown setting 'sead'" in fault_of(tmp_path, sead=3)
    assert "Did you mean" not in fault_of(tmp_path, "qqqqqqq: 5\n")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("max_candidates", -1, "greater than or equal to 0"),
        ("max_candidates", "many", "valid integer"),
        ("exceptions", -1, "greater than or equal to 0"),
        ("exceptions", "sometimes", "valid integer"),
        ("least_saving", 0.0, "greater than 0"),
        ("least_saving", 1.0, "less than 1"),
        ("least_documents", 0, "greater than or equal to 1"),
        ("max_phrases", -1, "greater than or equal to 0"),
        ("max_token_len", -1, "greater than or equal to 0"),
        ("longer_documents_ceiling", 1.5, "less than or equal to 1"),
        ("sticky", "perhaps", "valid boolean"),
        ("min_token_len", 1, "greater than or equal to 2"),
        ("heldout_fraction", 0.0, "greater than 0"),
        ("heldout_fraction", 0.9, "less than 0.9"),
        ("agreement_floor", 1.5, "less than or equal to 1"),
        ("max_texts", -1, "greater than or equal to 0"),
        ("evaluation_bytes", 0, "greater than or equal to 1"),
        ("text_split_bytes", 100, "at least 256 bytes"),
        ("vanilla", "perhaps", "valid boolean"),
        ("text_key", 5, "valid string"),
        ("seed", 2**32, "less than or equal to 4294967295"),
        ("seed", True, "expected a number"),
        ("max_texts", 2**63, "the largest possible number is 9,223,372,036,854,775,807"),
        ("quiet_seconds", 1e10, "less than or equal to"),
        *((key, "nonsense", f"'{choices[-2]}' or '{choices[-1]}'") for key, choices in CHOICES.items()),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_key_and_place(tmp_path: Path, key: str, value: Any, why: str) -> None:
    fault = fault_of(tmp_path, f"# mine\n{key}: {value}\n")
    assert f"{tmp_path / 'ivr.yaml'}:2: {key} is {value!r}: " in fault
    assert why in fault
    assert f"--{key.replace('_', '-')}: {key} is {value!r}" in fault_of(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("key", "written", "number"),
    [
        ("max_candidates", "auto", 0),
        ("max_candidates", "0", 0),
        ("max_candidates", "2500", 2500),
        ("exceptions", "off", 0),
        ("exceptions", "on", 10_000),
        ("exceptions", "0", 0),
        ("exceptions", "500", 500),
    ],
)
def test_words_stand_for_numbers_wherever_they_are_written(tmp_path: Path, key: str, written: Any, number: int) -> None:
    assert load(tmp_path, f"{key}: {written}\n").get(key) == number
    assert load(tmp_path, f"{key}: '{written}'\n").get(key) == number
    assert load(tmp_path, environ={f"IVR_{key.upper()}": written}).get(key) == number
    assert load(tmp_path, **{key: written}).get(key) == number


def test_yes_and_no_are_words_too(tmp_path: Path) -> None:
    for value, number in [(False, 0), (True, 10_000), (7, 7)]:
        assert load(tmp_path, exceptions=value).get("exceptions") == number
    for written, number in [("no", 0), ("yes", 10_000), ("on", 10_000), ("off", 0), ("false", 0)]:
        assert load(tmp_path, f"exceptions: {written}\n").get("exceptions") == number


def test_words_come_back_from_the_file_that_remembers_them(tmp_path: Path) -> None:
    save_settings(tmp_path / "ivr.yaml", {"max_candidates": "auto", "exceptions": "off"})
    found = load_settings(tmp_path, environ={})
    assert (found.get("max_candidates"), found.get("exceptions")) == (0, 0)


@pytest.mark.parametrize(
    ("key", "word"), [("max_candidates", "off"), ("max_candidates", "all"), ("exceptions", "auto")]
)
def test_a_word_that_stands_for_no_number_is_refused_with_its_place(tmp_path: Path, key: str, word: Any) -> None:
    assert f"{tmp_path / 'ivr.yaml'}:2: {key} is {word!r}: " in fault_of(tmp_path, f"seed: 1\n{key}: {word}\n")
    assert f"IVR_{key.upper()}: {key} is {word!r}: " in fault_of(tmp_path, environ={f"IVR_{key.upper()}": word})
    assert f"--{key.replace('_', '-')}: {key} is {word!r}: " in fault_of(tmp_path, **{key: word})


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_offered_is_taken(tmp_path: Path, key: str) -> None:
    choices: tuple[Any, ...] = CHOICES[key]
    for choice in choices:
        assert load(tmp_path, **{key: choice}).get(key) == choice


def test_all_faults_are_reported_together_each_with_its_place(tmp_path: Path) -> None:
    fault = fault_of(tmp_path, "seed: -1\nnonsense: 1\n", {"IVR_DTYPE": "int8"}, max_candidates="x")
    for part in (
        f"{tmp_path / 'ivr.yaml'}:1: seed is -1",
        f"{tmp_path / 'ivr.yaml'}:2: unknown setting 'nonsense'",
        "IVR_DTYPE: dtype is 'int8'",
        "--max-candidates: max_candidates is 'x'",
    ):
        assert part in fault


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("tune_seconds: .inf", "tune_seconds is inf: input should be a finite number"),
        ("heldout_fraction: .nan", "heldout_fraction is nan: input should be a finite number"),
        (r'raw_corpora_dir: "a\0b"', r"raw_corpora_dir is 'a\x00b': expected one line of UTF-8 text"),
        (r'text_key: "\ud800"', r"text_key is '\ud800': expected one line of UTF-8 text"),
        ("seed: 0x" + "f" * 9000, "seed is an integer of 36,000 bits: "),
        ("seed: " + "x" * 9000, "xxx...xxx"),
        ("max_token_len: 3\nmin_token_len: 4", "max_token_len is 3, less than min_token_len, 4"),
    ],
)
def test_what_no_setting_can_be_is_refused_in_a_short_line(tmp_path: Path, written: str, said: str) -> None:
    fault = fault_of(tmp_path, written)
    assert f"{tmp_path / 'ivr.yaml'}:1: " in fault
    assert said in fault
    assert len(fault) < 600


def test_all_keys_at_fault_are_told_together_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    fault = fault_of(tmp_path, "seed: 1\nseed: 2\nvanilla: true\nvanilla: false\n")
    assert f"{file}:2: duplicate key 'seed'" in fault
    assert f"{file}:4: duplicate key 'vanilla'" in fault


def test_a_fault_that_a_better_source_overrides_is_none(tmp_path: Path) -> None:
    assert load(tmp_path, "seed: nonsense", seed=5).get("seed") == 5


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (b"seed: 1\nx: [\n", ":3", "the settings file cannot be read as YAML"),
        (b"seed: 1\n\tx: 1\n", ":2", "the settings file cannot be read as YAML"),
        ("seed: 1 # \u00e9\n".encode("latin-1"), ":1", "(byte 0xe9 at offset 10 is not UTF-8)"),
        (b"seed: 1\nx: \x07\n", ":2", "the character U+0007 is not allowed"),
        (b"x: [1,\n" * 400, "", "it is nested too deeply"),
        (b"a: 1\n" * 60_000, "", "it has more than 262,144 bytes"),
        (b"seed: 1\nseed: 2\n", ":2", "duplicate key 'seed', first in line 1"),
        (b"seed: 1\nx: {a: 1, a: 2}\n", ":2", "duplicate key 'a'"),
        (b"seed: &n 1\nmax_texts: *n\n", ":1", "is used again by an alias"),
        (b"seed: 2024-13-01\n", ":1", "'seed' has an invalid value: '2024-13-01'"),
        (b"seed: !!python/object/apply:os.abort []\n", ":1", "could not determine a constructor for the tag"),
        (b"seed: " + b"9" * 5000, ":1", "'seed' has an invalid value: '999"),
        (b"seed: 1\n? [a]\n: 2\n", ":2", "expected the name of a setting, found a sequence"),
        (b"- seed\n", "", "expected a mapping of settings"),
        (b"seed\n", "", "expected a mapping of settings"),
        (b"seed: 1\n5: 2\n", ":2", "expected the name of a setting, found '5'"),
        (b"<<: {seed: 3}\n", ":1", "expected the name of a setting, found '<<'"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_with_file_and_line(
    tmp_path: Path, content: bytes, place: str, message: str
) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_settings(tmp_path, environ={})
    assert str(error.value.where) == f"{file}{place}"
    assert message in error.value.message
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_settles_nothing(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Settings()


def test_settings_are_read_with_the_lines_of_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_text("# mine\nseed: 3\n\ntext_key: '한국어'\n")
    assert read_settings_file(file) == ({"seed": 3, "text_key": "한국어"}, {"seed": 2, "text_key": 4})


MINE = """\
# my settings
seed: 1   # chosen by dice

# which model
model_name: gpt2
"""


def test_what_is_given_is_remembered_and_comments_and_order_stay(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_text(MINE)
    save_settings(file, {"seed": 2, "max_candidates": 500})
    assert file.read_text() == MINE.replace("seed: 1", "seed: 2") + "max_candidates: 500\n"


def test_what_is_remembered_already_leaves_the_file_untouched(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_text(MINE)
    before = file.stat()
    save_settings(file, {"seed": 1})
    save_settings(file, {})
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_file_says_what_it_is_and_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "artifacts" / "ivr.yaml"
    given = {"model_name": "gpt2", "heldout_fraction": 0.1, "vanilla": False, "text_key": "본문: x"}
    save_settings(file, given)
    assert file.read_text().startswith("# Settings of ivr_dagster.")
    assert yaml.safe_load(file.read_text()) == given
    found = load_settings(file.parent, environ={})
    assert {key: found.get(key) for key in given} == given
    assert [path.name for path in file.parent.iterdir()] == ["ivr.yaml"]


def test_nothing_given_makes_no_file(tmp_path: Path) -> None:
    save_settings(tmp_path / "ivr.yaml", {})
    assert list(tmp_path.iterdir()) == []


def test_relative_folders_are_remembered_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-folder").mkdir()
    save_settings(
        tmp_path / "ivr.yaml",
        {"raw_corpora_dir": "texts", "remap_rules_path": "rules.yaml", "model_name": "gpt2-folder", "output_dir": ""},
    )
    assert yaml.safe_load((tmp_path / "ivr.yaml").read_text()) == {
        "raw_corpora_dir": str(tmp_path / "texts"),
        "remap_rules_path": str(tmp_path / "rules.yaml"),
        "model_name": str(tmp_path / "gpt2-folder"),
        "output_dir": "",
    }


def test_reports_show_settings_without_the_folders_of_this_machine() -> None:
    shown = Settings.of(raw_corpora_dir="/home/me/secret", output_dir="/home/me/out", seed=3).public()
    assert shown["seed"] == 3
    assert shown["merge_scope"] == "within"
    assert not any("/home/me" in str(value) for value in shown.values())


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().compute.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "value"), [("on", True), ("off", False), ("yes", True), ("no", False), ("true", True), ("False", False)]
)
def test_booleans_may_be_written_as_in_yaml_1_1(tmp_path: Path, written: str, value: bool) -> None:
    assert load(tmp_path, f"sticky: {written}\n").get("sticky") is value


@pytest.mark.parametrize("written", ["5e-5", "5.0e-5", "0.00005"])
def test_numbers_may_have_an_exponent(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, f"heldout_fraction: {written}\n").get("heldout_fraction") == 5e-5
