"""The easy path: a bare function or class as a dataset or a metric, with parameters typed by its signature."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from oumi_kernel.component import Component, DatasetComponent, hookimpl
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import EvaluationBatch, Metric, Row, Run
from oumi_kernel.errors import PluginError
from oumi_kernel.schema import Params

FROM_DATASET = ("dataset_path", "subset", "split")
"""Parameters of a dataset callable that are filled from the entry of `datasets`, not from `dataset_kwargs`."""


def component_from_callable(target: Callable[..., Any], family: str, name: str, label: str) -> type[Component]:
    """Wrap a bare callable as a component of `family`.

    A dataset is called with its parameters and returns an iterable of rows. A metric is either a function
    `metric(predictions, labels, **parameters) -> float`, called per batch with int64 tensors (tokens,) of the
    supervised positions, whose results are averaged by tokens; or a class with `update(batch)` and `compute()`.

    Raises:
        PluginError: The signature cannot be typed, or a metric class lacks `update` or `compute`.
    """
    wrap = {"datasets": _dataset, "metrics": _metric}[family]
    component = wrap(target, name, label)
    component.__doc__ = inspect.getdoc(target) or ""
    return component


def _dataset(target: Callable[..., Any], name: str, label: str) -> type[Component]:
    signature = _signature(target, label)
    given = [parameter for parameter in FROM_DATASET if parameter in signature.parameters]

    class CallableDataset(DatasetComponent):
        params_type = _params(signature, skip=given, label=label, name=name)

        @hookimpl
        def oumi_load_dataset(self, params: Any, dataset: DatasetParams, run: Run) -> Sequence[Row]:
            filled = {parameter: getattr(dataset, parameter) for parameter in given}
            if filled.get("dataset_path"):
                filled["dataset_path"] = run.locate(str(filled["dataset_path"]))
            rows: Iterable[Row] = target(**filled, **msgspec.structs.asdict(params))
            return rows if isinstance(rows, Sequence) else list(rows)

    return CallableDataset


def _metric(target: Callable[..., Any], name: str, label: str) -> type[Component]:
    is_class = inspect.isclass(target)
    if is_class and not (hasattr(target, "update") and hasattr(target, "compute")):
        raise PluginError(f"{label} is a class without `update` and `compute`; a metric class has both.")
    signature = _signature(target, label)
    positional = [] if is_class else list(signature.parameters)[:2]
    if not is_class and len(positional) < 2:
        raise PluginError(f"{label} takes {len(positional)} parameters; a metric function takes predictions, labels.")

    class CallableMetric(Component):
        params_type = _params(signature, skip=positional, label=label, name=name)

        @hookimpl
        def oumi_build_metric(self, params: Any, run: Run) -> Metric:
            arguments = msgspec.structs.asdict(params)
            metric: Any = target(**arguments) if is_class else _TokenMean(target, name, arguments)
            return metric

    return CallableMetric


class _TokenMean:
    """A metric function, averaged over batches by their supervised tokens."""

    def __init__(self, function: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> None:
        self._function, self._name, self._arguments = function, name, arguments
        self._total, self._tokens = 0.0, 0

    def update(self, batch: EvaluationBatch) -> None:
        tokens = len(batch.labels)
        self._total += float(self._function(batch.predictions, batch.labels, **self._arguments)) * tokens
        self._tokens += tokens

    def compute(self) -> Mapping[str, float]:
        return {self._name: self._total / self._tokens if self._tokens else float("nan")}


def _signature(target: Callable[..., Any], label: str) -> inspect.Signature:
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        raise PluginError(f"{label}: its signature cannot be read: {error}.") from error
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise PluginError(f"{label}: '{parameter}' hides parameters; give each one a name, a type and a default.")
    return signature


def _params(signature: inspect.Signature, *, skip: Sequence[str], label: str, name: str) -> type[Params]:
    namespace: dict[str, Any] = {"__annotations__": {}, "__module__": __name__}
    for parameter in signature.parameters.values():
        if parameter.name in skip:
            continue
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        namespace["__annotations__"][parameter.name] = annotation
        if parameter.default is not parameter.empty:
            namespace[parameter.name] = _field(parameter.default)
    try:
        return types.new_class(f"{name}_params", (Params,), {}, lambda body: body.update(namespace))
    except (TypeError, ValueError) as error:
        raise PluginError(f"{label}: its parameters cannot be typed: {error}.") from error


def _field(default: Any) -> Any:
    if isinstance(default, list | dict | set):
        return msgspec.field(default_factory=lambda: type(default)(default))
    return msgspec.field(default=default)
