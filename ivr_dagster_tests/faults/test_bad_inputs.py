"""Bad input, settings and rules, each given to the real command line: one line says what is wrong and how to mend it.

A row of the tables below is what is wrong, how it comes about, and what the line has to say. Of the artifacts nothing
may have changed: rows work on a folder that a good `init`, or a whole pipeline, left.
"""

import gzip
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ivr_dagster.cli.app import main
from ivr_dagster.core.corpus import decoding, json_records, long_lines
from ivr_dagster_tests.small_pipeline import SMALL, TINY

GOOD = "".join(json.dumps({"text": f"Document {number} of the corpus."}) + "\n" for number in range(40))


@dataclass(frozen=True)
class Row:
    """What is wrong, and what is told.

    Attributes:
        wrong: in words.
        told: what the line on standard error holds; {raw}, {home} stand for the corpus and the artifacts folder.
        content: of `file`, if one is made.
        make: makes what no content is: it gets the file's path.
        file: in the corpus, or in the artifacts folder.
        command: of `ivr`, without the artifacts folder.
        environment: variables of the environment.
        not_as_root: root may read everything.
    """

    wrong: str
    told: tuple[str, ...]
    content: str | bytes | None = None
    file: str = "bad.txt"
    make: Callable[[Path], object] | None = None
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    not_as_root: bool = False

    def __str__(self) -> str:
        return self.wrong


# The corpus


def _unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def _links_out(path: Path) -> None:
    (path.parent.parent / "secret.txt").write_text("not of the corpus")
    path.symlink_to(path.parent.parent / "secret.txt")


def _folder_out(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent.parent / "elsewhere")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 20)


