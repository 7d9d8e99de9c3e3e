"""Hashes of artifacts folders and their comparison with an undisturbed run, independent of the project's own checks."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ivr_dagster.pipeline import ASSETS

# not compared
VOLATILE = re.compile(
    r"""
      \.dagster/            # Dagster's records: ids and times
    | (.*/)?\.[^/]*lock(\.holder)?$  # locks
    | (.*/)?\.[^/]*ivr\.json    # writer and time of an artifact; `ivr status --verify` checks them
    | (.*/)?seal\.json      # times of files
    | \.shards/files\.json  # times of files
    | (.*/)?logs/           # TensorBoard: times
    | (.*/)?training_args\.bin  # contains the folder's path
    | (.*/)?complete\.json  # the run's fingerprint; the checkpoint beside it is compared
    | (.*/)?torchrun/
    | embeddings/\.token_distillation\.safetensors  # unfinished; see find_leftovers
    """,
    re.VERBOSE,
)
TEMPORARY, SET_ASIDE = ".tmp", ".old"
# throughput differs between runs
_SPEED_KEYS = re.compile(r"(tokens|bytes|samples|steps|flops)_per_second|runtime|seconds|mfu")
_SPEED_LINES = re.compile(r"bytes per second|^\| `(base|sft)` \| [\d,.]+ \| [\d,]+ \| [\d.]+ \| [\d,]+ \|$")

# artifact -> file -> SHA-256
Hashes = dict[str, dict[str, str]]


def hash_artifacts(artifacts: Path) -> Hashes:
    """Hashes of all published artifacts except volatile files; a checkpoint counts once it is marked complete."""
    found: Hashes = {}
    for file in sorted(artifacts.rglob("*")):
        name = file.relative_to(artifacts).as_posix()
        if not file.is_file() or VOLATILE.match(name) or _is_leftover(name):
            continue
        artifact = _artifact_of(name)
        if "/checkpoint-" in artifact and not (artifacts / artifact / "complete.json").is_file():
            continue
        found.setdefault(artifact, {})[name] = _hash_file(file)
    return found


def hash_checkpoint(artifacts: Path, checkpoint: str) -> Hashes:
    """Hashes of one checkpoint folder."""
    names = {file.relative_to(artifacts).as_posix(): file for file in sorted((artifacts / checkpoint).iterdir())}
    files = {name: file for name, file in names.items() if file.is_file() and not VOLATILE.match(name)}
    return {checkpoint: {name: _hash_file(file) for name, file in files.items()}}


def _is_leftover(name: str) -> bool:
    return any(part.startswith(".") and part.endswith((TEMPORARY, SET_ASIDE)) for part in Path(name).parts)


def _artifact_of(name: str) -> str:
    """The file or folder that is published as a whole and contains this file."""
    parts = Path(name).parts
    if parts[0] == ".shards":
        return "/".join(parts[:3])
    if parts[0] == "training" and parts[1] != "blocks":
        return "/".join(parts[:3]) if len(parts) > 3 else name
    for path in (record.path for record in ASSETS.values()):
        if name == path or name.startswith(f"{path}/"):
            return path
    return name


def _hash_file(file: Path) -> str:
    content = file.read_bytes()
    if file.name in ("report.json", "trainer_state.json"):
        with contextlib.suppress(ValueError):  # an incomplete file matches no hash
            content = json.dumps(_without_speeds(json.loads(content)), sort_keys=True).encode()
    elif file.suffix == ".md":
        lines = content.decode(errors="replace").splitlines()
        content = "\n".join(line for line in lines if not _SPEED_LINES.search(line)).encode()
    return hashlib.sha256(content).hexdigest()


def _without_speeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_speeds(each) for key, each in value.items() if not _SPEED_KEYS.search(key)}
    return [_without_speeds(each) for each in value] if isinstance(value, list) else value


def compare(found: Hashes, expected: Hashes) -> list[str]:
    """Differences between two artifacts folders, one line each."""
    lines = _missing_and_unexpected(found, expected)
    for artifact in found.keys() & expected.keys():
        lines += [f"{artifact}: {line}" for line in _compare_files(found[artifact], expected[artifact])]
    return sorted(lines)


def _missing_and_unexpected(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    return lines + [f"{name} is unexpected" for name in found.keys() - expected.keys()]


def _compare_files(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    common = found.keys() & expected.keys()
    changed = [f"{name} has different content" for name in common if found[name] != expected[name]]
    return _missing_and_unexpected(found, expected) + changed


def find_inconsistent(
    artifacts: Path, old: Hashes | None, new: Hashes, intermediate: Iterable[Hashes] = ()
) -> list[str]:
    """Artifacts that are neither the old nor the new version, or are lost, one line each.

    Args:
        artifacts: the folder; no run is active.
        old: hashes before the run.
        new: hashes after an undisturbed run.
        intermediate: artifacts that an undisturbed run writes and later removes, such as earlier checkpoints.
    """
    known = [each for each in (old, new, *intermediate) if each]
    found = hash_artifacts(artifacts)
    lines = []
    for artifact, files in found.items():
        versions = [each[artifact] for each in known if artifact in each]
        if artifact == "ivr.yaml":
            continue
        if not versions:
            lines.append(f"{artifact} exists, but an undisturbed run does not write it")
        elif files not in versions:
            details = "; ".join(_compare_files(files, versions[-1]))
            lines.append(f"{artifact} is neither the old nor the new version: {details}")
    for artifact in (old or {}).keys() - found.keys():
        set_aside = (artifacts / artifact).parent / f".{Path(artifact).name}{SET_ASIDE}"
        # shards are a cache; a training first removes checkpoints of other trainings
        if not set_aside.exists() and not artifact.startswith(".shards") and "/checkpoint-" not in artifact:
            lines.append(f"{artifact} is lost")
    return sorted(lines)


def find_leftovers(artifacts: Path) -> list[str]:
    """Temporary files and folders, except Dagster's."""
    names = (file.relative_to(artifacts).as_posix() for file in artifacts.rglob("*"))
    unfinished = "embeddings/.token_distillation.safetensors"
    return sorted(
        name for name in names if not name.startswith(".dagster") and (_is_leftover(name) or name == unfinished)
    )
