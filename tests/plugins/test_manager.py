"""Addressed calls reach one component, events reach all, and every failure names its owner."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from oumi_kernel import Component, DataError, NumericsError, PluginError, hookimpl
from oumi_kernel.component import hookimpl as mark
from oumi_kernel.plugins.catalogue import Entry
from oumi_kernel.plugins.manager import Manager
from oumi_kernel.plugins.resolve import Selected


def select(component: type[Component], family: str = "datasets", params: Any = None) -> Selected:
    entry = Entry(
        family=family, name=component.__name__.lower(), distribution="oumi-zoo", version="1.0", value="zoo:Thing"
    )
    return Selected(entry=entry, component=component, path="", params=params)


class One(Component):
    @hookimpl
    def oumi_load_dataset(self, params):
        return ["one", params]


class Two(Component):
    @hookimpl
    def oumi_load_dataset(self):
        return ["two"]


def load(manager: Manager, active) -> Any:
    return manager.call(active, "oumi_load_dataset", dataset=None, run=None)


def test_an_addressed_call_asks_the_selected_component_only() -> None:
    manager = Manager()
    one, two = manager.activate(select(One, params=1)), manager.activate(select(Two))
    assert load(manager, one) == ["one", 1]
    assert load(manager, two) == ["two"]


def test_a_component_named_twice_keeps_each_slots_parameters() -> None:
    manager = Manager()
    first, second = manager.activate(select(One, params=1)), manager.activate(select(One, params=2))
    assert first.plugin is second.plugin
    assert (load(manager, first), load(manager, second)) == (["one", 1], ["one", 2])


def test_wrappers_stay_around_an_addressed_call() -> None:
    class Wrapper(Component):
        @mark(wrapper=True)
        def oumi_load_dataset(self):
            result = yield
            return [*result, "wrapped"]

    manager = Manager()
    two = manager.activate(select(Two))
    manager.activate(select(Wrapper, "plugins"))
    assert load(manager, two) == ["two", "wrapped"]


def test_a_foreign_exception_becomes_a_plugin_error_with_its_cause() -> None:
    class Broken(Component):
        @hookimpl
        def oumi_load_dataset(self):
            raise KeyError("rows")

    manager = Manager()
    active = manager.activate(select(Broken))
    with pytest.raises(
        PluginError, match=r"dataset 'broken' \(oumi-zoo 1.0: zoo:Thing\), hook oumi_load_dataset"
    ) as caught:
        load(manager, active)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_for_the_user_keeps_its_type_and_exit_code() -> None:
    class Empty(Component):
        @hookimpl
        def oumi_load_dataset(self):
            raise DataError("no rows")

    manager = Manager()
    with pytest.raises(DataError, match="no rows") as caught:
        load(manager, manager.activate(select(Empty)))
    assert caught.value.exit_code == 4
    assert "oumi-zoo 1.0" in caught.value.__notes__[0]


def test_a_misspelt_hook_is_an_error_with_the_nearest_name() -> None:
    class Misspelt(Component):
        @hookimpl
        def oumi_load_datasets(self):
            return []

    with pytest.raises(PluginError, match=r"oumi_load_datasets, which is no hook\. Did you mean oumi_load_dataset"):
        Manager().activate(select(Misspelt))


def test_an_argument_that_the_hook_does_not_have_is_an_error() -> None:
    class Curious(Component):
        @hookimpl
        def oumi_load_dataset(self, moon):
            return []

    with pytest.raises(PluginError, match="moon"):
        Manager().activate(select(Curious))


def test_a_tracker_that_fails_is_switched_off_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []

    class Fragile(Component):
        @hookimpl
        def oumi_evaluate_end(self, step):
            raise OSError("no network")

    class Listener(Component):
        @hookimpl
        def oumi_evaluate_end(self, step):
            heard.append(step)

    manager = Manager()
    manager.activate(select(Fragile, "trackers"))
    manager.activate(select(Listener, "optimizers"))
    with caplog.at_level(logging.WARNING):
        manager.broadcast("oumi_evaluate_end", run=None, step=1, figures={})
        manager.broadcast("oumi_evaluate_end", run=None, step=2, figures={})
    assert heard == [1, 2]
    assert caplog.text.count("fragile") == 1


def test_everybody_is_told_whoever_fails_and_the_first_failure_is_raised() -> None:
    heard: list[str] = []

    def observer(name: str, error: Exception | None) -> type[Component]:
        class Observer(Component):
            @hookimpl
            def oumi_evaluate_end(self):
                heard.append(name)
                if error:
                    raise error

        Observer.__name__ = name
        return Observer

    manager = Manager()
    for name, error in (("last", None), ("third", OSError("disk")), ("second", None), ("first", NumericsError("nan"))):
        manager.activate(select(observer(name, error), "optimizers"))
    manager.activate(select(observer("tracker", KeyError("url")), "trackers"))
    with pytest.raises(NumericsError, match="nan") as caught:
        manager.broadcast("oumi_evaluate_end", run=None, step=1, figures={})
    assert heard == ["tracker", "first", "second", "third", "last"]
    assert any("Another failed too: OSError: disk" in note for note in caught.value.__notes__)


def test_another_component_that_fails_in_an_event_ends_the_run() -> None:
    class Fragile(Component):
        @hookimpl
        def oumi_evaluate_end(self, step):
            raise OSError("disk")

    class Guard(Component):
        @hookimpl
        def oumi_evaluate_end(self, step):
            raise NumericsError("loss is nan")

    manager = Manager()
    manager.activate(select(Fragile, "optimizers"))
    with pytest.raises(PluginError, match="oumi_evaluate_end: OSError: disk"):
        manager.broadcast("oumi_evaluate_end", run=None, step=1, figures={})
    guarded = Manager()
    guarded.activate(select(Guard, "plugins"))
    with pytest.raises(NumericsError, match="loss is nan"):
        guarded.broadcast("oumi_evaluate_end", run=None, step=1, figures={})