GZIP = gzip.compress(GOOD.encode() * 50, mtime=0)
INPUT = [
    Row("invalid UTF-8", ("bad.txt: the bytes ff at offset 5 are", "--encoding-errors replace"), b"fine \xff"),
    Row("a character cut off at the end", ("the bytes ed 95 at offset 3", "--encoding"), "한한".encode()[:-1]),
    Row("invalid UTF-8 in .jsonl", ("bad.jsonl: the bytes fe at offset 9",), b'{"text":"\xfe"}\n', "bad.jsonl"),
    Row("Latin-1 read as UTF-8", ("the bytes e9 at offset 3", "--encoding"), "café\n".encode("latin-1")),
    Row("cp949 read as UTF-8", ("the bytes c7 at offset 0", "cp949"), "한국어".encode("cp949")),
    Row("UTF-16 with its mark", ("byte order mark of utf-16", "--encoding"), "text".encode("utf-16")),
    Row("UTF-32 with its mark", ("byte order mark of utf-32", "--encoding"), "text".encode("utf-32")),
    Row(
        "UTF-16 without its mark",
        ("is not utf-16", "--encoding"),
        "a text".encode("utf-16-be"),
        command=("--encoding", "utf-16"),
    ),
    Row("an unknown encoding", ("'klingon'", "--encoding"), command=("--encoding", "klingon")),
    Row("no text encoding", ("'hex'", "--encoding"), command=("--encoding", "hex")),
    Row("NUL bytes in JSON", ("bad.jsonl:1: invalid JSON", ".json file"), '{"te\0xt": "x"}', "bad.jsonl"),
    Row("a line of NULs", ("bad.jsonl:1: the line is too long", "line breaks"), None, "bad.jsonl", _sparse),
    Row(
        "CR alone between records",
        ("bad.jsonl:1: invalid JSON (Extra data",),
        '{"text":"a"}\r{"text":"b"}',
        "bad.jsonl",
    ),
    Row("an empty .json file", ("bad.json:1: the file is empty", ".jsonl file"), "", "bad.json"),
    Row("nested a million deep", ("bad.jsonl:1: invalid JSON (",), "[" * 1_000_000, "bad.jsonl"),
    Row("nested ten thousand deep in .json", ("bad.json:1: invalid JSON (",), '{"a":' * 10_000, "bad.json"),
    Row("truncated JSON", ("bad.jsonl:2: invalid JSON (Unterminated",), '{"text":"a"}\n{"text": "cut', "bad.jsonl"),
    Row("a truncated array", ("bad.json:2: invalid JSON (",), '[{"text":"a"},\n', "bad.json"),
    Row(
        "JSON lines in .json",
        ("bad.json:2: invalid JSON (Extra data", ".jsonl file"),
        '{"text":"a"}\n{"text":"b"}',
        "bad.json",
    ),
    Row("an object over lines in .jsonl", ("bad.jsonl:1: invalid JSON",), '{\n"text": "a"}', "bad.jsonl"),
    Row(
        "a missing key",
        ("bad.jsonl:2: the key 'text' is missing", "'body'", "--text-key"),
        '"a"\n{"body":"b"}',
        "bad.jsonl",
    ),
    Row(
        "a missing key in .json",
        ("bad.json:3: the key 'text' is missing", "--text-key"),
        '["a",\n\n{"body":"b"}]',
        "bad.json",
    ),
    Row("missing keys in lines", ("bad.jsonl:1: ", "bad.jsonl:3: "), '{"b":"x"}\n"a"\n{"c":"x"}', "bad.jsonl"),
    Row("a text that is a number", ("bad.jsonl:1: the key 'text' holds a number",), '{"text": 5}', "bad.jsonl"),
    Row("a number for a record", ("bad.jsonl:1: expected an object or a string, found a number",), "17", "bad.jsonl"),
    Row("an integer of 5,000 digits", ("bad.jsonl:1: invalid JSON (Exceeds the limit",), "9" * 5000, "bad.jsonl"),
    Row("another key than there is", ("'t.x' is missing", "--text-key"), command=("--text-key", "t.x")),
    Row("truncated gzip", ("bad.jsonl.gz: the gzip file is damaged", "again"), GZIP[:-9], "bad.jsonl.gz"),
    Row("gzip that is none", ("bad.txt.gz: the gzip file is damaged",), b"plain", "bad.txt.gz"),
    Row("gzip with a flipped bit", ("the gzip file is damaged",), GZIP[:20] + b"\xff" + GZIP[21:], "bad.jsonl.gz"),
    Row("a gzip bomb", ("unpacks to more than", "200 times", "gunzip"), gzip.compress(b"\0" * (4 << 20)), "bad.txt.gz"),
    Row("a .json file too large", ("more than 100,000 characters", ".jsonl"), json.dumps(["x" * 100_000]), "bad.json"),
    Row("a pipe", ("bad.txt: it is a named pipe", "Remove, rename"), make=os.mkfifo),
    Row(
        "a file that may not be read",
        ("bad.txt: cannot be read (Permission denied)",),
        make=lambda path: (path.touch(), path.chmod(0)),
        not_as_root=True,
    ),
    Row("a socket", ("bad.jsonl: it is a socket", "Remove, rename"), None, "bad.jsonl", _unix_socket),
    Row(
        "a link to a device",
        ("the link leaves the corpus folder and points to /dev/zero",),
        make=lambda path: path.symlink_to("/dev/zero"),
    ),
    Row(
        "a broken link",
        ("bad.txt: the link is broken", "Fix or remove"),
        make=lambda path: path.symlink_to("gone.txt"),
    ),
    Row("a link to itself", ("bad.txt: the link is broken",), make=lambda path: path.symlink_to(path)),
    Row("a link out of the folder", ("secret.txt", "leaves the corpus folder", "Copy"), make=_links_out),
    Row("a folder link out of the folder", ("elsewhere", "leaves the corpus folder"), None, "folder", _folder_out),
    Row(
        "no file of a corpus",
        ("the folder contains no corpus file", ".txt, .jsonl", "--raw-corpora-dir"),
        command=("--raw-corpora-dir", "{empty}"),
    ),
    Row(
        "no such folder",
        ("nowhere: cannot be read (No such file", "--raw-corpora-dir"),
        command=("--raw-corpora-dir", "{raw}/nowhere"),
    ),
    Row(
        "a file for a folder", ("cannot be read (Not a directory)",), command=("--raw-corpora-dir", "{raw}/good.jsonl")
    ),
    Row(
        "empty documents only",
        ("no document is left for training: of 1 read, 1 were empty", "Add"),
        "",
        "one.txt",
        command=("--raw-corpora-dir", "{raw}/only"),
    ),
    Row(
        "duplicates only",
        ("8 duplicates and 1 held out", "Add documents"),
        '"a"\n' * 9,
        "one.jsonl",
        command=("--raw-corpora-dir", "{raw}/only"),
    ),
    Row(
        "all skipped",
        ("no document is left", "1 files and 0 records were skipped"),
        b"\xff",
        "one.txt",
        command=("--raw-corpora-dir", "{raw}/only", "--on-bad-input", "skip"),
    ),
]

