"""The table of commands: their words, their functions, what they take. Nothing is imported until one is called."""

from __future__ import annotations

from typing import Literal

import msgspec


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command of `oumi`.

    Attributes:
        words: How it is called: `("config", "show")`.
        target: Its function, `module:function`.
        summary: One sentence for lists of commands.
        usage: The arguments, as the first line of its help shows them.
        examples: Lines to copy.
        options: Its own options, and the values of each that has a closed set.
        argument: What its positional arguments are, for shell completion.
        overrides: Whether it takes configuration keys (`--training.learning_rate 5e-5`).
    """

    words: tuple[str, ...]
    target: str
    summary: str
    usage: str
    examples: tuple[str, ...] = ()
    options: dict[str, tuple[str, ...]] = {}
    argument: Literal["file", "key", "component", "shell", "nothing"] = "nothing"
    overrides: bool = False


GROUPS = {
    "launch": "Runs on the machines of a cluster.",
    "checkpoint": "What a run has left on its way.",
    "config": "Check, show and explain configurations. Nothing is trained, torch is not imported.",
    "plugins": "What is installed: datasets, optimizers, metrics and every other component.",
}
"""First words that several commands share."""

_LAUNCHING: dict[str, tuple[str, ...]] = {
    name: ("auto",) if name == "--nproc" else ()
    for name in ("--nproc", "--nnodes", "--node-rank", "--rdzv", "--max-restarts")
}

OVERRIDES = "[--SECTION.KEY VALUE]..."

COMMANDS = (
    Command(
        words=("run",),
        target="oumi_kernel.cli.run:run",
        summary="Train as a configuration says.",
        usage=f"oumi run CONFIG [--nproc N] [--dry-run [--rows N]] [--plugin FILE.py:NAME]... {OVERRIDES}",
        examples=(
            "oumi run quickstart",
            "oumi run train.yaml --training.learning_rate 5e-5 --training.max_steps 100",
            "oumi run train.yaml --data.train.datasets[0].sample_count 2000",
            "oumi run train.yaml --nproc 4",
            "oumi run train.yaml --dry-run --rows 5",
            "oumi run output/run.json --training.output_dir output_repeat",
            "oumi run train.yaml --plugin ./my_metric.py:bleu --training.metrics_function bleu",
        ),
        options={"--dry-run": (), "--rows": (), "--plugin": (), **_LAUNCHING},
        argument="file",
        overrides=True,
    ),
    Command(
        words=("train",),
        target="oumi_kernel.cli.run:train",
        summary="The same as run, with the configuration as an option.",
        usage=f"oumi train -c CONFIG [--dry-run [--rows N]] [--plugin FILE.py:NAME]... {OVERRIDES}",
        examples=("oumi train -c train.yaml --training.output_dir output/second",),
        options={"--config": (), "-c": (), "--dry-run": (), "--rows": (), "--plugin": (), **_LAUNCHING},
        overrides=True,
    ),
    Command(
        words=("launch", "script"),
        target="oumi_kernel.cli.launch_script:script",
        summary="Write a job file for Slurm, SkyPilot or Kubernetes.",
        usage=f"oumi launch script slurm|skypilot|kubernetes CONFIG [--nodes N] [--gpus N] [OPTION]... {OVERRIDES}",
        examples=(
            "oumi launch script slurm train.yaml --nodes 2 --gpus 8 --time 24:00:00 --output job.sh",
            "oumi launch script skypilot train.yaml --gpus 8 --gpu-type H100 > job.yaml",
            "oumi launch script kubernetes train.yaml --gpus 8 --image IMAGE --volume CLAIM:/output > job.yaml",
        ),
        options={
            f"--{name}": ()
            for name in (
                *("nodes", "gpus", "cpus", "time", "image", "volume", "gpu-type", "partition", "name", "output"),
                "plugin",
            )
        },
        argument="file",
        overrides=True,
    ),
    Command(
        words=("merge",),
        target="oumi_kernel.cli.merge:merge",
        summary="Merge the adapter of a run into its base model, and check the result.",
        usage="oumi merge RUN [--output DIR] [--base MODEL]",
        examples=(
            "oumi merge output/run",
            "oumi merge output/run/checkpoint-100 --output output/merged",
            "oumi merge output/run --base ~/models/base",
        ),
        options={"--output": (), "--base": ()},
        argument="file",
    ),
    Command(
        words=("checkpoint", "consolidate"),
        target="oumi_kernel.cli.checkpoint_consolidate:consolidate",
        summary="Write the weights of a checkpoint in parts (SHARDED_STATE_DICT) as a whole model.",
        usage="oumi checkpoint consolidate CHECKPOINT [--output DIR]",
        examples=("oumi checkpoint consolidate output/run/checkpoint-100",),
        options={"--output": ()},
        argument="file",
    ),
    Command(
        words=("config", "validate"),
        target="oumi_kernel.cli.config_validate:validate",
        summary="Show every problem of configurations at once.",
        usage=f"oumi config validate CONFIG... [--format text|json|github] [--plugin FILE.py:NAME]... {OVERRIDES}",
        examples=("oumi config validate train.yaml", "oumi config validate configs/*.yaml --format github"),
        options={"--format": ("text", "json", "github"), "--plugin": ()},
        argument="file",
        overrides=True,
    ),
    Command(
        words=("config", "show"),
        target="oumi_kernel.cli.config_show:show",
        summary="Print the effective configuration, defaults included.",
        usage=f"oumi config show CONFIG [--format yaml|json] {OVERRIDES}",
        examples=("oumi config show train.yaml --training.seed 7",),
        options={"--format": ("yaml", "json")},
        argument="file",
        overrides=True,
    ),
    Command(
        words=("config", "explain"),
        target="oumi_kernel.cli.config_explain:explain",
        summary="Say what a key means, its value, and where that comes from.",
        usage=f"oumi config explain KEY [CONFIG] [--plugin FILE.py:NAME]... {OVERRIDES}",
        examples=(
            "oumi config explain training.learning_rate",
            "oumi config explain peft train.yaml",
            "oumi config explain training.optimizer_kwargs train.yaml --training.optimizer sgd",
        ),
        options={"--plugin": ()},
        argument="key",
        overrides=True,
    ),
    Command(
        words=("config", "schema"),
        target="oumi_kernel.cli.config_schema:schema",
        summary="Print the JSON Schema of a configuration, for editors and checks.",
        usage="oumi config schema",
        examples=("oumi config schema > oumi.schema.json",),
    ),
    Command(
        words=("plugins", "list"),
        target="oumi_kernel.cli.plugins_list:list_plugins",
        summary="List the installed components, without importing them.",
        usage="oumi plugins list [--family FAMILY] [--format text|json]",
        examples=("oumi plugins list --family optimizers",),
        options={"--family": (), "--format": ("text", "json")},
    ),
    Command(
        words=("plugins", "show"),
        target="oumi_kernel.cli.plugins_show:show",
        summary="Show a component: what it does, where it is from, its parameters and hooks.",
        usage="oumi plugins show [FAMILY:]NAME",
        examples=("oumi plugins show adamw", "oumi plugins show schedulers:cosine"),
        argument="component",
    ),
    Command(
        words=("env",),
        target="oumi_kernel.cli.env:env",
        summary="Show versions, hardware and devices, for a bug report.",
        usage="oumi env",
    ),
    Command(
        words=("completion",),
        target="oumi_kernel.cli.completion:completion",
        summary="Print a script that completes commands and configuration keys.",
        usage="oumi completion bash|zsh|fish",
        examples=(
            'eval "$(oumi completion bash)"',
            "source <(oumi completion zsh)",
            "oumi completion fish | source",
        ),
        argument="shell",
    ),
)
