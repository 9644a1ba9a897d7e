"""One run, top to bottom: which hook, in which order. Models and tensors pass through unseen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec

from oumi_kernel.config import Moments, TrainTarget
from oumi_kernel.contracts import Run, Session, Strategy, Summary, Trainer, World
from oumi_kernel.disk import reserved
from oumi_kernel.errors import OumiError, StopRequested
from oumi_kernel.final_model import save_final_model
from oumi_kernel.launch import world_from
from oumi_kernel.loading import LoadedConfig
from oumi_kernel.logs import logging_to
from oumi_kernel.manifest import PreparedData, fingerprint, parameter_counts, run_record, with_model, write_json
from oumi_kernel.mixture import Mixture, mix
from oumi_kernel.placed_errors import errors_placed
from oumi_kernel.plugins import Kernel, Resolution
from oumi_kernel.plugins.slots import filled_splits
from oumi_kernel.preflight import Agrees, facts_of
from oumi_kernel.repeat import data_difference, version_differences
from oumi_kernel.report import Report
from oumi_kernel.seeds import with_seeds
from oumi_kernel.stopping import Interrupted, Stop

_log = logging.getLogger(__name__)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before there is a model.

    Attributes:
        run: The run.
        kernel: The active components.
        strategy: How a step is done; it is set up.
        tokenizer: The tokenizer.
        trainer: The training method.
        rows: Split -> rows as they were read and mixed.
        targets: Split -> on which tokens the loss is computed.
        data: The prepared data.
    """

    run: Run
    kernel: Kernel
    strategy: Strategy
    tokenizer: Any
    trainer: Trainer
    rows: dict[str, Mixture]
    targets: dict[str, TrainTarget]
    data: PreparedData


def run_training(loaded: LoadedConfig, resolution: Resolution, world: World | None = None) -> Summary:
    """Train as a resolved configuration says, and leave the model, `run.json` and logs in `training.output_dir`.

    Raises:
        OumiError: Anything that the user can act on; `failure.json` then says what and where.
    """
    resolution.raise_for_problems(strict=True)
    world = world or world_from()
    loaded = with_seeds(loaded, world)
    run = Run(config=loaded.config, folder=loaded.folder, world=world)
    stop = Stop()
    with logging_to(run), reserved(run.output_dir, run.world.rank):
        log_warnings(loaded, resolution)
        kernel = Kernel(resolution)
        if run.world.is_main:
            (run.output_dir / "failure.json").unlink(missing_ok=True)  # an earlier run's
        with stop.listening():
            try:
                with errors_placed(kernel, loaded):
                    return _train(kernel, run, loaded, stop)
            except BaseException as error:
                stop.settle()
                reported = _as_reported(error)
                _report_failure(kernel, run, reported)
                if reported is error:
                    raise
                raise reported from error


def _train(kernel: Kernel, run: Run, loaded: LoadedConfig, stop: Stop) -> Summary:
    strategy = kernel.build_strategy(run)
    strategy.setup()
    try:
        stage = prepare(kernel, strategy, run)
        difference = data_difference(loaded.record, stage.data) if loaded.record else ""
        record = run_record(loaded, kernel.manager.entries(), stage.data)
        if run.world.is_main:
            write_json(run.output_dir / "run.json", record)
        log_difference(difference)
        if isinstance(strategy, Agrees):
            strategy.agree(facts_of(record), run.output_dir)
        session = assemble(stage, kernel.build_model(stage.tokenizer, stage.data.examples, run))
        session.stop = stop
        if run.world.is_main:
            write_json(run.output_dir / "run.json", with_model(record, session.prepared.model, kernel.reports(run)))
        _log.info("%s", header(session, session.prepared.model))
        stop.wait()
        summary = stage.trainer.train(session)
        kernel.train_end(run, summary)
        if run.config.training.save_final_model:
            save_final_model(session)
        log_difference(difference)
        return summary
    finally:
        strategy.close()


