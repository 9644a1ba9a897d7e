"""One of several processes that do runs one after another: `python -m tests.strategies.runs_together FILE`.

The file holds a list of runs, each with a `config` file, `flags`, what else the environment says (`environment`), and
whether the part of each weight that a process has is filled with its rank and one before it is saved (`marked`).

The process is started as a launcher would start it. It writes what each run came to beside the file, as `RANK.json`:
the exit code and message, and how much of the weights and of the optimizer's state was here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import distributed
from torch.distributed.tensor import DTensor

from oumi_kernel.errors import OumiError
from oumi_kernel.loading import load_config
from oumi_kernel.loading.overrides import split_overrides
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.run import run_training
from oumi_plugins.strategies._fsdp import FsdpStrategy
from oumi_plugins.strategies._single import SingleStrategy

SEEN: dict[str, Any] = {}


def main(file: Path) -> None:
    """Do the runs."""
    single: Any = SingleStrategy
    divided: Any = FsdpStrategy
    kept, gather = single._build, divided.full_state

    def watched(strategy: Any, model: Any, build: Any) -> Any:
        prepared = kept(strategy, model, build)
        SEEN.update(model=model, optimizer=prepared.optimizer)
        return prepared

    def marked(strategy: Any, model: Any, *, trained: bool) -> Any:
        for parameter in model.parameters() if SEEN["marked"] else ():
            parameter.detach().to_local().fill_(int(os.environ["RANK"]) + 1)
        SEEN["gathered"] = gather(strategy, model, trained=trained)
        return SEEN["gathered"]

    single._build, divided.full_state = watched, marked
    found = []
    for number, run in enumerate(json.loads(file.read_text())):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # the processes meet at another place
        before = dict(os.environ)
        os.environ.update(run.get("environment", {}))
        found.append(_outcome(run))
        os.environ.clear()
        os.environ.update(before)
    (file.parent / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def _outcome(run: dict[str, Any]) -> dict[str, Any]:
    SEEN.clear()
    SEEN["marked"] = run.get("marked", False)
    overrides, _ = split_overrides(run["flags"])
    try:
        loaded = load_config(Path(run["config"]), overrides)
        run_training(loaded, resolve(loaded, scan(), world_size=int(os.environ["WORLD_SIZE"])))
    except OumiError as error:
        _part()
        return {"exit_code": error.exit_code, "error": str(error)}
    return {"exit_code": 0, **_divided()}


def _part() -> None:
    """Leave the other processes, which an error does not: the end of the process would."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _divided() -> dict[str, Any]:
    """Return how much of the model and of the optimizer's state was here."""
    parameters = dict(SEEN["model"].named_parameters())
    divided = {name: p for name, p in parameters.items() if isinstance(p, DTensor)}
    state = [t for values in SEEN["optimizer"].state.values() for t in values.values() if hasattr(t, "numel")]
    return {
        "parameters": len(parameters),
        "trained": sum(p.requires_grad for p in parameters.values()),
        "gathered": len({id(tensor) for tensor in (SEEN.get("gathered") or {}).values()}),
        "divided": len(divided),
        "processes": sorted({p.device_mesh.size() for p in divided.values()}),
        "whole": sum(p.numel() for p in parameters.values()),
        "here": sum(p.to_local().numel() for p in divided.values()),
        "state_here": sum(t.to_local().numel() for t in state if isinstance(t, DTensor)),
        "state_whole": sum(t.numel() for t in state if isinstance(t, DTensor)),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
