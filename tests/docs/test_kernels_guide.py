"""The samples of the kernels guide load, and its kernel is one."""

from __future__ import annotations

import msgspec

from oumi_kernel.config import ModelParams
from oumi_kernel.loading import load_text
from oumi_kernel.testing import check_component
from tests.conftest import ROOT, minimal_yaml
from tests.docs.test_docs import blocks

GUIDE = (ROOT / "docs/guides/kernels.md").read_text()


def test_its_configurations_load() -> None:
    samples = blocks(GUIDE, "yaml")
    assert len(samples) == 4
    for sample in samples:
        section, _, lines = sample.partition(":\n")
        config = load_text(minimal_yaml(**{section: lines}), "train.yaml").config
        assert config.model != ModelParams(model_name="./model") or config.training.compile


def test_its_kernel_is_a_component() -> None:
    (code,) = blocks(GUIDE, "python")
    names: dict[str, type] = {"__name__": "guide"}
    exec(code, names)  # noqa: S102 - the guide's own code
    component = check_component(names["FastNorm"], "kernels")
    assert msgspec.structs.fields(component.params_type)[0].name == "only_last"
