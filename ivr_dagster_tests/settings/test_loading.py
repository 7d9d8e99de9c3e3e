"""Sources of settings and their precedence, invalid values, and the settings file."""

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


def error_of(folder: Path, text: str = "", environ: Mapping[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load(folder, text, environ, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_precedence_is_option_environment_file_preset_default(tmp_path: Path) -> None:
    layers: dict[str, Any] = {"text": "max_candidates: 3", "environ": {"IVR_MAX_CANDIDATES": "2"}, "max_candidates": 1}
    assert load(tmp_path, **layers).get("max_candidates") == 1
    del layers["max_candidates"]
    assert load(tmp_path, **layers).get("max_candidates") == 2
    del layers["environ"]
    assert load(tmp_path, **layers).get("max_candidates") == 3
    assert load(tmp_path, preset="sample").get("max_candidates") == PRESETS["sample"]["max_candidates"] == 1000
    assert load(tmp_path, "max_candidates: 3", preset="sample").get("max_candidates") == 3
    assert load(tmp_path).get("max_candidates") == 4000
    assert load_settings(tmp_path / "missing", environ={}) == Settings()


def test_preset_may_come_from_any_source(tmp_path: Path) -> None:
    for given in ({"text": "preset: sample"}, {"environ": {"IVR_PRESET": "sample"}}, {"preset": "sample"}):
        assert load(tmp_path, **given).get("model_name") == "sample"  # type: ignore[arg-type]


def test_config_option_names_another_settings_file(tmp_path: Path) -> None:
    (tmp_path / "ivr.yaml").write_text("seed: 1")
    (tmp_path / "other.yaml").write_text("seed: 2")
    assert load_settings(tmp_path, config=tmp_path / "other.yaml", environ={}).get("seed") == 2
    with pytest.raises(InputError, match="settings file not found") as error:
        load_settings(tmp_path, config=tmp_path / "missing.yaml", environ={})
    assert error.value.where == tmp_path / "missing.yaml"


def test_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVR_SEED", "7")
    assert load_settings(tmp_path).get("seed") == 7


def test_other_environment_variables_are_ignored(tmp_path: Path) -> None:
    environ = {"IVR_ARTIFACTS_DIR": "/x", "IVR_CONFIG": "y", "IVR_LOG_LEVEL": "DEBUG", "SEED": "9", "MY_IVR_SEED": "8"}
    assert load(tmp_path, environ=environ) == Settings()


def test_environment_variables_are_converted(tmp_path: Path) -> None:
    environ = {"IVR_VANILLA": "false", "IVR_HELDOUT_FRACTION": "0.2", "IVR_SEED": "3", "IVR_TEXT_KEY": "meta.body"}
    found = load(tmp_path, environ=environ)
    values = [found.get(name) for name in ("vanilla", "heldout_fraction", "seed", "text_key")]
    assert values == [False, 0.2, 3, "meta.body"]


def test_unknown_key_is_reported_with_place_and_suggestion(tmp_path: Path) -> None:
    message = error_of(tmp_path, "# mine\nmax_candidate: 5\n")
    assert f"{tmp_path / 'ivr.yaml'}:2: unknown setting 'max_candidate'" in message
    assert "Did you mean 'max_candidates'" in message
    assert "IVR_MERGE_SCOP: unknown setting 'merge_scop'" in error_of(tmp_path, environ={"IVR_MERGE_SCOP": "within"})
    assert "--sead: unknown setting 'sead'" in error_of(tmp_path, sead=3)
    assert "Did you mean" not in error_of(tmp_path, "qqqqqqq: 5\n")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("max_candidates", -1, "greater than or equal to 0"),
        ("max_candidates", "many", "valid integer"),
        ("exceptions", "auto", "valid integer"),
        ("least_saving", 0.0, "greater than 0"),
        ("heldout_fraction", 0.9, "less than 0.9"),
        ("text_split_bytes", 100, "at least 256 bytes"),
        ("vanilla", "perhaps", "valid boolean"),
        ("text_key", 5, "valid string"),
        ("seed", 2**32, "less than or equal to 4294967295"),
        ("seed", True, "expected a number"),
        ("max_texts", 2**63, "the largest possible number is 9,223,372,036,854,775,807"),
        *((key, "nonsense", f"'{choices[-2]}' or '{choices[-1]}'") for key, choices in CHOICES.items()),
    ],
)
def test_invalid_value_is_reported_with_key_and_place(tmp_path: Path, key: str, value: Any, why: str) -> None:
    message = error_of(tmp_path, f"# mine\n{key}: {value}\n")
    assert f"{tmp_path / 'ivr.yaml'}:2: {key} is {value!r}: " in message
    assert why in message
    assert f"--{key.replace('_', '-')}: {key} is {value!r}" in error_of(tmp_path, **{key: value})
    if isinstance(value, str):
        variable = f"IVR_{key.upper()}"
        assert f"{variable}: {key} is {value!r}" in error_of(tmp_path, environ={variable: value})


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
def test_words_mean_numbers_in_every_source(tmp_path: Path, key: str, written: Any, number: int) -> None:
    assert load(tmp_path, f"{key}: {written}\n").get(key) == number
    assert load(tmp_path, f"{key}: '{written}'\n").get(key) == number
    assert load(tmp_path, environ={f"IVR_{key.upper()}": written}).get(key) == number
    assert load(tmp_path, **{key: written}).get(key) == number
    (tmp_path / "ivr.yaml").unlink()
    save_settings(tmp_path / "ivr.yaml", {key: written})
    assert load_settings(tmp_path, environ={}).get(key) == number


def test_yaml_booleans_mean_on_and_off(tmp_path: Path) -> None:
    for value, number in [(False, 0), (True, 10_000), (7, 7)]:
        assert load(tmp_path, exceptions=value).get("exceptions") == number
    for written, number in [("no", 0), ("yes", 10_000), ("on", 10_000), ("off", 0), ("false", 0)]:
        assert load(tmp_path, f"exceptions: {written}\n").get("exceptions") == number


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    message = error_of(tmp_path, "seed: -1\nnonsense: 1\n", {"IVR_DTYPE": "int8"}, max_candidates="x")
    for part in (
        f"{tmp_path / 'ivr.yaml'}:1: seed is -1",
        f"{tmp_path / 'ivr.yaml'}:2: unknown setting 'nonsense'",
        "IVR_DTYPE: dtype is 'int8'",
        "--max-candidates: max_candidates is 'x'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("written", "reason"),
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
def test_unrepresentable_value_is_reported_in_a_short_line(tmp_path: Path, written: str, reason: str) -> None:
    message = error_of(tmp_path, written)
    assert f"{tmp_path / 'ivr.yaml'}:1: " in message
    assert reason in message
    assert len(message) < 600


def test_overridden_invalid_value_is_ignored(tmp_path: Path) -> None:
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
        (b"a: &a {x: 1}\nb: {<<: [*a, *a]}\n", ":1", "is used again by an alias"),
        (b"seed: 1\n---\nseed: 2\n", ":2", "another document"),
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
def test_invalid_file_is_reported_with_file_and_line(tmp_path: Path, content: bytes, place: str, message: str) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_settings(tmp_path, environ={})
    assert str(error.value.where) == f"{file}{place}"
    assert message in error.value.message
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_empty_file_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Settings()


def test_settings_file_is_read_with_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_text("# mine\nseed: 3\n\ntext_key: '한국어'\n")
    assert read_settings_file(file) == ({"seed": 3, "text_key": "한국어"}, {"seed": 2, "text_key": 4})


MINE = """\
# my settings
seed: 1   # chosen by dice

# which model
model_name: gpt2
"""


def test_saving_keeps_comments_and_order(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_text(MINE)
    save_settings(file, {"seed": 2, "max_candidates": 500})
    assert file.read_text() == MINE.replace("seed: 1", "seed: 2") + "max_candidates: 500\n"


def test_saving_known_values_leaves_the_file_untouched(tmp_path: Path) -> None:
    file = tmp_path / "ivr.yaml"
    file.write_text(MINE)
    before = file.stat()
    save_settings(file, {"seed": 1})
    save_settings(file, {})
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_new_file_has_a_header_and_loads_again(tmp_path: Path) -> None:
    file = tmp_path / "artifacts" / "ivr.yaml"
    given = {"model_name": "gpt2", "heldout_fraction": 0.1, "vanilla": False, "text_key": "본문: x"}
    save_settings(file, given)
    assert file.read_text().startswith("# Settings of ivr_dagster.")
    assert yaml.safe_load(file.read_text()) == given
    found = load_settings(file.parent, environ={})
    assert {key: found.get(key) for key in given} == given
    assert [path.name for path in file.parent.iterdir()] == ["ivr.yaml"]


def test_saving_nothing_writes_no_file(tmp_path: Path) -> None:
    save_settings(tmp_path / "ivr.yaml", {})
    assert list(tmp_path.iterdir()) == []


def test_relative_folders_are_saved_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_public_settings_hide_folders() -> None:
    public = Settings.of(raw_corpora_dir="/home/me/secret", output_dir="/home/me/out", seed=3).public()
    assert public["seed"] == 3
    assert public["merge_scope"] == "within"
    assert not any("/home/me" in str(value) for value in public.values())


@pytest.mark.parametrize(
    ("written", "value"), [("on", True), ("off", False), ("yes", True), ("no", False), ("true", True), ("False", False)]
)
def test_booleans_may_be_written_as_in_yaml_1_1(tmp_path: Path, written: str, value: bool) -> None:
    assert load(tmp_path, f"sticky: {written}\n").get("sticky") is value


@pytest.mark.parametrize("written", ["5e-5", "5.0e-5", "0.00005"])
def test_numbers_may_have_an_exponent(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, f"heldout_fraction: {written}\n").get("heldout_fraction") == 5e-5
