"""A search for better training settings, built only on request."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from ivr_dagster.assets import OWNERS
from ivr_dagster.assets.display import inline_png
from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import document_sizes, ids_within
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.core.tokenizer.folder import TokenizerFolder
from ivr_dagster.core.tokens.display import markdown_table
from ivr_dagster.core.tokens.sequences import reference_encoder
from ivr_dagster.core.training.folders import TuningFolder
from ivr_dagster.core.vocabulary.rules import RemapRules, applied_rules
from ivr_dagster.errors import InputError
from ivr_dagster.io_managers.artifacts import mark_folder
from ivr_dagster.io_managers.tokenizers import training_tokenizer
from ivr_dagster.resources.accelerator import POOL, Accelerator, AcceleratorResource
from ivr_dagster.resources.base_model import BaseModel, BaseModelResource
from ivr_dagster.resources.progress import track
from ivr_dagster.resources.settings import ProjectSettings, SettingsResource
from ivr_dagster.storage.atomic import atomic_write, remove
from ivr_dagster.storage.content_hash import content_hash

if TYPE_CHECKING:
    from ivr_dagster.core.training.study import Trial
    from ivr_dagster.core.training.tune import TrialInput, TuneOptions, Tuning
    from ivr_dagster.core.training.validation import Validation

GROUP = "training"
# shares of the new tokens that are tried besides all of them
FEWER = (0.5, 0.25)
HOW_TO_USE = "`ivr train --config-path FILE`, or copy it to `sft_config.yaml` in the artifacts folder"


@dg.asset(
    deps=["base_model"],
    group_name=GROUP,
    kinds={"optuna", "pytorch"},
    owners=OWNERS,
    io_manager_key="tuning_io",
    pool=POOL,
    code_version="5",
    output_required=False,
)
def tuning_study(
    context: dg.AssetExecutionContext,
    settings: SettingsResource,
    accelerator: AcceleratorResource,
    base: BaseModelResource,
    cleaned_corpus: CleanedCorpus,
    initialized_model: ModelFolder,
) -> Iterator[dg.MaterializeResult[TuningFolder]]:
    """Better training settings: an Optuna study over learning rates, embedding phase and batch, in short trainings of
    the adapted model on a part of the train split.

    Trials are compared by bits per byte of other documents of that split. The first one has the current settings, and
    hopeless ones are pruned. No job or schedule builds this asset, nor does a run that also trains, such as
    *Materialize all*: materialize it without `sft_checkpoint`, or run `ivr tune`. A stopped or killed search resumes;
    other settings, text or models start a new study in the same `study.db`. The best settings are written to
    `sft_config.yaml` beside it; with `tune_new_tokens`, `settings.yaml` says if fewer new tokens did better. With
    `tune_vanilla`, a second study of as many trials searches for settings of the vanilla baseline.
    """
    if dg.AssetKey("sft_checkpoint") in context.job_def.asset_layer.executable_asset_keys:  # of this run
        context.log.info("no search for training settings, because this run also trains; select tuning_study by name")
        return
    yield _study(context, settings, accelerator, base, cleaned_corpus, initialized_model)


def _study(
    context: dg.AssetExecutionContext,
    settings: ProjectSettings,
    accelerator: Accelerator,
    base: BaseModel,
    cleaned_corpus: CleanedCorpus,
    initialized_model: ModelFolder,
) -> dg.MaterializeResult[TuningFolder]:
    from ivr_dagster.core.training.tune import TuneOptions, write_result

    started = time.monotonic()
    place, source = settings.paths["tuning_study"], settings.sft_config_file()
    mark_folder(place, "tuning_study", context.run.run_id)
    inputs = _trial_inputs(context, settings, base, cleaned_corpus, initialized_model)
    device, dtype = accelerator.resolved_device(), accelerator.resolved_dtype()
    report_trials = _report_trials(context, settings.tuning.tune_trials)
    options = TuneOptions(settings.compute.seed, device, dtype, _report_steps(context), report_trials)
    remove(inputs.work)
    try:
        tuning = _search(context, settings, inputs, options)
        vanilla = _search(context, settings, inputs, options, vanilla=True) if settings.tuning.tune_vanilla else None
    finally:
        remove(inputs.work)
    write_result(place, source, tuning, len(inputs.all_rules), vanilla)
    plots = tuning.study.plots()
    if vanilla is not None:
        plots |= {f"vanilla_{name}": png for name, png in vanilla.study.plots().items()}
    for name, png in plots.items():
        with atomic_write(place / name) as staged:
            staged.write_bytes(png)
    folder = TuningFolder(place)
    return dg.MaterializeResult(
        value=folder,
        data_version=dg.DataVersion(content_hash(folder.sft_config.read_text(encoding="utf-8"))),
        metadata=_figures(tuning)
        | ({} if vanilla is None else _vanilla_figures(vanilla))
        | {
            "seconds": round(time.monotonic() - started, 2),
            "trials in order": inline_png(plots["history.png"], "bits per byte by trial"),
            "by setting": inline_png(plots["settings.png"], "bits per byte by setting"),
            "file": dg.MetadataValue.path(folder.sft_config),
            "how to use it": dg.MetadataValue.md(HOW_TO_USE),
            "device": device,
            "dtype": dtype,
        },
    )


@dataclass(frozen=True)
class _TrialInputs:
    """What trials read. The files for a number of new tokens are written when the first such trial starts.

    Attributes:
        log: where this is reported.
        base: the base model.
        model, tokenizer, all_rules: the initialized model, its tokenizer, and the rules of all new tokens.
        rules: by number of new tokens to try; the first are all rules.
        train, validation: the documents of a trial.
        block_size: tokens per block.
        exceptions: of the setting `exceptions`.
        work: the folder of these files.
    """

    log: Any
    base: BaseModel
    model: ModelFolder
    tokenizer: TokenizerFolder
    all_rules: RemapRules
    rules: dict[int, RemapRules]
    train: list[str]
    validation: "Validation"
    block_size: int
    exceptions: int
    work: Path

    def fingerprint(self, config: str, seed: int, dtype: str) -> str:
        """Identifies all that the results of trials depend on; `config` is the digest of the training settings."""
        ingredients = [
            content_hash(self.model.path),
            content_hash(self.tokenizer.path),
            *(rules.digest() for rules in self.rules.values()),
            *self._texts_and_settings(config, seed, dtype),
        ]
        return content_hash(" ".join(ingredients))

    def vanilla_fingerprint(self, config: str, seed: int, dtype: str) -> str:
        """The same for trials of the vanilla baseline."""
        ingredients = ["vanilla", self.base.version(), *self._texts_and_settings(config, seed, dtype)]
        return content_hash(" ".join(ingredients))

    def _texts_and_settings(self, config: str, seed: int, dtype: str) -> list[str]:
        texts = map(content_hash, self.train)
        return [*texts, self.validation.digest(), config, *map(str, (self.block_size, self.exceptions, seed, dtype))]

    def write(self, number: int) -> "TrialInput":
        """Write model, tokenizer and blocks with a number of new tokens."""
        from ivr_dagster.core.training.fewer_new_tokens import write_model_with_base_rows, write_tokenizer_with_rules

        self.log.info(f"preparing trials with {number:,} new tokens")
        model, tokenizer, rules = self.model, self.tokenizer, self.rules[number]
        if number != len(self.all_rules):
            folder = self.work / f"model-{number}"
            folder.mkdir(parents=True)
            dropped = self.all_rules.new_tokens().keys() - rules.new_tokens().keys()
            write_model_with_base_rows(dropped, self.base.model(), model, folder)
            write_tokenizer_with_rules(rules, tokenizer, folder, self.train, exceptions=self.exceptions)
            model, tokenizer = ModelFolder(folder), TokenizerFolder(folder)
        return self._packed(str(number), model, tokenizer, rules.new_tokens())

    def write_vanilla(self, _: int) -> "TrialInput":
        """Write blocks with the base tokenizer; trials start from the base model."""
        return self._packed("vanilla", self.base.model(), self.base.tokenizer(), {})

    def _packed(
        self, name: str, model: ModelFolder, tokenizer: TokenizerFolder, new_tokens: Mapping[int, str]
    ) -> "TrialInput":
        """Pack the texts of a trial with a tokenizer."""
        from ivr_dagster.core.training.blocks import write_blocks
        from ivr_dagster.core.training.tune import TrialInput

        encode = reference_encoder(tokenizer.backend())
        packing = {
            "block_size": self.block_size,
            "eos_id": tokenizer.end_of_text_id(),
            "vocab_size": len(tokenizer.load()),
        }
        blocks = self.work / f"blocks-{name}"
        counts = write_blocks(encode(self.train), blocks, **packing)
        tokens_per_byte = counts.tokens / sum(len(text.encode("utf-8")) for text in self.train)
        return TrialInput(model.path, tokenizer.path, blocks, self.validation, new_tokens, tokens_per_byte)


def _search(
    context: dg.AssetExecutionContext,
    settings: ProjectSettings,
    inputs: _TrialInputs,
    options: "TuneOptions",
    *,
    vanilla: bool = False,
) -> "Tuning":
    """Search for settings of the adapted model or of the vanilla baseline."""
    from ivr_dagster.core.training.sft_config import read_sft_config
    from ivr_dagster.core.training.tune import ENOUGH_STEPS, tune

    source = settings.sft_config_file()
    config = read_sft_config(source, vanilla=vanilla).digest()
    if vanilla:
        context.log.info("tuning the vanilla baseline")
    identify, write = (
        (inputs.vanilla_fingerprint, inputs.write_vanilla) if vanilla else (inputs.fingerprint, inputs.write)
    )
    tuning = tune(
        settings.paths["tuning_study"],
        source,
        write,
        [0] if vanilla else list(inputs.rules),
        settings.tuning,
        identify(config, options.seed, options.dtype),
        options,
        vanilla=vanilla,
    )
    if tuning.steps < ENOUGH_STEPS:
        context.log.warning(
            f"a trial has only {tuning.steps} steps with the current batch; increase tune_bytes for clearer results"
        )
    return tuning


def _trial_inputs(
    context: dg.AssetExecutionContext,
    settings: ProjectSettings,
    base: BaseModel,
    corpus: CleanedCorpus,
    model: ModelFolder,
) -> _TrialInputs:
    from ivr_dagster.core.scoring.bits_per_byte import ScoringTokenizer
    from ivr_dagster.core.training.validation import Validation

    tokenizer, base_tokenizer = training_tokenizer(model.path, settings.paths), base.tokenizer()
    all_rules = applied_rules(tokenizer) if tokenizer.rules_file.is_file() else RemapRules(())
    train, validation = _texts(settings, corpus)
    block_size = settings.training.block_size or model.sequence_tokens()
    scoring = ScoringTokenizer.of(base_tokenizer.backend(), base_tokenizer.end_of_text_id())
    return _TrialInputs(
        context.log,
        base,
        model,
        tokenizer,
        all_rules,
        _rules_by_number(context, settings, all_rules, tokenizer, train),
        train,
        Validation.of(validation, scoring, block_size),
        block_size=block_size,
        exceptions=settings.tokenizer.exceptions,
        work=settings.paths["tuning_study"] / ".work",
    )


def _figures(tuning: "Tuning") -> dict[str, Any]:
    from ivr_dagster.core.training.study import COMPLETE, PRUNED

    best, default = tuning.best, tuning.default
    return {
        "best_bits_per_byte": best.value,
        **({"default_bits_per_byte": default.value} if default.state == COMPLETE else {}),
        "best_trial": best.number,
        "trials": tuning.finished,
        "trials_done_before": tuning.done_before,
        "given_up": sum(trial.state == PRUNED for trial in tuning.trials),
        "killed": len(tuning.trials) - tuning.finished,
        "tokens_per_byte": best.figures["tokens_per_byte"],
        "steps_of_a_trial": tuning.steps,
        "best settings": dg.MetadataValue.md(_settings_table(tuning)),
        "trials by bits per byte": dg.MetadataValue.md(_trials_table(tuning)),
    }


def _vanilla_figures(vanilla: "Tuning") -> dict[str, Any]:
    figures = _figures(vanilla)
    named = ("best_bits_per_byte", "default_bits_per_byte", "best_trial", "trials")
    return {f"vanilla_{name}": figures[name] for name in named if name in figures} | {
        "vanilla baseline, best settings": figures["best settings"],
        "vanilla baseline, trials by bits per byte": figures["trials by bits per byte"],
    }


def _texts(settings: ProjectSettings, corpus: CleanedCorpus) -> tuple[list[str], list[str]]:
    """Documents that every trial trains on, and documents that it is validated on."""
    from ivr_dagster.core.training.tune import VALIDATION_SHARE

    def documents() -> Iterator[tuple[str, str]]:
        return islice(corpus.documents("train"), settings.corpus.max_texts or None)

    sizes = document_sizes(documents())
    size = min(settings.tuning.tune_bytes, sum(sizes.values()))
    validation, _ = ids_within(sizes, max(1, round(VALIDATION_SHARE * size)), from_the_end=True)
    train, _ = ids_within({i: each for i, each in sizes.items() if i not in validation}, size)
    if not train:
        raise InputError(
            f"a trial needs documents to train and to validate on, but the train split has {len(validation)}",
            where=corpus.path,
            remedy="Add documents, or split them with a smaller --text-split-bytes",
        )
    texts = {i: text for i, text in documents() if i in train or i in validation}
    return [texts[i] for i in sorted(train)], [texts[i] for i in sorted(validation)]


def _rules_by_number(
    context: dg.AssetExecutionContext,
    settings: ProjectSettings,
    rules: RemapRules,
    tokenizer: TokenizerFolder,
    texts: list[str],
) -> dict[int, RemapRules]:
    """By number of new tokens, all rules and, with `tune_new_tokens`, the best of them in these texts."""
    from ivr_dagster.core.training.fewer_new_tokens import best_rules

    found = {len(rules): rules}
    if not settings.tuning.tune_new_tokens:
        return found
    if settings.paths.external.keys() & {"external_train_model", "external_train_tokenizer"}:
        context.log.warning("the model or the tokenizer is external: only the current number of new tokens is tried")
        return found
    fewer = (best_rules(rules, tokenizer, texts, number) for share in FEWER if (number := round(share * len(rules))))
    return found | {len(each): each for each in fewer}


def _report_steps(context: dg.AssetExecutionContext) -> Callable[[int, int], None]:
    """Progress of the current trial."""
    advance: Any = None
    last = 0

    def on_step(done: int, steps: int) -> None:
        nonlocal advance, last
        if advance is None or done < last:
            advance = track(context.log, "current trial", "steps")
        last = done
        advance(done, steps)

    return on_step


def _report_trials(context: dg.AssetExecutionContext, wanted: int) -> Callable[["Trial", int], None]:
    advance = track(context.log, "search", "trials")

    def on_trial(trial: "Trial", done: int) -> None:
        result = f"{trial.value:.4f} bits per byte" if trial.value is not None else "no result"
        pruned = f", pruned: {trial.note}" if trial.note else ""
        context.log.info(f"trial {trial.number}: {result}{pruned}, {trial.seconds:.0f} s, {trial.parameters}")
        advance(done, wanted)

    return on_trial


def _settings_table(tuning: "Tuning") -> str:
    names = list(tuning.best.parameters)
    before, now = ([each.parameters[name] for name in names] for each in (tuning.default, tuning.best))
    rows = [[f"`{name}`", f"{old:g}", f"{new:g}"] for name, old, new in zip(names, before, now, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [["setting", "was", "best"], ["---"] * 3, *rows])


def _trials_table(tuning: "Tuning") -> str:
    rows = sorted(tuning.trials, key=lambda trial: (trial.state, trial.value is None, trial.value))
    return markdown_table(
        pl.DataFrame(
            {
                "trial": [trial.number for trial in rows],
                "state": [trial.state for trial in rows],
                "bits per byte": [f"{trial.value:.4f}" if trial.value is not None else "–" for trial in rows],
                "tokens per byte": [str(trial.figures.get("tokens_per_byte", "–")) for trial in rows],
                "seconds": [round(trial.seconds, 1) for trial in rows],
                "settings": [
                    ", ".join(f"{key} {value:g}" for key, value in trial.parameters.items()) for trial in rows
                ],
            }
        )
    )