# The settings


def settings(wrong: str, told: tuple[str, ...], content: str | bytes) -> Row:
    return Row(wrong, told, content, "{home}/ivr.yaml", command=("status",))


LAUGHS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
SETTINGS = [
    settings(
        "an unknown key", ("ivr.yaml:1: unknown setting 'max_candidate'", "'max_candidates'"), "max_candidate: 5\n"
    ),
    settings("a wrong type", ("ivr.yaml:2: seed is 'dice': input should be a valid integer",), "# mine\nseed: dice\n"),
    settings(
        "out of range", ("ivr.yaml:1: heldout_fraction is 2: input should be less than 0.9",), "heldout_fraction: 2\n"
    ),
    settings("several faults", ("ivr.yaml:1: seed is -1", "ivr.yaml:2: unknown setting 'x'"), "seed: -1\nx: 1\n"),
    settings("true for a number", ("seed is True: a number is wanted",), "seed: true\n"),
    settings("no such choice", ("merge_scope is 'sideways'", "within, across"), "merge_scope: sideways\n"),
    settings("infinity", ("tune_seconds is inf: input should be a finite number",), "tune_seconds: .inf\n"),
    settings("no number", ("heldout_fraction is nan",), "heldout_fraction: .nan\n"),
    settings("a huge integer", ("max_texts is an integer of 36,000 bits",), f"max_texts: 0x{'f' * 9000}\n"),
    settings("5,000 digits", ("ivr.yaml:1: 'seed' has an invalid value",), f"seed: {'9' * 5000}\n"),
    settings("more than 64 bits", ("max_texts is 9223372036854775808",), "max_texts: 9223372036854775808\n"),
    settings("a 13th month", ("ivr.yaml:1: 'seed' has an invalid value: '2024-13-01'",), "seed: 2024-13-01\n"),
    settings("a NUL in a path", (r"raw_corpora_dir is 'a\x00b'",), 'raw_corpora_dir: "a\\0b"\n'),
    settings("a lone surrogate", (r"text_key is '\ud800'",), 'text_key: "\\ud800"\n'),
    settings("a key twice", ("ivr.yaml:2: duplicate key 'seed', first in line 1",), "seed: 1\nseed: 2\n"),
    settings("a tab", ("ivr.yaml:2: the settings file cannot be read as YAML", "key: value"), "seed: 1\n\tx: 1\n"),
    settings("a bracket left open", ("ivr.yaml:", "cannot be read as YAML"), "seed: [1\n"),
    settings(
        "a Python object",
        ("ivr.yaml:1: ", "could not determine a constructor"),
        "seed: !!python/object/apply:os.abort []\n",
    ),
    settings("a billion laughs", ("ivr.yaml:1: ", "used again by an alias"), f"l0: &l0 lol\n{LAUGHS}"),
    settings("merged laughs", ("used again by an alias",), "a: &a {x: 1}\nb: {<<: [*a, *a]}\n"),
    settings("a list", ("ivr.yaml: expected a mapping of settings, found a list",), "- seed\n"),
    settings("a number for a key", ("ivr.yaml:1: expected the name of a setting, found '5'",), "5: 1\n"),
    settings("a list for a key", ("ivr.yaml:1: expected the name of a setting",), "? [a]\n: 1\n"),
    settings("two documents", ("ivr.yaml:2: ", "another document"), "seed: 1\n---\nseed: 2\n"),
    settings("nested too deeply", ("ivr.yaml: ", "nested too deeply"), f"seed: {'[' * 5000}\n"),
    settings("a megabyte", ("ivr.yaml: ", "more than 262,144 bytes"), "#" * (1 << 20)),
    settings("Latin-1", ("ivr.yaml:2: ", "byte 0xe9 at offset", "UTF-8"), "seed: 1\n# caf\u00e9\n".encode("latin-1")),
    settings("a control character", ("ivr.yaml:1: ", "U+0007"), "seed: \x07\n"),
    settings(
        "least above greatest",
        ("ivr.yaml:2: ", "max_token_len is 3 and min_token_len 4"),
        "min_token_len: 4\nmax_token_len: 3\n",
    ),
    settings("a cut too small", ("ivr.yaml:1: text_split_bytes is 7", "at least 256"), "text_split_bytes: 7\n"),
    Row("a wrong variable", ("IVR_SEED: seed is 'dice'",), command=("status",), environment={"IVR_SEED": "dice"}),
    Row(
        "an unknown variable",
        ("IVR_SEDE: unknown setting 'sede'", "'seed'"),
        command=("status",),
        environment={"IVR_SEDE": "1"},
    ),
    Row(
        "a variable that is no UTF-8",
        ("IVR_TEXT_KEY: text_key is '\\udcff'",),
        command=("status",),
        environment={"IVR_TEXT_KEY": "\udcff"},
    ),
    Row(
        "no such settings file",
        ("gone.yaml: no such settings file", "--config"),
        command=("--config", "{home}/gone.yaml", "status"),
    ),
    Row("a wrong option", ("--max-candidates", "'many'"), command=("select", "--max-candidates", "many")),
    Row("an unknown option", ("--max-candidate",), command=("select", "--max-candidate", "5")),
    Row(
        "more new tokens than ids",
        ("1,000,000 new tokens were asked for",),
        command=("select", "--max-candidates", "1000000"),
    ),
]

