"""Bad corpora, settings and rules on the command line: one line names file and line, value and remedy.

The artifacts stay unchanged: each case works on a folder with a finished `init`, or with a finished pipeline.
"""

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ivr_dagster.core.corpus import decoding, json_records, long_lines
from ivr_dagster.core.vocabulary.rules import read_rules
from ivr_dagster_tests.faults.conftest import AssertRejected, Ivr, read_files, run_cli
from ivr_dagster_tests.small_pipeline import SMALL, TINY

GOOD = "".join(json.dumps({"text": f"Document {number} of the corpus."}) + "\n" for number in range(40))


@dataclass(frozen=True)
class Case:
    """A fault and its message.

    Attributes:
        fault: description, the test's id.
        expected: parts of the message.
        content: content of `file`; None if there is no file or `make` makes it.
        file: path in the corpus folder, or with {home}, the artifacts folder.
        make: creates something other than a regular file at this path.
        command: command line; {raw} is the corpus folder, {empty} an empty folder.
        environment: environment variables.
        not_as_root: skipped for root, who can read everything.
    """

    fault: str
    expected: tuple[str, ...]
    content: str | bytes | None = None
    file: str = "bad.txt"
    make: Callable[[Path], object] | None = None
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    not_as_root: bool = False

    def __str__(self) -> str:
        return self.fault

    def write(self, file: Path, **values: object) -> None:
        """Create the file; `values` replace {placeholders} in its text."""
        if self.make:
            self.make(file)
        elif self.content is not None:
            text = self.content.format(**values) if values and isinstance(self.content, str) else self.content
            file.write_bytes(text.encode() if isinstance(text, str) else text)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def link_outside(path: Path) -> None:
    (path.parent.parent / "secret.txt").write_text("not of the corpus")
    path.symlink_to(path.parent.parent / "secret.txt")


def link_folder_outside(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent.parent / "elsewhere")


def make_sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 20)