def prepare(kernel: Kernel, strategy: Strategy, run: Run) -> Stage:
    """Load, mix and prepare every split, before the model takes memory and before any process group can time out."""
    kernel.before_model(run)
    tokenizer = kernel.build_tokenizer(run)
    trainer = kernel.build_trainer(tokenizer, run)
    examples: dict[str, Any] = {}
    mixed: dict[str, Mixture] = {}
    targets: dict[str, TrainTarget] = {}
    for name, split in filled_splits(run.config):
        parts = [kernel.load_dataset(name, index, run) for index in range(len(split.datasets))]
        mixed[name] = mix(parts, split, split_name=name)
        target = split.train_target or run.config.data.train.train_target
        targets[name] = target or TrainTarget(kernel.collator_train_target(name))
        examples[name] = trainer.prepare(name, mixed[name], targets[name])
    data = PreparedData(
        examples=examples,
        rows={name: len(rows) for name, rows in mixed.items()},
        fingerprints={name: fingerprint(prepared) for name, prepared in examples.items()},
        weights=kernel.weights(run) if run.world.is_main else {},
    )
    return Stage(
        run=run,
        kernel=kernel,
        strategy=strategy,
        tokenizer=tokenizer,
        trainer=trainer,
        rows=mixed,
        targets=targets,
        data=data,
    )


def assemble(stage: Stage, model: Any) -> Session:
    """Put a model between its optimizer and schedule, and everything beside it that a loop works with."""
    run, kernel, trainer = stage.run, stage.kernel, stage.trainer
    plan = trainer.plan(stage.data.examples)

    def build(final: Any) -> tuple[Any, Any]:
        groups = kernel.group_parameters(trainer.parameter_groups(final), final, plan, run)
        optimizer = kernel.build_optimizer(groups, run)
        return optimizer, kernel.build_scheduler(optimizer, plan.total_steps, run)

    splits = filled_splits(run.config)
    return Session(
        run=run,
        kernel=kernel,
        strategy=stage.strategy,
        prepared=stage.strategy.prepare(model, build),
        tokenizer=stage.tokenizer,
        plan=plan,
        examples=stage.data.examples,
        collators={name: kernel.build_collator(name, split, stage.tokenizer, run) for name, split in splits},
        build_metrics=lambda: kernel.build_metrics(run),
    )


def log_warnings(loaded: LoadedConfig, resolution: Resolution) -> None:
    """Write what is allowed but probably not meant, and what is not as it was when a run was recorded."""
    entries = [choice.entry for choice in resolution.selected]
    differences = version_differences(loaded.record, entries) if loaded.record else ()
    for warning in (*loaded.warnings, *resolution.warnings, *differences):
        _log.warning("%s", warning)


def log_difference(difference: str) -> None:
    """Write that the data is not that of the recorded run, whatever the log level."""
    if difference:
        _log.critical("%s", difference)


def header(session: Session, model: Any) -> str:
    """Return what is about to be trained, in a few lines."""
    plan, run = session.plan, session.run
    trained, total = parameter_counts(model)
    lines = [
        f"model      {run.config.model.model_name}: {trained:,} of {total:,} parameters train",
        *(line for report in session.kernel.reports(run).values() for line in _shown(report)),
        f"data       {', '.join(f'{name} {len(rows):,}' for name, rows in session.examples.items())} examples",
        f"steps      {plan.total_steps:,} of {plan.effective_batch_size} examples, {plan.steps_per_epoch:,} an epoch",
        *([f"balance    tokens of the busiest process of a step / mean: {plan.balance}"] if plan.balance else []),
        f"output     {run.output_dir}",
    ]
    if "validation" not in session.examples and run.config.training.eval_strategy is not Moments.NO:
        lines.append("evaluation off: there is no validation split")
    if run.config.model.trust_remote_code:
        lines.append("WARNING    model.trust_remote_code is on: code from the model's repository runs on this machine")
    return "\n".join(lines)


def _shown(report: Report) -> Iterator[str]:
    for number, line in enumerate(report.lines):
        yield f"{'' if number else report.title:<11}{line}"


def _as_reported(error: BaseException) -> BaseException:
    """Return an error as the user is told of it."""
    if isinstance(error, Interrupted):
        return StopRequested("asked to stop before training began: nothing was trained, and nothing is lost.")
    return error


def _report_failure(kernel: Kernel, run: Run, error: BaseException) -> None:
    """Tell observers and write `failure.json`; never hide the error that is on its way."""
    interrupted = 130 if isinstance(error, KeyboardInterrupt) else 1
    record: dict[str, Any] = {
        "error": type(error).__name__,
        "message": str(error),
        "rank": run.world.rank,
        "exit_code": error.exit_code if isinstance(error, OumiError) else interrupted,
    }
    if isinstance(error, OumiError) and error.details:
        record["details"] = error.details
    place = run.output_dir / "failure.json"
    try:
        kernel.train_error(run, error)
        if run.world.size > 1 and place.exists():  # another process failed first, and this one because of it
            _log.error("process %d ends: %s", run.world.rank, error)
        else:
            write_json(place, record)
    except OumiError as second:
        error.add_note(f"While this was reported: {second}")