# Files that training reads, on a finished pipeline


def training(wrong: str, told: tuple[str, ...], content: str | bytes, file: str = "sft_config.yaml") -> Row:
    return Row(wrong, told, content, f"{{home}}/{file}", command=("train",))


TRAINING = [
    training("no setting of training", ("sft_config.yaml:1: unknown setting 'sed' (did you mean 'seed'",), "sed: 1\n"),
    training(
        "several of them",
        ("3 settings are at fault: line 1", "line 2", "line 3"),
        "sed: 1\nseed: -1\nlearning_rate: .inf\n",
    ),
    training("a seed of 33 bits", ("sft_config.yaml:1: seed is 4294967296",), "seed: 4294967296\n"),
    training("a setting twice", ("sft_config.yaml:2: duplicate key 'seed'",), "seed: 1\nseed: 1\n"),
    training("an alias", ("sft_config.yaml:1: ", "used again by an alias"), "seed: &a 1\ndata_seed: *a\n"),
    training(
        "no launch setting",
        ("accelerate_config.yaml:1: unknown key 'num_proc'",),
        "num_proc: 2\n",
        "accelerate_config.yaml",
    ),
    training(
        "no process",
        ("accelerate_config.yaml:2: num_processes is 0",),
        "debug: false\nnum_processes: 0\n",
        "accelerate_config.yaml",
    ),
]

# Rules edited by hand, on a finished pipeline: {id} is one that can be reassigned, {string} is its token


def rules(wrong: str, told: tuple[str, ...], text: str) -> Row:
    return Row(wrong, told, text, "{home}/tokenizers/remap_rules.yaml", command=("remap",))


def rule(number: str = "{id}", sacrificed: str = "{string}", new: str = "qxz", parts: str = "[q, x, z]") -> str:
    return f"- {{{{id: {number}, sacrificed_token: {sacrificed}, new_token: {new}, constituents: {parts}}}}}\n"