GZIP = gzip.compress(GOOD.encode() * 50, mtime=0)
INPUT = [
    Case("invalid UTF-8", ("bad.txt: the bytes ff at offset 5 are", "--encoding-errors replace"), b"fine \xff"),
    Case("incomplete character at the end", ("the bytes ed 95 at offset 3", "--encoding"), "한한".encode()[:-1]),
    Case("invalid UTF-8 in .jsonl", ("bad.jsonl: the bytes fe at offset 9",), b'{"text":"\xfe"}\n', "bad.jsonl"),
    Case("cp949 read as UTF-8", ("the bytes c7 at offset 0", "cp949"), "한국어".encode("cp949")),
    Case("UTF-16 with byte order mark", ("byte order mark of utf-16", "--encoding"), "text".encode("utf-16")),
    Case("UTF-32 with byte order mark", ("byte order mark of utf-32", "--encoding"), "text".encode("utf-32")),
    Case(
        "UTF-16 of the other byte order",
        ("is not utf-16", "--encoding"),
        "a text".encode("utf-16-be"),
        command=("--encoding", "utf-16"),
    ),
    Case("unknown encoding", ("'klingon'", "--encoding"), command=("--encoding", "klingon")),
    Case("encoding of bytes", ("'hex'", "--encoding"), command=("--encoding", "hex")),
    Case("NUL bytes in JSON", ("bad.jsonl:1: invalid JSON", ".json file"), '{"te\0xt": "x"}', "bad.jsonl"),
    Case(
        "line of NUL bytes", ("bad.jsonl:1: the line is too long", "line breaks"), None, "bad.jsonl", make_sparse_file
    ),
    Case(
        "records separated by CR",
        ("bad.jsonl:1: invalid JSON (Extra data",),
        '{"text":"a"}\r{"text":"b"}',
        "bad.jsonl",
    ),
    Case("empty .json file", ("bad.json:1: the file is empty", ".jsonl file"), "", "bad.json"),
    Case("nested a million deep", ("bad.jsonl:1: invalid JSON (",), "[" * 1_000_000, "bad.jsonl"),
    Case("nested ten thousand deep in .json", ("bad.json:1: invalid JSON (",), '{"a":' * 10_000, "bad.json"),
    Case("truncated JSON", ("bad.jsonl:2: invalid JSON (Unterminated",), '{"text":"a"}\n{"text": "cut', "bad.jsonl"),
    Case("truncated array", ("bad.json:2: invalid JSON (",), '[{"text":"a"},\n', "bad.json"),
    Case(
        "JSON lines in .json",
        ("bad.json:2: invalid JSON (Extra data", ".jsonl file"),
        '{"text":"a"}\n{"text":"b"}',
        "bad.json",
    ),
    Case("multi-line object in .jsonl", ("bad.jsonl:1: invalid JSON",), '{\n"text": "a"}', "bad.jsonl"),
    Case(
        "missing key",
        ("bad.jsonl:2: the key 'text' is missing", "'body'", "--text-key"),
        '"a"\n{"body":"b"}',
        "bad.jsonl",
    ),
    Case(
        "missing key in .json",
        ("bad.json:3: the key 'text' is missing", "--text-key"),
        '["a",\n\n{"body":"b"}]',
        "bad.json",
    ),
    Case("several missing keys", ("bad.jsonl:1: ", "bad.jsonl:3: "), '{"b":"x"}\n"a"\n{"c":"x"}', "bad.jsonl"),
    Case("text is a number", ("bad.jsonl:1: the key 'text' holds a number",), '{"text": 5}', "bad.jsonl"),
    Case("record is a number", ("bad.jsonl:1: expected an object or a string, found a number",), "17", "bad.jsonl"),
    Case("integer of 5,000 digits", ("bad.jsonl:1: invalid JSON (Exceeds the limit",), "9" * 5000, "bad.jsonl"),
    Case("text key of no record", ("'t.x' is missing", "--text-key"), command=("--text-key", "t.x")),
    Case("truncated gzip", ("bad.jsonl.gz: the gzip file is damaged", "again"), GZIP[:-9], "bad.jsonl.gz"),
    Case("not gzip", ("bad.txt.gz: the gzip file is damaged",), b"plain", "bad.txt.gz"),
    Case("gzip with a flipped bit", ("the gzip file is damaged",), GZIP[:20] + b"\xff" + GZIP[21:], "bad.jsonl.gz"),
    Case("gzip bomb", ("unpacks to more than", "200 times", "gunzip"), gzip.compress(b"\0" * (4 << 20)), "bad.txt.gz"),
    Case(".json file too large", ("more than 100,000 characters", ".jsonl"), json.dumps(["x" * 100_000]), "bad.json"),
    Case("pipe", ("bad.txt: it is a named pipe", "Remove, rename"), make=os.mkfifo),
    Case(
        "unreadable file",
        ("bad.txt: cannot be read (Permission denied)",),
        make=lambda path: (path.touch(), path.chmod(0)),
        not_as_root=True,
    ),
    Case("socket", ("bad.jsonl: it is a socket", "Remove, rename"), None, "bad.jsonl", make_socket),
    Case(
        "link to a device",
        ("the link leaves the corpus folder and points to /dev/zero",),
        make=lambda path: path.symlink_to("/dev/zero"),
    ),
    Case(
        "broken link",
        ("bad.txt: the link is broken", "Fix or remove"),
        make=lambda path: path.symlink_to("gone.txt"),
    ),
    Case("link to itself", ("bad.txt: the link is broken",), make=lambda path: path.symlink_to(path)),
    Case("link to a file outside", ("secret.txt", "leaves the corpus folder", "Copy"), make=link_outside),
    Case("link to a folder outside", ("elsewhere", "leaves the corpus folder"), None, "folder", link_folder_outside),
    Case(
        "no corpus file",
        ("the folder contains no corpus file", ".txt, .jsonl", "--raw-corpora-dir"),
        command=("--raw-corpora-dir", "{empty}"),
    ),
    Case(
        "missing folder",
        ("nowhere: cannot be read (No such file", "--raw-corpora-dir"),
        command=("--raw-corpora-dir", "{raw}/nowhere"),
    ),
    Case(
        "file instead of folder",
        ("cannot be read (Not a directory)",),
        command=("--raw-corpora-dir", "{raw}/good.jsonl"),
    ),
    Case(
        "only empty documents",
        ("no document is left for training: of 1 read, 1 were empty", "Add"),
        "",
        "one.txt",
        command=("--raw-corpora-dir", "{raw}/only"),
    ),
    Case(
        "only duplicates",
        ("8 duplicates and 1 held out", "Add documents"),
        '"a"\n' * 9,
        "one.jsonl",
        command=("--raw-corpora-dir", "{raw}/only"),
    ),
    Case(
        "everything skipped",
        ("no document is left", "1 files and 0 records were skipped"),
        b"\xff",
        "one.txt",
        command=("--raw-corpora-dir", "{raw}/only", "--on-bad-input", "skip"),
    ),
]


def settings(fault: str, expected: tuple[str, ...], content: str | bytes) -> Case:
    return Case(fault, expected, content, "{home}/ivr.yaml", command=("status",))


