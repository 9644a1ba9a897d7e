"""The catalogue reads metadata, imports nothing, and says who owns what."""

import sys
from pathlib import Path

import pytest

from oumi_kernel.errors import PluginError
from oumi_kernel.plugins import scan
from oumi_kernel.plugins.catalogue import Entry

OPTIMIZER = """
from oumi_kernel import Component, hookimpl

class Lion(Component):
    \"\"\"A lion.\"\"\"
    @hookimpl
    def oumi_build_optimizer(self, params, groups, run):
        return object()
"""


def find(name: str, family: str = "optimizers") -> Entry:
    entry = scan().find(family, name)
    assert entry is not None
    return entry


def test_an_entry_names_its_distribution_and_is_not_imported(install) -> None:
    install("oumi-lion", "2.3", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}}, lion_plugin=OPTIMIZER)
    entry = find("LION")
    assert (entry.distribution, entry.version, entry.state) == ("oumi-lion", "2.3", "ready")
    assert "lion_plugin" not in sys.modules


def test_names_are_compared_without_case_and_dashes(install) -> None:
    install("oumi-lion", "2.3", {"oumi.optimizers": {"big-lion": "lion_plugin:Lion"}}, lion_plugin=OPTIMIZER)
    assert find("Big_Lion").name == "big-lion"


def test_two_names_of_one_object_know_each_other(install) -> None:
    points = {"oumi.optimizers": {"lion": "lion_plugin:Lion", "leo": "lion_plugin:Lion"}}
    install("oumi-lion", "2.3", points, lion_plugin=OPTIMIZER)
    assert find("lion").also == ("leo",)


def test_a_clash_names_both_distributions_and_the_way_out(install) -> None:
    install("oumi-lion", "2.3", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}}, lion_plugin=OPTIMIZER)
    install("oumi-zoo", "1.0", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}})
    with pytest.raises(PluginError, match=r"'oumi-lion:lion' \(oumi-lion 2.3\) or 'oumi-zoo:lion' \(oumi-zoo 1.0\)"):
        scan().find("optimizers", "lion")
    assert find("oumi-zoo:lion").distribution == "oumi-zoo"
    assert find("oumi-lion:lion").state.startswith("clash: also in oumi-zoo 1.0")


def test_a_missing_module_is_a_row_until_somebody_names_it(install) -> None:
    install("oumi-gone", "1.0", {"oumi.optimizers": {"gone": "gone_plugin:Gone"}})
    entry = find("gone")
    assert entry.state == "broken: no module named 'gone_plugin'"
    with pytest.raises(PluginError, match=r"optimizer 'gone' \(oumi-gone 1.0: gone_plugin:Gone\) cannot be imported"):
        scan().load(entry)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no licence')", "cannot be imported: RuntimeError: no licence"),
        ("Lion = 3", "is a int; a optimizer is a subclass of oumi_kernel.Component"),
        (OPTIMIZER.replace("oumi_build_optimizer", "oumi_build"), "has no method oumi_build_optimizer"),
        (OPTIMIZER.replace('"""A lion."""', "requires = 3"), "requires must map text to text, not 3"),
        (
            OPTIMIZER.replace('"""A lion."""', "params_type = dict"),
            "params_type must be a subclass of oumi_kernel.Params",
        ),
        (OPTIMIZER.replace('"""A lion."""', "api = '1'"), "api must be two whole numbers"),
        (OPTIMIZER.replace('"""A lion."""', "api = (1, 99)"), r"needs kernel API 1.99, .*upgrade oumi-kernel"),
        (OPTIMIZER.replace('"""A lion."""', "api = (0, 1)"), r"needs kernel API 0.1, .*upgrade oumi-lion"),
    ],
)
def test_a_wrong_component_is_an_error_that_names_it(install, source: str, message: str) -> None:
    install("oumi-lion", "2.3", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}}, lion_plugin=source)
    with pytest.raises(PluginError, match=message) as caught:
        scan().load(find("lion"))
    assert "oumi-lion 2.3" in str(caught.value)


def test_the_current_folder_brings_no_plugins(install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install("oumi-evil", "1.0", {"oumi.optimizers": {"evil": "evil_plugin:Evil"}})
    monkeypatch.chdir(site)
    assert scan().find("optimizers", "evil") is None


def test_a_local_file_serves_as_a_metric(tmp_path: Path) -> None:
    file = tmp_path / "my_metric.py"
    file.write_text("def first(predictions, labels, *, scale: float = 1.0) -> float:\n    return scale\n")
    catalogue = scan([f"{file}:first"])
    entry = catalogue.find("metrics", "first")
    assert entry is not None
    assert entry.label == "local file"
    assert catalogue.load(entry).params_type.__struct_fields__ == ("scale",)


@pytest.mark.parametrize("reference", ["my_metric.py", ":bleu", "my_metric.py:"])
def test_a_local_reference_must_name_file_and_object(reference: str) -> None:
    with pytest.raises(PluginError, match=r"write path/to/file.py:name"):
        scan([reference])


def test_a_callable_that_two_splits_name_is_one_class(tmp_path: Path) -> None:
    file = tmp_path / "rows.py"
    file.write_text("def rows():\n    return []\n")
    catalogue = scan([f"{file}:rows"])
    entry = catalogue.find("datasets", "rows")
    assert entry is not None
    assert catalogue.load(entry) is catalogue.load(entry)
