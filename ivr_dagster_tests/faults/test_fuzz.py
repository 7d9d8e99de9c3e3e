"""Random and mutated files, settings and rules are read, or rejected with an `InputError`.

`FAULTS_FUZZ_CASES` sets the total number of cases, by default 400.
"""

import gzip
import json
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ivr_dagster.artifact_paths import ArtifactPaths
from ivr_dagster.core.corpus import decoding, documents, json_records, long_lines
from ivr_dagster.core.corpus.cleaning import clean
from ivr_dagster.core.corpus.documents import read_documents
from ivr_dagster.core.corpus.files import corpus_files
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.training.launch_settings import read_accelerate_config
from ivr_dagster.core.training.sft_config import DEFAULTS, read_sft_config
from ivr_dagster.core.vocabulary.remap import complete_rules, remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule, RemapRules, check_rules, read_rules, rules_as_yaml
from ivr_dagster.errors import InputError
from ivr_dagster.settings.groups import CorpusSettings
from ivr_dagster.settings.loading import FIELDS, load_settings, save_settings

CASES = int(os.environ.get("FAULTS_FUZZ_CASES", "400"))
SHARES = {"documents": 0.4, "settings": 0.2, "environment": 0.1, "sft_config": 0.05, "launch": 0.1, "rules": 0.15}
# processor time; a case takes milliseconds, so a slower one would not end on larger input
MAX_SECONDS = 20.0