LAUGHS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
SETTINGS = [
    settings(
        "unknown setting", ("ivr.yaml:1: unknown setting 'max_candidate'", "'max_candidates'"), "max_candidate: 5\n"
    ),
    settings("wrong type", ("ivr.yaml:2: seed is 'dice': input should be a valid integer",), "# mine\nseed: dice\n"),
    settings(
        "out of range", ("ivr.yaml:1: heldout_fraction is 2: input should be less than 0.9",), "heldout_fraction: 2\n"
    ),
    settings(
        "several invalid settings", ("ivr.yaml:1: seed is -1", "ivr.yaml:2: unknown setting 'x'"), "seed: -1\nx: 1\n"
    ),
    settings("boolean instead of number", ("seed is True: expected a number",), "seed: true\n"),
    settings("invalid choice", ("merge_scope is 'sideways'", "'within' or 'across'"), "merge_scope: sideways\n"),
    settings("infinity", ("tune_seconds is inf: input should be a finite number",), "tune_seconds: .inf\n"),
    settings("nan", ("heldout_fraction is nan",), "heldout_fraction: .nan\n"),
    settings("huge integer", ("max_texts is an integer of 36,000 bits",), f"max_texts: 0x{'f' * 9000}\n"),
    settings("5,000 digits", ("ivr.yaml:1: 'seed' has an invalid value",), f"seed: {'9' * 5000}\n"),
    settings("more than 64 bits", ("max_texts is 9223372036854775808",), "max_texts: 9223372036854775808\n"),
    settings("invalid date", ("ivr.yaml:1: 'seed' has an invalid value: '2024-13-01'",), "seed: 2024-13-01\n"),
    settings("NUL in a path", (r"raw_corpora_dir is 'a\x00b'",), 'raw_corpora_dir: "a\\0b"\n'),
    settings("lone surrogate", (r"text_key is '\ud800'",), 'text_key: "\\ud800"\n'),
    settings("duplicate key", ("ivr.yaml:2: duplicate key 'seed', first in line 1",), "seed: 1\nseed: 2\n"),
    settings("tab", ("ivr.yaml:2: the settings file cannot be read as YAML", "key: value"), "seed: 1\n\tx: 1\n"),
    settings("unclosed bracket", ("ivr.yaml:", "cannot be read as YAML"), "seed: [1\n"),
    settings(
        "Python object",
        ("ivr.yaml:1: ", "could not determine a constructor"),
        "seed: !!python/object/apply:os.abort []\n",
    ),
    settings("alias expansion", ("ivr.yaml:1: ", "used again by an alias"), f"l0: &l0 lol\n{LAUGHS}"),
    settings("alias in a merge key", ("used again by an alias",), "a: &a {x: 1}\nb: {<<: [*a, *a]}\n"),
    settings("list instead of mapping", ("ivr.yaml: expected a mapping of settings, found a list",), "- seed\n"),
    settings("number as key", ("ivr.yaml:1: expected the name of a setting, found '5'",), "5: 1\n"),
    settings("list as key", ("ivr.yaml:1: expected the name of a setting",), "? [a]\n: 1\n"),
    settings("two documents", ("ivr.yaml:2: ", "another document"), "seed: 1\n---\nseed: 2\n"),
    settings("nested too deeply", ("ivr.yaml: ", "nested too deeply"), f"seed: {'[' * 5000}\n"),
    settings("file too large", ("ivr.yaml: ", "more than 262,144 bytes"), "#" * (1 << 20)),
    settings("Latin-1", ("ivr.yaml:2: ", "byte 0xe9 at offset", "UTF-8"), "seed: 1\n# caf\u00e9\n".encode("latin-1")),
    settings("control character", ("ivr.yaml:1: ", "U+0007"), "seed: \x07\n"),
    settings(
        "minimum above maximum",
        ("ivr.yaml:2: ", "max_token_len is 3, less than min_token_len, 4"),
        "min_token_len: 4\nmax_token_len: 3\n",
    ),
    settings("text split too small", ("ivr.yaml:1: text_split_bytes is 7", "at least 256"), "text_split_bytes: 7\n"),
    Case("invalid variable", ("IVR_SEED: seed is 'dice'",), command=("status",), environment={"IVR_SEED": "dice"}),
    Case(
        "unknown variable",
        ("IVR_SEDE: unknown setting 'sede'", "'seed'"),
        command=("status",),
        environment={"IVR_SEDE": "1"},
    ),
    Case(
        "variable not in UTF-8",
        ("IVR_TEXT_KEY: text_key is '\\udcff'",),
        command=("status",),
        environment={"IVR_TEXT_KEY": "\udcff"},
    ),
    Case(
        "missing settings file",
        ("gone.yaml: no such settings file", "--config"),
        command=("--config", "{home}/gone.yaml", "status"),
    ),
    Case("invalid option", ("--max-candidates", "'many'"), command=("select", "--max-candidates", "many")),
    Case("unknown option", ("--max-candidate",), command=("select", "--max-candidate", "5")),
    Case(
        "more new tokens than ids",
        ("1,000,000 new tokens requested",),
        command=("select", "--max-candidates", "1000000"),
    ),
]


