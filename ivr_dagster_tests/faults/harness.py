"""The real `ivr` on a tiny pipeline, killed and starved, and what its artifacts are held against.

What belongs here: commands that can be killed with all that they started, the hashes of an artifacts folder, and when a
folder is whole. The hashes are taken here, by nothing of the project's own: a file is looked up in those that an
undisturbed run left.

Commands are processes of multiprocessing's fork server, which has the heavy libraries imported once: each is a process
of its own from there on, in a session of its own, and runs `ivr_dagster.cli.app.main`. `as_command` starts the console
script itself, which is slower by the imports.
"""

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, cast

import psutil
import yaml

from ivr_dagster.pipeline import ASSETS, STAGES

KILLS = int(os.environ.get("FAULTS_KILLS", "6"))
FUZZ_CASES = int(os.environ.get("FAULTS_FUZZ_CASES", "400"))
SEED = int(os.environ.get("FAULTS_SEED", "20261128"))

# by step: an asset's name, or that of the multi-asset
STAGE_OF = {asset.name: asset.stage for asset in ASSETS.values() if asset.stage in STAGES}
STAGE_OF["token_statistics"] = "analyze"
# before the first step: imports, looking at sources, finding out what is stale
START_UP = "start-up"
PLACES = (START_UP, *STAGES)

# what runs import; named here, they are imported once
PRELOADED = [
    "ivr_dagster.cli.project",
    "ivr_dagster.cli.rendering",
    "ivr_dagster.core.training.sft",
    "ivr_dagster.core.training.row_trainer",
    "ivr_dagster.core.evaluation.plots",
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.trainer",
    "transformers.integrations.integration_utils",
    "datasets",
    "ruamel.yaml",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
]
# what libraries read when they are imported; on one thread results are the same to the bit
LIBRARIES = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
MARK = "FAULT_HARNESS"
PATIENCE_SECONDS = 240.0

SETTINGS: dict[str, Any] = {
    "heldout_fraction": 0.1,
    "max_candidates": 40,
    "train_bytes": 3_000,
    "block_size": 32,
    "evaluation_bytes": 500,
    "retention_bytes": 0,
    "continuations": 0,
    "token_distillation_bytes": 3_000,
    "vanilla_compute": False,
}
TRAINING = (
    "num_train_epochs: 1\nlearning_rate: 2.0e-3\nper_device_train_batch_size: 4\nsave_steps: 2\nlogging_steps: 1\n"
    "save_total_limit: 2\n"
)

# Left out of what is compared, each for its reason:
VOLATILE = re.compile(
    r"""
      \.dagster/            # Dagster's records: ids and times
    | (.*/)?\.[^/]*lock(\.holder)?$  # locks
    | (.*/)?\.[^/]*ivr\.json    # who wrote an artifact and when; checked by `ivr status --verify`
    | (.*/)?seal\.json      # times of files
    | \.shards/files\.json  # times of files
    | (.*/)?logs/           # TensorBoard: times
    | (.*/)?training_args\.bin  # names the folder
    | (.*/)?complete\.json  # the run's fingerprint, with a checkpoint beside it that is compared
    | (.*/)?torchrun/
    | embeddings/\.token_distillation\.safetensors  # under way; see `leftovers`
    """,
    re.VERBOSE,
)
STAGED, ASIDE = ".tmp", ".old"
# figures of speed, which differ from run to run
_SPEEDS = re.compile(r"(tokens|bytes|samples|steps|flops)_per_second|runtime|seconds|mfu")
_SPEED_LINES = re.compile(r"bytes per second|^\| `(base|sft)` \| [\d,.]+ \| [\d,]+ \| [\d.]+ \| [\d,]+ \|$")

Contents = dict[str, dict[str, str]]


# commands


@dataclass(frozen=True)
class Kill:
    """When a command kills itself and all it started.

    Attributes:
        event: a file operation below the artifacts folder, as :func:`file_operation` names it.
        after: right after it, not before.
    """

    event: str
    after: bool = False

    def happen(self) -> None:
        """In the command, before the operation."""
        if self.after:
            # ends this process a moment later, as suddenly; whoever started it then kills the others
            signal.setitimer(signal.ITIMER_REAL, 0.000_2)
        else:
            os.killpg(0, signal.SIGKILL)


