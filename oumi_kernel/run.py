"""One run, top to bottom: which hook, in which order. Models and tensors pass through unseen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from oumi_kernel.config import Moments, TrainTarget
from oumi_kernel.contracts import Run, Session, Strategy, Summary, Trainer, World
from oumi_kernel.errors import ConfigError, OumiError, Problem
from oumi_kernel.launch import world_from
from oumi_kernel.loading import LoadedConfig
from oumi_kernel.logs import logging_to
from oumi_kernel.manifest import run_record, write_json
from oumi_kernel.mixture import mix
from oumi_kernel.plugins import Kernel, Resolution
from oumi_kernel.plugins.slots import filled_splits

_log = logging.getLogger(__name__)


def run_training(loaded: LoadedConfig, resolution: Resolution, world: World | None = None) -> Summary:
    """Train as a resolved configuration says, and leave the model, `run.json` and logs in `training.output_dir`.

    Raises:
        OumiError: Anything that the user can act on; `failure.json` then says what and where.
    """
    resolution.raise_for_problems(strict=True)
    run = Run(config=loaded.config, folder=loaded.folder, world=world or world_from())
    with logging_to(run):
        for warning in (*loaded.warnings, *resolution.warnings):
            _log.warning("%s", warning)
        kernel = Kernel(resolution)
        if run.world.is_main:
            (run.output_dir / "failure.json").unlink(missing_ok=True)  # an earlier run's
        try:
            with kernel.manager.attributed():
                return _train(kernel, run, loaded)
        except ConfigError as error:
            placed = ConfigError([_placed(problem, loaded) for problem in error.problems])
            _report_failure(kernel, run, placed)
            raise placed from error
        except BaseException as error:
            _report_failure(kernel, run, error)
            raise


def _train(kernel: Kernel, run: Run, loaded: LoadedConfig) -> Summary:
    strategy = kernel.build_strategy(run)
    strategy.setup()
    try:
        tokenizer = kernel.build_tokenizer(run)
        trainer = kernel.build_trainer(tokenizer, run)
        examples, rows = _prepare_data(kernel, trainer, run)
        if run.world.is_main:
            write_json(run.output_dir / "run.json", run_record(loaded, kernel.manager.entries(), rows))
        session = _session(kernel, strategy, tokenizer, trainer, examples, run)
        _log.info("%s", _header(session))
        summary = trainer.train(session)
        kernel.train_end(run, summary)
        if run.config.training.save_final_model:
            model = session.prepared.model
            kernel.save_model(model, lambda: strategy.full_state(model), tokenizer, run.output_dir, run)
        return summary
    finally:
        strategy.close()


def _prepare_data(kernel: Kernel, trainer: Trainer, run: Run) -> tuple[dict[str, Sequence[Any]], dict[str, int]]:
    """Load, mix and prepare every split, before the model takes memory and before any process group can time out."""
    examples: dict[str, Sequence[Any]] = {}
    rows: dict[str, int] = {}
    for name, split in filled_splits(run.config):
        parts = [kernel.load_dataset(name, index, run) for index in range(len(split.datasets))]
        mixed = mix(parts, split, split_name=name)
        target = split.train_target or run.config.data.train.train_target
        examples[name] = trainer.prepare(name, mixed, target or TrainTarget(kernel.collator_train_target(name)))
        rows[name] = len(mixed)
    return examples, rows


def _session(
    kernel: Kernel,
    strategy: Strategy,
    tokenizer: Any,
    trainer: Trainer,
    examples: Mapping[str, Sequence[Any]],
    run: Run,
) -> Session:
    plan = trainer.plan(examples)

    def build(model: Any) -> tuple[Any, Any]:
        optimizer = kernel.build_optimizer(trainer.parameter_groups(model), run)
        return optimizer, kernel.build_scheduler(optimizer, plan.total_steps, run)

    splits = filled_splits(run.config)
    prepared = strategy.prepare(kernel.build_model(tokenizer, run), build)
    return Session(
        run=run,
        kernel=kernel,
        strategy=strategy,
        prepared=prepared,
        tokenizer=tokenizer,
        plan=plan,
        examples=examples,
        collators={name: kernel.build_collator(name, split, tokenizer, run) for name, split in splits},
        build_metrics=lambda: kernel.build_metrics(run),
    )


def _header(session: Session) -> str:
    """Return what is about to be trained, in a few lines."""
    plan, run = session.plan, session.run
    parameters = list(session.prepared.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    lines = [
        f"model      {run.config.model.model_name}: {trained:,} of {total:,} parameters train",
        f"data       {', '.join(f'{name} {len(rows):,}' for name, rows in session.examples.items())} examples",
        f"steps      {plan.total_steps:,} of {plan.effective_batch_size} examples, {plan.steps_per_epoch:,} an epoch",
        f"output     {run.output_dir}",
    ]
    if "validation" not in session.examples and run.config.training.eval_strategy is not Moments.NO:
        lines.append("evaluation off: there is no validation split")
    if run.config.model.trust_remote_code:
        lines.append("WARNING    model.trust_remote_code is on: code from the model's repository runs on this machine")
    return "\n".join(lines)


def _placed(problem: Problem, loaded: LoadedConfig) -> Problem:
    """Return a problem that a component found with the place where its key was written."""
    place = problem.place or (loaded.document.place(problem.path) if problem.path else None)
    return msgspec.structs.replace(problem, place=place)


def _report_failure(kernel: Kernel, run: Run, error: BaseException) -> None:
    """Tell observers and write `failure.json`; never hide the error that is on its way."""
    record: dict[str, Any] = {
        "error": type(error).__name__,
        "message": str(error),
        "rank": run.world.rank,
        "exit_code": error.exit_code if isinstance(error, OumiError) else 1,
    }
    if isinstance(error, OumiError) and error.details:
        record["details"] = error.details
    try:
        kernel.train_error(run, error)
        write_json(run.output_dir / "failure.json", record)
    except OumiError as second:
        error.add_note(f"While this was reported: {second}")