def training(fault: str, expected: tuple[str, ...], content: str | bytes, file: str = "sft_config.yaml") -> Case:
    return Case(fault, expected, content, f"{{home}}/{file}", command=("train",))


TRAINING = [
    training(
        "unknown training setting", ("sft_config.yaml:1: unknown setting 'sed' (did you mean 'seed'",), "sed: 1\n"
    ),
    training(
        "several invalid training settings",
        ("3 settings are invalid: line 1", "line 2", "line 3"),
        "sed: 1\nseed: -1\nlearning_rate: .inf\n",
    ),
    training("seed of 33 bits", ("sft_config.yaml:1: seed is 4294967296",), "seed: 4294967296\n"),
    training("duplicate training setting", ("sft_config.yaml:2: duplicate key 'seed'",), "seed: 1\nseed: 1\n"),
    training(
        "alias in training settings", ("sft_config.yaml:1: ", "used again by an alias"), "seed: &a 1\ndata_seed: *a\n"
    ),
    training(
        "unknown launch setting",
        ("accelerate_config.yaml:1: unknown key 'num_proc'",),
        "num_proc: 2\n",
        "accelerate_config.yaml",
    ),
    training(
        "zero processes",
        ("accelerate_config.yaml:2: num_processes is 0",),
        "debug: false\nnum_processes: 0\n",
        "accelerate_config.yaml",
    ),
]

# {id} is an id that can be reassigned, {string} its token


def rules(fault: str, expected: tuple[str, ...], text: str) -> Case:
    return Case(fault, expected, text, "{home}/tokenizers/remap_rules.yaml", command=("remap",))


def rule(number: str = "{id}", sacrificed: str = "{string}", new: str = "qxz", parts: str = "[q, x, z]") -> str:
    return f"- {{{{id: {number}, sacrificed_token: {sacrificed}, new_token: {new}, constituents: {parts}}}}}\n"


RULES = [
    rules(
        "id reassigned twice",
        ("rules.yaml:3: id {id} is reassigned twice, first in line 2",),
        f"rules:\n{rule()}{rule(new='qxq', parts='[q, x, q]')}",
    ),
    rules("protected id", ("rules.yaml:2: id 0 ", "is protected"), f"rules:\n{rule('0', '<|endoftext|>')}"),
    rules(
        "id outside the vocabulary", ("rules.yaml:2: id 99999 is not in the vocabulary",), f"rules:\n{rule('99999')}"
    ),
    rules(
        "sacrificed token of another id",
        ("rules.yaml:2: id {id} is ", "not 'zzz'"),
        f"rules:\n{rule(sacrificed='zzz')}",
    ),
    rules(
        "new token already exists",
        ("rules.yaml:2: new token 'a' already exists",),
        f"rules:\n{rule(new='a', parts='[a]')}",
    ),
    rules(
        "unknown constituent",
        ("rules.yaml:2: ", "constituent 'qqqq' is not a base token"),
        f"rules:\n{rule(parts='[qqqq]')}",
    ),
    rules(
        "constituents of another string",
        ("rules.yaml:2: ", "constituents make up 'qx'"),
        f"rules:\n{rule(parts='[q, x]')}",
    ),
    rules("missing constituents", ("rules.yaml:2: ", "`constituents` must be a list"), f"rules:\n{rule(parts='')}"),
    rules(
        "space in a token",
        ("rules.yaml:2: ", "byte-level alphabet"),
        f"rules:\n{rule(new=chr(39) + 'q x' + chr(39))}",
    ),
    rules("rule is a number", ("rules.yaml:3: expected a rule as a mapping, found 17",), f"rules:\n{rule()}- 17\n"),
    rules(
        "several invalid rules",
        ("rules.yaml:2: id 0 ", "rules.yaml:3: id 99999 ", "rules.yaml:4: new token 'a'"),
        f"rules:\n{rule('0', 'x')}{rule('99999')}{rule(new='a', parts='[a]')}",
    ),
    rules("duplicate key in a rule", ("rules.yaml:2: duplicate key 'id'",), "rules:\n- {{id: 1, id: 2}}\n"),
    rules("alias in rules", ("used again by an alias",), "rules:\n- &a {{id: 1}}\n- *a\n"),
    rules("missing list of rules", ("a list under the key `rules` was expected", "delete the file"), "rule: 1\n"),
    rules("rules not in YAML", ("rules.yaml:2: the remap rules cannot be read as YAML",), "rules:\n\t- id\n"),
]


