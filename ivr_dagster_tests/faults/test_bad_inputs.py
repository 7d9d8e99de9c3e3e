"""Bad corpora, settings and rules on the command line: one line names file and line, value and remedy.

The artifacts stay unchanged: each case works on a folder with a finished `init`, or with a finished pipeline. The
tests of the readers check every message; here is one case of each kind.
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
    """

    fault: str
    expected: tuple[str, ...]
    content: str | bytes | None = None
    file: str = "bad.txt"
    make: Callable[[Path], object] | None = None
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

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


def link_folder_outside(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent.parent / "elsewhere")


GZIP = gzip.compress(GOOD.encode() * 50, mtime=0)
INPUT = [
    Case("cp949 read as UTF-8", ("the bytes c7 at offset 0", "cp949", "--encoding"), "한국어".encode("cp949")),
    Case("unknown encoding", ("'klingon'", "--encoding"), command=("--encoding", "klingon")),
    Case("several missing keys", ("bad.jsonl:1: ", "bad.jsonl:3: "), '{"b":"x"}\n"a"\n{"c":"x"}', "bad.jsonl"),
    Case("text key of no record", ("'t.x' is missing", "--text-key"), command=("--text-key", "t.x")),
    Case("truncated gzip", ("bad.jsonl.gz: the gzip file is damaged", "again"), GZIP[:-9], "bad.jsonl.gz"),
    Case("socket", ("bad.jsonl: it is a socket", "Remove, rename"), None, "bad.jsonl", make_socket),
    Case("link to a folder outside", ("elsewhere", "leaves the corpus folder"), None, "folder", link_folder_outside),
    Case("no corpus file", ("contains no corpus file", ".txt, .jsonl"), command=("--raw-corpora-dir", "{empty}")),
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
        "several invalid settings", ("ivr.yaml:1: seed is -1", "ivr.yaml:2: unknown setting 'x'"), "seed: -1\nx: 1\n"
    ),
    settings("alias expansion", ("ivr.yaml:1: ", "used again by an alias"), f"l0: &l0 lol\n{LAUGHS}"),
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
        ("gone.yaml: settings file not found", "--config"),
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
        "several invalid training settings",
        ("3 settings are invalid: line 1", "line 2", "line 3"),
        "sed: 1\nseed: -1\nlearning_rate: .inf\n",
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
    rules(
        "several invalid rules",
        ("rules.yaml:2: id 0 ", "rules.yaml:3: id 99999 ", "rules.yaml:4: new token 'a'"),
        f"rules:\n{rule('0', 'x')}{rule('99999')}{rule(new='a', parts='[a]')}",
    ),
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


@pytest.mark.parametrize("case", INPUT, ids=str)
def test_bad_corpus_is_rejected_in_one_line(
    case: Case, initialized: Path, tmp_path: Path, assert_rejected: AssertRejected
) -> None:
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