@dataclass(frozen=True)
class Fill:
    """When the disk becomes full.

    Attributes:
        event: a file operation.
        ballast: the file that fills the disk; where it is None, no file may grow from there on.
        free: bytes that stay.
    """

    event: str
    ballast: Path | None
    free: int = 0

    def happen(self) -> None:
        """In the command, before the operation."""
        if self.ballast is None:
            Limits(file_size=self.free).take_effect()
            return
        file = os.open(self.ballast, os.O_WRONLY | os.O_CREAT)
        size, step = 0, 1 << 20
        while step >= 1 << 12:
            try:
                size += os.write(file, bytes(step))
            except OSError:
                step //= 2
        os.ftruncate(file, max(0, size - self.free))
        os.close(file)


@dataclass(frozen=True)
class Starve:
    """When memory runs out.

    Attributes:
        event: a file operation.
        memory: bytes of address space that may still be taken.
    """

    event: str
    memory: int

    def happen(self) -> None:
        """In the command, before the operation."""
        Limits(memory=self.memory).take_effect()


Happening = Kill | Fill | Starve


@dataclass(frozen=True)
class Limits:
    """What a command is given less of than others.

    Attributes:
        permissions: whether files' permissions bind it, which they do not for root.
        memory: bytes of address space beyond what the libraries take that are imported anyway.
        file_size: bytes that a file may have.
    """

    permissions: bool = False
    memory: int | None = None
    file_size: int | None = None

    def take_effect(self) -> None:
        """On this process."""
        if self.file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, self.file_size))
        if self.memory is not None:
            most = psutil.Process().memory_info().vms + self.memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if self.permissions:
            _have_permissions_bind()