RULES = [
    rules(
        "an id twice",
        ("rules.yaml:3: id {id} is reassigned twice, first in line 2",),
        f"rules:\n{rule()}{rule(new='qxq', parts='[q, x, q]')}",
    ),
    rules("a protected id", ("rules.yaml:2: id 0 ", "is protected"), f"rules:\n{rule('0', '<|endoftext|>')}"),
    rules("an id that is none", ("rules.yaml:2: id 99999 is not in the vocabulary",), f"rules:\n{rule('99999')}"),
    rules(
        "another token than the id's", ("rules.yaml:2: id {id} is ", "not 'zzz'"), f"rules:\n{rule(sacrificed='zzz')}"
    ),
    rules(
        "a string that exists", ("rules.yaml:2: new token 'a' already exists",), f"rules:\n{rule(new='a', parts='[a]')}"
    ),
    rules(
        "a constituent that is none",
        ("rules.yaml:2: ", "constituent 'qqqq' is no token"),
        f"rules:\n{rule(parts='[qqqq]')}",
    ),
    rules(
        "constituents of something else",
        ("rules.yaml:2: ", "constituents make up 'qx'"),
        f"rules:\n{rule(parts='[q, x]')}",
    ),
    rules("no constituents", ("rules.yaml:2: ", "`constituents` must be a list"), f"rules:\n{rule(parts='')}"),
    rules(
        "a space in a string",
        ("rules.yaml:2: ", "byte-level alphabet"),
        f"rules:\n{rule(new=chr(39) + 'q x' + chr(39))}",
    ),
    rules("a rule that is none", ("rules.yaml:3: expected a rule as a mapping, found 17",), f"rules:\n{rule()}- 17\n"),
    rules(
        "all of them together",
        ("rules.yaml:2: id 0 ", "rules.yaml:3: id 99999 ", "rules.yaml:4: new token 'a'"),
        f"rules:\n{rule('0', 'x')}{rule('99999')}{rule(new='a', parts='[a]')}",
    ),
    rules("a key twice in a rule", ("rules.yaml:2: duplicate key 'id'",), "rules:\n- {{id: 1, id: 2}}\n"),
    rules("rules by alias", ("used again by an alias",), "rules:\n- &a {{id: 1}}\n- *a\n"),
    rules("no rules", ("a list under the key `rules` was expected", "delete the file"), "rule: 1\n"),
    rules("no YAML", ("rules.yaml:2: the remap rules cannot be read as YAML",), "rules:\n\t- id\n"),
]