pytestmark = pytest.mark.timeout(300 + CASES // 5)

tried: Counter[str] = Counter()
Test = Callable[..., Any]


def fuzz(subject: str) -> Callable[[Test], Test]:
    """Run this test's share of the cases, the same in every run."""
    return settings(
        max_examples=max(1, round(CASES * SHARES[subject])),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def only_input_errors(subject: str, folder: Path) -> Iterator[None]:
    """The block ends soon, raises nothing except a short `InputError`, and leaves the folder unchanged."""
    tried[subject] += 1
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated codecs and escapes
            yield
    except InputError as error:
        assert str(error).strip()
        assert len(str(error)) < 20_000
    assert time.process_time() - started < MAX_SECONDS
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module", autouse=True)
def small_limits() -> Iterator[None]:
    """Small cases reach the limits for long lines and large files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", 64)
        patch.setattr(documents, "CHUNK_BYTES", 64)
        patch.setattr(long_lines, "LONG_LINE", 200)
        patch.setattr(documents, "MAX_UNCUT_JSON_BYTES", 300)
        patch.setattr(json_records, "MAX_JSON_FILE", 3000)
        patch.setattr(decoding, "SAFE_GZIP_BYTES", 4000)
        patch.setattr(long_lines, "LONG_STRING", 50)
        patch.setattr(long_lines, "MAX_OUTSIDE_STRINGS", 2000)
        yield


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes], pieces: list[bytes]) -> bytes:
    """Valid bytes with up to three cuts, repetitions or replacements."""
    content = draw(valid)
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.integers(0, 12)))
        replacement = draw(st.sampled_from(pieces) | st.binary(max_size=4) | st.just(content[begin:end] * 2))
        content = content[:begin] + replacement + content[end:]
    return content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "meta", "a.b", ""]), inner),
    max_leaves=6,
)
LONG_TEXT = st.tuples(st.text(min_size=1, max_size=20), st.integers(1, 60)).map(lambda each: each[0] * each[1])
RECORDS = st.lists(JSON | LONG_TEXT | LONG_TEXT.map(lambda text: {"text": text, "n": 1}), max_size=4)
LINES = st.tuples(RECORDS, st.booleans()).map(
    lambda each: "\n".join(json.dumps(record, ensure_ascii=each[1]) for record in each[0])
)
ENCODINGS = ["utf-8", "utf-16", "utf-16-le", "utf-32", "cp949", "latin-1", "utf-7", "shift_jis", "hz", "iso2022_kr"]
ODD_ENCODINGS = ["unicode_escape", "raw_unicode_escape", "punycode", "idna", "undefined", "hex", "utf-8-sig", "mbcs"]


@st.composite
def corpus_bytes(draw: st.DrawFn) -> bytes:
    text = draw(LINES | RECORDS.map(json.dumps) | st.text(max_size=300) | st.integers(1, 3000).map(lambda n: "[" * n))
    valid = text.encode(draw(st.sampled_from(ENCODINGS[:7])), "replace" if draw(st.booleans()) else "ignore")
    pieces = [
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\0" * 40,
        b"\r\n",
        b'"',
        b"\\ud83d",
        b"\\",
        b"{",
        b"\xed\xa0\x80",
        b"9" * 5000,
    ]
    return draw(mutated(st.just(valid), pieces) | st.binary(max_size=200))


@fuzz("documents")
@given(
    content=corpus_bytes(),
    suffix=st.sampled_from([".txt", ".jsonl", ".json"]),
    compression=st.sampled_from(["", "plain", "damaged", "bomb"]),
    encoding=st.sampled_from(ENCODINGS) | st.sampled_from(ODD_ENCODINGS) | st.text(max_size=12),
    errors=st.sampled_from(["strict", "replace"]),
    text_key=st.sampled_from(["text", "a.b", "meta.text", ""]) | st.text(max_size=8),
    split=st.sampled_from([0, 256, 300, 16_384]),
    skip=st.booleans(),
    damage=st.integers(0, 100),
)
def test_any_corpus_file_is_read_or_rejected(
    content: bytes,
    suffix: str,
    compression: str,
    encoding: str,
    errors: str,
    text_key: str,
    split: int,
    skip: bool,
    damage: int,
) -> None:
    if compression:
        content = gzip.compress(content * 500 if compression == "bomb" else content, mtime=0)
    if compression == "damaged":
        offset = damage % len(content)
        content = content[:offset] + b"\x55" + content[offset + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{suffix}{'.gz' if compression else ''}"
        file.write_bytes(content)
        with only_input_errors("documents", Path(folder)):
            (path,) = corpus_files(Path(folder))
            settings = CorpusSettings.model_construct(
                text_key=text_key, encoding=encoding, encoding_errors=errors, text_split_bytes=split
            )
            on_skip = (lambda *_: None) if skip else None
            for document in read_documents(path, Path(folder), settings, on_skip=on_skip):
                text, _ = clean(document.text)
                text.encode()
                document.source.encode()


# fmt: off
SCALARS = st.sampled_from(
    [
        "1", "-1", "0.5", "1e400", ".inf", "-.INF", ".nan", "~", "null", "true", "off", "2024-13-01", "2024-01-01",
        "1:59:59", "0x" + "f" * 5000, "9" * 5000, "0o17", "0b1", "1_000", "=", "<<", "!!int x", "!!float ''",
        "!!timestamp x", "!!bool q", "!!binary '&&&'", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]",
        "!!python/object:os.abort {}", "&a [*a]", "*a", "&b 1", '"\\ud800"', '"\\0"', "'", '"', "{", "[1, 2]",
        "{a: 1}", "? x", "|", ">", "%", "@", "\u2028", "!<tag:yaml.org,2002:int> q", "!!null x", "!!str 5", "!x y",
        "\x85", "\ufeff", "-", "- 1", "a: b", "#",
    ]
) | st.text(max_size=12)
# fmt: on
KEYS = st.sampled_from([*FIELDS, "seed", "max_candidate", "<<", "5", "? [a]", "yes", "", "self", "__init__"])


def yaml_of(keys: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Valid and mutated YAML mappings with some of these keys."""
    entries = st.lists(st.tuples(keys, SCALARS), max_size=5)
    valid = entries.map(
        lambda each: "".join(f"{key}: {value}\n" for key, value in each).encode("utf-8", "surrogatepass")
    )
    laughs = b"".join(b"l%d: &l%d [*l%d, *l%d]\n" % (n, n, n - 1, n - 1) for n in range(2, 20))
    pieces = [b"\t", b"---\n", b"...\n", b": ", b"&a ", b"*a", b"[", b"{", b"\0", b"\xff", b"\xef\xbb\xbf", b"[" * 2000]
    pieces += [b"l1: &l1 x\n" + laughs, b"- ", b"!!", b"%YAML 1.1\n---\n", b"<<: *a\n", b"\r", b"  ", b"? "]
    return mutated(valid, pieces) | st.binary(max_size=60)


@fuzz("settings")
@given(content=yaml_of(KEYS))
def test_any_settings_file_is_read_or_rejected(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        artifacts = Path(folder) / "artifacts"
        artifacts.mkdir()
        (artifacts / "ivr.yaml").write_bytes(content)
        with only_input_errors("settings", artifacts):
            found = load_settings(artifacts, environ={})
            json.dumps(found.model_dump(), allow_nan=False).encode()
            ArtifactPaths.of(found, artifacts)
            copy = Path(folder) / "copy.yaml"
            copy.write_bytes(content)
            save_settings(copy, {"seed": 7, "raw_corpora_dir": "x"})
            assert load_settings(artifacts, config=copy, environ={}).compute.seed == 7


@fuzz("environment")
@given(st.dictionaries(KEYS.map(str.upper) | st.text(max_size=6), SCALARS | st.text(max_size=40), max_size=4))
def test_any_environment_is_read_or_rejected(values: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder, only_input_errors("environment", Path(folder)):
        found = load_settings(Path(folder), environ={f"IVR_{name}": value for name, value in values.items()})
        json.dumps(found.model_dump(), allow_nan=False).encode()
        ArtifactPaths.of(found, Path(folder))


TRAINING_KEYS = [line.split(":")[0] for line in DEFAULTS.read_text().splitlines() if not line.startswith("#")]
MORE_KEYS = ["warmup_steps", "max_steps", "vanilla", "adafactor", "no_cuda", "output_dir", "optim_args", "fsdp"]
MORE_KEYS += ["logging_dir", "sed", "5", "? [a]"]


@fuzz("sft_config")
@given(content=yaml_of(st.sampled_from([*TRAINING_KEYS, *MORE_KEYS])), vanilla=st.booleans())
def test_any_training_settings_are_read_or_rejected(content: bytes, vanilla: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sft_config.yaml"
        file.write_bytes(content)
        with only_input_errors("sft_config", Path(folder)):
            config = read_sft_config(file, vanilla=vanilla)
            config.digest()
            config.shared_by(2)


LAUNCH_KEYS = ["num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "use_cpu"]
LAUNCH_KEYS += ["mixed_precision", "distributed_type", "debug", "gpu_ids", "fsdp_config", "x"]


@fuzz("launch")
@given(content=yaml_of(st.sampled_from(LAUNCH_KEYS)))
def test_any_launch_settings_are_read_or_rejected(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "accelerate_config.yaml"
        file.write_bytes(content)
        with only_input_errors("launch", Path(folder)):
            launch = read_accelerate_config(file)
            launch.torchrun(0, "module")
            launch.environment({})


@pytest.fixture(scope="module")
def bpe(tiny_bpe: Tokenizer) -> ByteLevelBPE:
    """256 bytes and 300 merges."""
    return read_bpe(tiny_bpe)


STRINGS = st.sampled_from(["a", "Ġthe", "qxz", "12", "", " ", "Ġ", "<|endoftext|>"]) | st.text(max_size=6)
RULE = st.builds(
    RemapRule,
    id=st.integers(-2, 600),
    sacrificed_token=STRINGS,
    new_token=STRINGS,
    constituents=st.lists(STRINGS, max_size=3).map(tuple),
    frequencies=st.just({}) | st.just({"new": 7}),
    halves=st.just(()) | st.tuples(STRINGS, STRINGS),
)
# YAML cannot contain lone surrogates
VALID_RULES = st.lists(RULE, max_size=4).filter(
    lambda rules: all(
        string.encode("utf-8", "ignore").decode() == string
        for rule in rules
        for string in (rule.sacrificed_token, rule.new_token, *rule.constituents, *rule.halves)
    )
)
HANDWRITTEN_RULES = st.lists(
    st.tuples(SCALARS, SCALARS, SCALARS, SCALARS).map(
        lambda each: "- id: {}\n  sacrificed_token: {}\n  new_token: {}\n  constituents: {}\n".format(*each)
    ),
    max_size=3,
).map(lambda rules: ("rules:\n" + "".join(rules)).encode("utf-8", "surrogatepass"))

RULE_PIECES = [
    b"\t",
    b"rules:\n",
    b"- ",
    b"- 17\n",
    b"id: ",
    b"&a ",
    b"*a",
    b"[",
    b"\0",
    b"\xff",
    b"!!int ",
    b"9" * 5000,
]
RULE_PIECES += [b"<<: "]


@fuzz("rules")
@given(
    content=mutated(
        VALID_RULES.map(lambda rules: rules_as_yaml(RemapRules(tuple(rules))).encode()) | HANDWRITTEN_RULES,
        RULE_PIECES,
    )
)
def test_any_rules_are_applied_or_rejected(content: bytes, tiny_bpe: Tokenizer, bpe: ByteLevelBPE) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "remap_rules.yaml"
        file.write_bytes(content)
        with only_input_errors("rules", Path(folder)):
            rules = read_rules(file)
            rules.digest()
            check_rules(rules, bpe, file)
            remap_tokenizer(tiny_bpe, bpe, complete_rules(rules, tiny_bpe, bpe, file)[0])


def test_number_of_cases_matches_the_setting() -> None:
    counts = ", ".join(f"{count:,} {subject}" for subject, count in sorted(tried.items()))
    print(f"{sum(tried.values()):,} cases: {counts}")  # noqa: T201
    if tried.keys() == SHARES.keys():  # all tests ran in this process
        assert sum(tried.values()) >= 0.9 * CASES