def _have_permissions_bind() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, numbers 1 and 2 (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for which in range(3):  # effective, permitted, inheritable
        sets[which] &= ~0b110
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


class Command:
    """A command at work, in a session of its own."""

    def __init__(
        self,
        arguments: Iterable[str],
        streams: Path,
        *,
        program: str = "ivr",
        environment: Mapping[str, str] | None = None,
        as_command: bool = False,
        limits: Limits | None = None,
        happening: Happening | None = None,
        operations: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: after the program's name.
            streams: a folder for what it says.
            program: ivr or dagster.
            environment: beside the little that all commands have.
            as_command: as the console script.
            limits: what it is given less of.
            happening: what befalls it at a file operation.
            operations: a file for the names of its file operations, a line each.
        """
        self.arguments = [*arguments]
        streams.mkdir(parents=True, exist_ok=True)
        self._out, self._err = streams / "stdout", streams / "stderr"
        self.mark = os.urandom(8).hex()
        keep = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "HOME", "TMPDIR") if name in os.environ
        }
        whole = keep | LIBRARIES | {"HF_HOME": str(streams / "hub"), MARK: self.mark} | dict(environment or {})
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Any = None
        if as_command:
            script = str(Path(sys.executable).with_name(program))
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._popen = subprocess.Popen(
                    [script, *self.arguments], env=whole, stdout=out, stderr=err, start_new_session=True
                )
            self.pid = self._popen.pid
        else:
            self._out.touch()
            self._err.touch()
            for stream in (self._out, self._err):
                stream.chmod(0o666)
            given = (self.arguments, program, whole, str(self._out), str(self._err), limits, happening, operations)
            self._process = fork_server().Process(target=_command, args=given)
            self._process.start()
            self.pid = self._process.pid
        self.started = time.monotonic()

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it is at work."""
        if self._popen is not None:
            return self._popen.poll()
        return cast("int | None", self._process.exitcode)

    @property
    def said(self) -> str:
        """Its standard error."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    @property
    def told(self) -> str:
        """Its standard output."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit code, once it has ended; it must within this time."""
        end = time.monotonic() + seconds
        while (code := self.code) is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"ivr {' '.join(self.arguments)} goes on for ever:\n{self.said[-3_000:]}")
            time.sleep(0.01)
        return code

    def kill(self) -> bool:
        """SIGKILL to its process group and to what else it started; whether it was at work."""
        was_at_work = self.code is None
        end = time.monotonic() + 10
        while was_at_work and self.code is None and time.monotonic() < end:
            try:
                if os.getpgid(self.pid) == self.pid:
                    os.killpg(self.pid, signal.SIGKILL)
                    break
            except ProcessLookupError:
                break
            time.sleep(0.001)  # it has not begun its session yet
        if was_at_work:
            self.wait()
        return was_at_work

    def left_over(self, seconds: float = 5.0) -> list[str]:
        """What of it still lives after this time; what is found is killed."""
        end = time.monotonic() + seconds
        while (found := self._living()) and time.monotonic() < end:
            time.sleep(0.05)
        told = []
        for process in found:
            try:
                told.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return told

    def _living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == self.pid:
                    continue
                if os.getsid(process.pid) == self.pid or process.environ().get(MARK) == self.mark:
                    found.append(process)
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue
        return found

    def steps(self) -> list[str]:
        """The assets that it began to make, in order; of a command that was given `--log-level DEBUG`."""
        return [name for name in re.findall(r'Started execution of step "(\w+)"', self.said) if name in STAGE_OF]

    def place(self) -> str:
        """The stage that it is at, or was at when it ended."""
        steps = self.steps()
        return STAGE_OF[steps[-1]] if steps else START_UP

    def reaches(self, step: str, seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether it begins to make this asset; False once it has ended without."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.code is not None
            if step in self.steps():
                return True
            if ended:
                return False
            time.sleep(0.004)
        self.kill()
        raise AssertionError(f"{step} is never begun:\n{self.said[-3_000:]}")


_SERVER: Any = None
_SERVER_LOCK = threading.Lock()


def fork_server() -> Any:
    """A context whose processes have the libraries imported."""
    global _SERVER
    with _SERVER_LOCK:
        if _SERVER is None:
            _SERVER = multiprocessing.get_context("forkserver")
            _SERVER.set_forkserver_preload(PRELOADED)
            before = dict(os.environ)
            for name in before:
                if name.startswith(("IVR_", "DAGSTER_")):  # settings of whoever runs the tests
                    del os.environ[name]
            os.environ |= LIBRARIES
            try:
                forkserver.ensure_running()
            finally:
                os.environ.clear()
                os.environ.update(before)
        return _SERVER


def _command(
    arguments: list[str],
    program: str,
    environment: dict[str, str],
    out: str,
    err: str,
    limits: Limits | None,
    happening: Happening | None,
    operations: Path | None,
) -> None:
    os.setsid()
    for number, name in ((0, os.devnull), (1, out), (2, err)):
        descriptor = os.open(name, (os.O_RDONLY if number == 0 else os.O_WRONLY) | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        setattr(sys, name, open(number, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False))  # noqa: SIM115
    # as in a console script; the fork server's own locks would outlive those who are killed
    multiprocessing.set_start_method("fork", force=True)
    os.environ.clear()
    os.environ.update(environment)
    if happening is not None or operations is not None:
        _watch_operations(Path(arguments[arguments.index("--artifacts-dir") + 1]), happening, operations)
    if limits is not None:
        limits.take_effect()
    sys.argv = [program, *arguments]
    if program == "dagster":
        from dagster._cli import main as dagster_main

        dagster_main()
    else:
        from ivr_dagster.cli.app import main

        main()


# file operations


def file_operation(event: str, arguments: tuple[Any, ...], root: Path) -> str | None:
    """The name of a file operation below `root`, the same in every run; None for what changes nothing there."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, (str, bytes, os.PathLike)) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
        places = [_place(path, -1)]
    elif event in ("os.rename", "os.link"):
        places = [_place(path, where) for path, where in zip(arguments[:2], arguments[2:4], strict=True)]
    elif event in ("os.remove", "os.rmdir", "shutil.rmtree"):
        places = [_place(arguments[0], arguments[1] if len(arguments) > 1 else None)]
    elif event == "os.mkdir":
        places = [_place(arguments[0], arguments[2])]
    else:
        return None
    names = [os.path.relpath(place, root) for place in places]
    if any(name.startswith((".dagster", "..", ".ivr")) and not name.endswith(".json") for name in names):
        return None
    if any(name.startswith((".dagster", "..")) for name in names):
        return None
    # a temporary name carries numbers of its own, TensorBoard's file time and host
    plain = [re.sub(r"\.\d+-[0-9a-f]{8}\.tmp", ".N.tmp", name) for name in names]
    plain = [re.sub(r"tfevents.*", "tfevents", name) for name in plain]
    return f"{event} {' → '.join(plain)}"


def _place(path: Any, folder: int | None) -> str:
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else f"/proc/self/fd/{path}"
    if not name.startswith("/"):
        at = f"/proc/self/fd/{folder}" if folder is not None and folder >= 0 else "."
        name = os.path.join(os.path.realpath(at), name)  # noqa: PTH118 (what an audit hook does is kept small)
    return name


def _watch_operations(root: Path, happening: Happening | None, operations: Path | None) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    log = os.open(operations, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if operations else -1
    waiting = [happening] if happening is not None else []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (log < 0 and not waiting) or (event != "open" and not event.startswith(("os.", "shutil."))):
            return
        name = file_operation(event, arguments, root)
        if name is None:
            return
        if log >= 0:
            os.write(log, f"{name}\n".encode())
        if waiting and name == waiting[0].event:
            waiting.pop().happen()  # once, and it may write files itself

    sys.addaudithook(hook)


# hashes


def contents(artifacts: Path) -> Contents:
    """Hashes by file of each artifact that stands under its final name; what is volatile is left out.

    An artifact is what appears at once: a folder or a file. A checkpoint counts once it is marked as complete.
    """
    found: Contents = {}
    for file in sorted(artifacts.rglob("*")):
        name = file.relative_to(artifacts).as_posix()
        if not file.is_file() or VOLATILE.match(name) or is_leftover(name):
            continue
        unit = unit_of(name)
        if "/checkpoint-" in unit and not (artifacts / unit / "complete.json").is_file():
            continue
        found.setdefault(unit, {})[name] = _digest(file)
    return found


def is_leftover(name: str) -> bool:
    """Whether a name is that of something half-written, or put aside."""
    return any(part.startswith(".") and part.endswith((STAGED, ASIDE)) for part in Path(name).parts)


def unit_of(name: str) -> str:
    """What appears together with a file, by its path."""
    parts = Path(name).parts
    if parts[0] == ".shards":
        return "/".join(parts[:3])
    if parts[0] == "training" and parts[1] != "blocks":
        return "/".join(parts[:3]) if len(parts) > 3 else name
    for place in (record.path for record in ASSETS.values()):
        if name == place or name.startswith(f"{place}/"):
            return place
    return name


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if file.name in ("report.json", "trainer_state.json"):
        with contextlib.suppress(ValueError):  # not whole: its hash is nobody's
            content = json.dumps(_without_speeds(json.loads(content)), sort_keys=True).encode()
    elif file.suffix == ".md":
        content = "\n".join(
            line for line in content.decode(errors="replace").splitlines() if not _SPEED_LINES.search(line)
        ).encode()
    return hashlib.sha256(content).hexdigest()


def _without_speeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_speeds(each) for key, each in value.items() if not _SPEEDS.search(key)}
    return [_without_speeds(each) for each in value] if isinstance(value, list) else value


def differences(found: Contents, wanted: Contents) -> list[str]:
    """How an artifacts folder differs from that of an undisturbed run, a line each."""
    lines = [f"{unit} is missing" for unit in wanted.keys() - found.keys()]
    lines += [f"{unit} is there and should not be" for unit in found.keys() - wanted.keys()]
    for unit in found.keys() & wanted.keys():
        lines += _unlike(unit, found[unit], wanted[unit])
    return sorted(lines)


def _unlike(unit: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    lines = [f"{unit}: {name} is missing" for name in wanted.keys() - found.keys()]
    lines += [f"{unit}: {name} is there and should not be" for name in found.keys() - wanted.keys()]
    lines += [f"{unit}: {name} has another content" for name in found if name in wanted and found[name] != wanted[name]]
    return lines


def broken(artifacts: Path, old: Contents | None, new: Contents, passing: Iterable[Contents] = ()) -> list[str]:
    """What of an artifacts folder is not whole at some moment, a line each.

    Args:
        artifacts: the folder; nothing is at work on it.
        old: what was there when the run began.
        new: what an undisturbed run ends with.
        passing: what an undisturbed run has under way and does not keep, such as earlier checkpoints.
    """
    known = [each for each in (old, new, *passing) if each]
    found = contents(artifacts)
    lines = []
    for unit, files in found.items():
        versions = [each[unit] for each in known if unit in each]
        if unit == "ivr.yaml":
            continue
        if not versions:
            lines.append(f"{unit} stands there and no undisturbed run has it")
        elif files not in versions:
            lines.append(
                f"{unit} is neither the old one nor the new one: {'; '.join(_unlike(unit, files, versions[-1]))}"
            )
    for unit in old or {}:
        kept_aside = (artifacts / unit).parent / f".{Path(unit).name}{ASIDE}"
        if unit not in found and not kept_aside.exists() and not _may_go(unit):
            lines.append(f"{unit} was there and is lost")
    return sorted(lines)


def _may_go(unit: str) -> bool:
    """Kept for speed alone, or removed on purpose: a training begins by removing another's checkpoints."""
    return unit.startswith(".shards") or "/checkpoint-" in unit


def leftovers(artifacts: Path) -> list[str]:
    """Temporary names, those of Dagster's records left out."""
    names = (file.relative_to(artifacts).as_posix() for file in artifacts.rglob("*"))
    under_way = "embeddings/.token_distillation.safetensors"
    return sorted(
        name for name in names if not name.startswith(".dagster") and (is_leftover(name) or name == under_way)
    )


# the pipeline


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed.

    Attributes:
        folder: its artifacts, to be copied.
        contents: their hashes.
        seconds: by asset, in order, how long its step took, until the next began; `start-up` comes first.
        passing: checkpoints that were there for a while, each by itself.
        operations: names of its file operations, in order, each once.
    """

    folder: Path
    contents: Contents
    seconds: dict[str, float]
    passing: list[Contents] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)

    def moment(self, place: str, rng: random.Random) -> tuple[str, float]:
        """A random moment of a stage: the asset, and the seconds since it was begun."""
        steps = [step for step in self.seconds if STAGE_OF.get(step, START_UP) == place]
        step = rng.choices(steps, [self.seconds[each] for each in steps])[0]
        return step, rng.uniform(0, self.seconds[step])

    def operations_of(self, stage: str) -> list[str]:
        """The file operations on what a stage makes, in order."""
        places = [asset.path for asset in ASSETS.values() if asset.stage == stage]
        return [each for each in self.operations if any(_is_about(each, place) for place in places)]

    def operation_before(self, stage: str) -> str:
        """The last file operation before the first step of a stage makes anything."""
        return self.operations[self.operations.index(self.operations_of(stage)[0]) - 1]


def _prepare(root: Path) -> None:
    from ivr_dagster_tests.small_pipeline import documents, prepare, write_documents, write_tiny_model

    write_tiny_model(root / "model", 600)
    prepare(root, 60)
    shutil.copytree(root / "raw", root / "raw_later")
    write_documents(root / "raw_later/more.jsonl", documents()[60:75])
    (root / "sft_config.yaml").write_text(TRAINING)


def _is_about(operation: str, place: str) -> bool:
    """Whether it is on an artifact, on its temporary name or on what is kept beside it."""
    parent, _, name = place.rpartition("/")
    inside = rf"{re.escape(parent)}/" if parent else ""
    return re.search(rf"[ ]{inside}\.*{re.escape(name)}(\.ivr\.json)?(\.N\.tmp|\.old)?(/|$| )", operation) is not None


class Pipeline:
    """A tiny model, two corpora, training settings; artifacts folders of them.

    Args:
        root: a folder for model and corpora, filled once.
        fast: a folder for artifacts, in memory where there is room.
    """

    def __init__(self, root: Path, fast: Path) -> None:
        self.root, self.fast = root, fast
        self._count = 0

    def prepare(self) -> None:
        """Write model, corpora and training settings."""
        process = fork_server().Process(target=_prepare, args=(self.root,))
        process.start()
        process.join()
        assert process.exitcode == 0

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a first run."""
        places = {"model_name": "model", "raw_corpora_dir": "raw", "config_path": "sft_config.yaml"}
        return SETTINGS | {key: str(self.root / name) for key, name in places.items()}

    @property
    def later_settings(self) -> dict[str, Any]:
        """Those of a run on what the first one left: more text, fewer tokens."""
        return self.settings | {"raw_corpora_dir": str(self.root / "raw_later"), "max_candidates": 30}

    def folder(self, settings: Mapping[str, Any], start: Path | None = None) -> Path:
        """An artifacts folder with these settings, empty or a copy of another."""
        self._count += 1
        folder = self.fast / f"{os.getpid()}-{threading.get_ident()}-{self._count}" / "artifacts"
        if start is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(start, folder)
        (folder / "ivr.yaml").write_bytes(self.yaml(settings))
        return folder

    def yaml(self, settings: Mapping[str, Any]) -> bytes:
        """A settings file."""
        return yaml.safe_dump(dict(settings)).encode()

    def discard(self, artifacts: Path) -> None:
        """Delete what :meth:`folder` made."""
        shutil.rmtree(artifacts.parent)

    def start(self, artifacts: Path, *arguments: str, level: str = "DEBUG", **how: Any) -> Command:
        """A command on a folder; `ivr run` unless told otherwise."""
        asked = arguments or ("run",)
        general = ["--artifacts-dir", str(artifacts), "--log-level", level]
        return Command([*general, *asked], artifacts.parent / f"said-{time.monotonic_ns()}", **how)

    def run(self, artifacts: Path, *arguments: str, **how: Any) -> Command:
        """The same, ended."""
        command = self.start(artifacts, *arguments, **how)
        command.wait()
        return command

    def reference(
        self, settings: Mapping[str, Any], start: Path | None = None, name: str = "first", *, until: str = "evaluate"
    ) -> Reference:
        """Run undisturbed, and remember what came of it below `root`."""
        artifacts = self.folder(settings, start)
        operations = artifacts.parent / "operations"
        command = self.start(artifacts, "run", "--until", until, operations=operations)
        begun: dict[str, float] = {START_UP: command.started}
        passing: dict[tuple[str, int], Contents] = {}
        while command.code is None:
            for step in command.steps():
                begun.setdefault(step, time.monotonic())
            for marker in artifacts.glob("training/*/checkpoint-*/complete.json"):
                with contextlib.suppress(FileNotFoundError):  # removed while it is looked at
                    version = marker.parent.relative_to(artifacts).as_posix(), marker.stat().st_mtime_ns
                    if version not in passing:
                        hashes = _one_folder(artifacts, version[0])
                        marker.stat()  # still whole
                        passing[version] = hashes
            time.sleep(0.004)
        ended = time.monotonic()
        assert command.code == 0, command.said[-3_000:]
        assert self.states(artifacts) == {} or until != "evaluate"
        ends = [*list(begun.values())[1:], ended]
        seconds = {step: end - start for (step, start), end in zip(begun.items(), ends, strict=True)}
        kept = self.root / name
        shutil.copytree(artifacts, kept)
        done = list(dict.fromkeys(operations.read_text().splitlines()))
        found = Reference(kept, contents(artifacts), seconds, [*passing.values()], done)
        self.discard(artifacts)
        return found

    def states(self, artifacts: Path) -> dict[str, str]:
        """Assets that are not fresh, and why."""
        asked = self.run(artifacts, "--json", "status", level="WARNING")
        assert asked.code == 0, asked.said[-3_000:]
        return {row["asset"]: row["stale"] for row in json.loads(asked.told)["assets"] if not row["fresh"]}

    def verified(self, artifacts: Path) -> str:
        """What the project's own verification finds damaged; empty where it finds nothing."""
        asked = self.run(artifacts, "status", "--verify", level="WARNING")
        return "" if asked.code == 0 else f"ivr status --verify ended with {asked.code}: {asked.told}{asked.said}"


def _one_folder(artifacts: Path, unit: str) -> Contents:
    files = sorted(file for file in (artifacts / unit).iterdir() if file.is_file())
    names = {file.relative_to(artifacts).as_posix(): file for file in files}
    return {unit: {name: _digest(file) for name, file in names.items() if not VOLATILE.match(name)}}


def nothing_is(wrong: Sequence[str]) -> None:
    """Fail with all that is wrong."""
    assert not wrong, "\n".join(wrong)


def final_losses(artifacts: Path) -> dict[str, float]:
    """The last loss of each training, nats per token."""
    histories = sorted(artifacts.glob("training/*/history.json"))
    return {file.parent.name: json.loads(file.read_text())["losses"][-1][1] for file in histories}


@dataclass
class Tally:
    """What was counted, by stage."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    resumed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    violations: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    cycles: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lost(self, place: str) -> int:
        """How many kills in a stage something was lost or damaged after."""
        return sum(where == place for where, _ in self.violations)

    def table(self) -> str:
        """By stage, for people."""
        lines = [f"{'stage':18}{'kills':>7}{'resumed':>9}{'lost':>6}"]
        for place in PLACES:
            lines.append(f"{place:18}{self.kills[place]:7}{self.resumed[place]:9}{self.lost(place):6}")
        total = sum(self.kills.values()), sum(self.resumed.values()), len(self.violations)
        lines.append(f"{'all':18}{total[0]:7}{total[1]:9}{total[2]:6}")
        return "\n".join([*lines, f"{self.cycles} cycles, {self.seconds:,.0f} s"])


def side_by_side(jobs: Iterator[Callable[[], None]], workers: int) -> None:
    """Do jobs, some at a time; the first error ends all."""
    lock, errors = threading.Lock(), []

    def work() -> None:
        while not errors:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:  # noqa: BLE001 (told by the main thread)
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