Ivr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ivr(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ivr:
    """`ivr(folder, …)`: exit code, standard output and standard error."""
    for name in [name for name in os.environ if name.startswith(("IVR_", "DAGSTER_"))]:
        monkeypatch.delenv(name)

    def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ivr", "--artifacts-dir", str(folder), *arguments])
        monkeypatch.delenv("DAGSTER_HOME", raising=False)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfd.readouterr()
        return int(str(ended.value.code)), told.out, told.err

    return run


def tree(folder: Path) -> dict[str, str]:
    """Hashes of all files but those that hold Dagster's records, locks and what is kept of shards, which are hidden."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def refused(
    row: Row, home: Path, raw: Path, ivr: Ivr, monkeypatch: pytest.MonkeyPatch, *command: str, **names: Any
) -> None:
    """Run the row's command and look at what it told and left."""
    for name, value in row.environment.items():
        monkeypatch.setenv(name, value)
    before = tree(home)
    code, out, err = ivr(home, *command)
    lines = err.splitlines()
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("ivr: ")
    assert len(lines[0]) < 4000
    for part in row.told:
        assert part.format(home=home, raw=raw, **names) in lines[0]
    assert "Traceback" not in err + out
    assert tree(home) == before


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and the artifacts of a good `init` on it."""
    root = tmp_path_factory.mktemp("begun")
    (root / "raw" / "only").mkdir(parents=True)
    (root / "raw" / "good.jsonl").write_text(GOOD)
    home = root / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("IVR_", "DAGSTER_"))]:
            patch.delenv(name)
        places = ["--raw-corpora-dir", str(root / "raw"), "--heldout-fraction", "0.2", "--model-name", "sample"]
        patch.setattr(sys, "argv", ["ivr", "--artifacts-dir", str(home), "init", *places])
        with pytest.raises(SystemExit) as ended:
            main()
        os.environ.pop("DAGSTER_HOME", None)
    assert ended.value.code == 0
    return root


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that small files reach."""
    monkeypatch.setattr(decoding, "SAFE_GZIP_BYTES", 1 << 20)
    monkeypatch.setattr(json_records, "MAX_JSON_FILE", 100_000)
    monkeypatch.setattr(long_lines, "LONG_LINE", 1 << 20)
    monkeypatch.setattr(long_lines, "MAX_OUTSIDE_STRINGS", 2 << 20)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("row", INPUT, ids=str)
def test_bad_input_is_refused_in_one_line(
    row: Row, begun: Path, tmp_path: Path, ivr: Ivr, monkeypatch: pytest.MonkeyPatch
) -> None:
    if row.not_as_root and os.geteuid() == 0:
        pytest.skip("root may read everything")
    root = Path(shutil.copytree(begun, tmp_path / "copy"))
    home, raw = root / "artifacts", root / "raw"
    (root / "empty").mkdir()
    settings = yaml.safe_load((home / "ivr.yaml").read_text()) | {"raw_corpora_dir": str(raw)}
    (home / "ivr.yaml").write_text(yaml.safe_dump(settings))
    place = raw / ("only" if row.file.startswith("one.") else "") / row.file
    if row.make:
        row.make(place)
    elif row.content is not None:
        place.write_bytes(row.content.encode() if isinstance(row.content, str) else row.content)
    command = (part.format(raw=raw, empty=root / "empty") for part in row.command)
    refused(row, home, raw, ivr, monkeypatch, "init", *command)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Artifacts of every stage, made once: rows write their file and put back what was there."""
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("finished") / "copy"))
    home = root / "artifacts"
    settings: dict[str, Any] = {**SMALL, **TINY, "model_name": str(tiny.parent / "model")}
    (home / "ivr.yaml").write_text(yaml.safe_dump(settings | {"raw_corpora_dir": str(root / "raw")}))
    shutil.copyfile(root / "sft_config.yaml", home / "sft_config.yaml")
    yield home


@pytest.mark.parametrize("row", [*SETTINGS, *TRAINING, *RULES], ids=str)
def test_bad_settings_and_rules_are_refused_in_one_line(
    row: Row, finished: Path, ivr: Ivr, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ivr_dagster.core.vocabulary.rules import read_rules

    kept = finished / "tokenizers" / "remap_rules.yaml"
    free = read_rules(kept).rules[0]
    names = {"id": free.id, "string": json.dumps(free.sacrificed_token, ensure_ascii=False)}
    place = Path(row.file.format(home=finished))
    before = place.read_bytes() if place.is_file() else None
    try:
        if row.content is not None:
            text = row.content.format(**names) if row in RULES and isinstance(row.content, str) else row.content
            place.write_bytes(text.encode() if isinstance(text, str) else text)
        command = (part.format(home=finished) for part in row.command)
        refused(row, finished, finished, ivr, monkeypatch, *command, **names)
    finally:
        if row.content is not None:
            place.unlink() if before is None else place.write_bytes(before)


def test_external_rules_are_checked_before_anything_is_built(tiny: Path, tmp_path: Path, ivr: Ivr) -> None:
    rules, home = tmp_path / "rules.yaml", tmp_path / "artifacts"
    one = "- id: {}\n  sacrificed_token: {}\n  new_token: {}\n  constituents: [q, x]\n"
    rules.write_text("rules:\n" + one.format(0, "x", "qx") + one.format(99_999, "y", "qx"))
    sources = ["--model-name", str(tiny.parent / "model"), "--raw-corpora-dir", str(tiny / "raw")]
    code, _, err = ivr(home, "run", *sources, "--remap-rules-path", str(rules))
    assert code == 2
    assert len(err.splitlines()) == 1
    for told in ("rules.yaml:2: id 0 ", "rules.yaml:6: id 99999 ", "rules.yaml:6: new token 'qx' occurs twice"):
        assert told in err
    assert tree(home) == {}