@pytest.fixture(scope="module")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw/` and, after `init`, `artifacts/`. Copy it, never change it."""
    root = tmp_path_factory.mktemp("initialized")
    (root / "raw" / "only").mkdir(parents=True)
    (root / "raw" / "good.jsonl").write_text(GOOD)
    options = ("--raw-corpora-dir", str(root / "raw"), "--heldout-fraction", "0.2", "--model-name", "sample")
    assert run_cli(root / "artifacts", "init", *options) == 0
    return root


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that small files reach."""
    monkeypatch.setattr(decoding, "SAFE_GZIP_BYTES", 1 << 20)
    monkeypatch.setattr(json_records, "MAX_JSON_FILE", 100_000)
    monkeypatch.setattr(long_lines, "LONG_LINE", 1 << 20)
    monkeypatch.setattr(long_lines, "MAX_OUTSIDE_STRINGS", 2 << 20)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("case", INPUT, ids=str)
def test_bad_corpus_is_rejected_in_one_line(
    case: Case, initialized: Path, tmp_path: Path, assert_rejected: AssertRejected
) -> None:
    if case.not_as_root and os.geteuid() == 0:
        pytest.skip("root can read everything")
    root = Path(shutil.copytree(initialized, tmp_path / "copy"))
    home, raw = root / "artifacts", root / "raw"
    (root / "empty").mkdir()
    values = yaml.safe_load((home / "ivr.yaml").read_text()) | {"raw_corpora_dir": str(raw)}
    (home / "ivr.yaml").write_text(yaml.safe_dump(values))
    case.write(raw / ("only" if case.file.startswith("one.") else "") / case.file)
    command = [part.format(raw=raw, empty=root / "empty") for part in case.command]
    assert_rejected(home, ["init", *command], case.expected)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of every stage; each test restores the file that it writes."""
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("finished") / "copy"))
    home = root / "artifacts"
    values: dict[str, Any] = {**SMALL, **TINY, "model_name": str(tiny.parent / "model")}
    (home / "ivr.yaml").write_text(yaml.safe_dump(values | {"raw_corpora_dir": str(root / "raw")}))
    shutil.copyfile(root / "sft_config.yaml", home / "sft_config.yaml")
    return home


@pytest.mark.parametrize("case", [*SETTINGS, *TRAINING, *RULES], ids=str)
def test_bad_settings_and_rules_are_rejected_in_one_line(
    case: Case, finished: Path, assert_rejected: AssertRejected
) -> None:
    reassigned = read_rules(finished / "tokenizers" / "remap_rules.yaml").rules[0]
    token = json.dumps(reassigned.sacrificed_token, ensure_ascii=False)
    values = {"id": reassigned.id, "string": token} if case in RULES else {}
    file = Path(case.file.format(home=finished))
    before = file.read_bytes() if file.is_file() else None
    try:
        if case.content is not None:
            case.write(file, **values)
        command = [part.format(home=finished) for part in case.command]
        expected = [part.format(**values) if values else part for part in case.expected]
        assert_rejected(finished, command, expected, case.environment)
    finally:
        if case.content is not None:
            file.unlink() if before is None else file.write_bytes(before)


def test_external_rules_are_checked_before_anything_is_built(tiny: Path, tmp_path: Path, ivr: Ivr) -> None:
    rules, home = tmp_path / "rules.yaml", tmp_path / "artifacts"
    one = "- id: {}\n  sacrificed_token: {}\n  new_token: {}\n  constituents: [q, x]\n"
    rules.write_text("rules:\n" + one.format(0, "x", "qx") + one.format(99_999, "y", "qx"))
    sources = ["--model-name", str(tiny.parent / "model"), "--raw-corpora-dir", str(tiny / "raw")]
    code, _, lines = ivr(home, "run", *sources, "--remap-rules-path", str(rules))
    assert code == 2
    assert len(lines) == 1
    for part in ("rules.yaml:2: id 0 ", "rules.yaml:6: id 99999 ", "rules.yaml:6: new token 'qx' occurs twice"):
        assert part in lines[0]
    assert read_files(home) == {}
