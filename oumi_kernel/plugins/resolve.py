"""From the names in a configuration to component classes and their decoded parameters. Imports what is named, only."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from typing import Any

import msgspec

from oumi_kernel.adapters import adapter_of
from oumi_kernel.component import Component, DatasetComponent
from oumi_kernel.config.derived import peft_enabled
from oumi_kernel.config.vocabulary import VOCABULARY
from oumi_kernel.contracts import Run
from oumi_kernel.errors import ConfigError, PluginError, Problem
from oumi_kernel.loading import LoadedConfig, convert
from oumi_kernel.plugins.attention import attention_problem
from oumi_kernel.plugins.catalogue import Catalogue, Entry
from oumi_kernel.plugins.families import DEFAULT, FAMILIES, normalise
from oumi_kernel.plugins.keys import default_at, expand, value_at
from oumi_kernel.plugins.slots import Slot, filled_splits, slots

OWN = "oumi-kernel"


class Selected(msgspec.Struct, frozen=True, kw_only=True):
    """A component that a configuration names, ready to be activated.

    Attributes:
        entry: Where it comes from.
        component: Its class.
        path: The key that names it; empty for one that is always on.
        params: Its parameters, decoded; the section for families that take one.
        kwargs_path: The key that holds its parameters; empty where a section does.
    """

    entry: Entry
    component: type[Component]
    path: str
    params: Any
    kwargs_path: str = ""


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration names, and what is wrong with that.

    Attributes:
        selected: The components, in the order of the configuration.
        problems: Wrong names and parameters.
        unavailable: What is valid, but cannot be run here: no installed component serves it.
        warnings: What will have no effect.
    """

    selected: tuple[Selected, ...]
    problems: tuple[Problem, ...]
    unavailable: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def one(self, family: str) -> Selected | None:
        """Return the first selected component of a family, if there is one."""
        return next((choice for choice in self.selected if choice.entry.family == family), None)

    def at(self, path: str) -> Selected:
        """Return the component that the key at `path` names."""
        return next(choice for choice in self.selected if choice.path == path)

    def raise_for_problems(self, *, strict: bool) -> None:
        """Raise what is wrong.

        Args:
            strict: Also for what is valid but unavailable here, as a run must.

        Raises:
            PluginError: Every problem is a plugin's (broken, clashing, too new).
            ConfigError: Some problem is the configuration's.
        """
        wrong = (*self.problems, *(self.unavailable if strict else ()))
        if not wrong:
            return
        if all(problem.code == "plugin" for problem in wrong):
            raise PluginError("\n".join(map(str, wrong)))
        raise ConfigError(wrong)


def resolve(loaded: LoadedConfig, catalogue: Catalogue, *, world_size: int = 1) -> Resolution:
    """Find and type every component that a configuration names; collect all that is wrong instead of stopping."""
    resolver = _Resolver(loaded, catalogue)
    config = loaded.config
    peft = peft_enabled(config, loaded.document.given("peft"))
    adapter = adapter_of(Run(config=config, folder=loaded.folder))
    if adapter is not None and not peft:
        peft = resolver.check_adapter(adapter[0])
    for slot in slots(config, peft=peft, world_size=world_size):
        resolver.fill(slot)
    resolver.fill_collators()
    resolver.add_always_on()
    resolver.check_tracker_kwargs()
    resolver.check_packing()
    resolver.check_attention()
    resolver.check_keys()
    return Resolution(
        selected=tuple(resolver.selected),
        problems=tuple(resolver.problems),
        unavailable=tuple(resolver.unavailable),
        warnings=tuple(resolver.warnings),
    )


class _Resolver:
    """Collects components and problems while it goes through the slots."""

    def __init__(self, loaded: LoadedConfig, catalogue: Catalogue) -> None:
        self.loaded, self.catalogue, self.config = loaded, catalogue, loaded.config
        self.selected: list[Selected] = []
        self.problems: list[Problem] = []
        self.unavailable: list[Problem] = []
        self.warnings: list[Problem] = []

    def fill(self, slot: Slot) -> None:
        """Select the component that a slot names."""
        try:
            entry = self.catalogue.find(slot.family, slot.name)
            if entry is None and slot.falls_back and not self._looks_like_a_typo(slot):
                entry = self.catalogue.find(slot.family, DEFAULT)
                self._warn_of_hub_name(slot)
            if entry is None:
                self._report_unknown(slot)
                return
            component = self._load(entry, slot.path)
        except PluginError as error:
            self.problems.append(self._problem("plugin", slot.path, str(error)))
            return
        self._check_requirements(entry, component, slot.path)
        try:
            params = slot.section if slot.section is not None else self._params(slot, entry, component)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return
        except TypeError as error:  # msgspec cannot type the struct at all: the plugin's fault
            message = f"the parameters of {entry.label}'s '{entry.name}' cannot be typed: {error}"
            self.problems.append(self._problem("plugin", slot.path, message))
            return
        selected = Selected(
            entry=entry, component=component, path=slot.path, params=params, kwargs_path=slot.kwargs_path
        )
        self.selected.append(selected)

    def check_adapter(self, path: str) -> bool:
        """Return whether an adapter trains that nobody asked for but by naming it; refuse where somebody says no."""
        if peft_enabled(self.config, peft_section_given=True):
            return True
        message = "names an adapter, but training.use_peft or peft.peft_method says that none is trained."
        hint = "Merge it into its model first, or remove that key."
        self.problems.append(self._problem("rule", path, message, hint=hint))
        return False

    def fill_collators(self) -> None:
        """Select each split's collator: its own, the training split's, or the one that its first dataset prefers."""
        for name, split in filled_splits(self.config):
            given = split.collator_name or self.config.data.train.collator_name
            collator = given or self._preferred_collator(name)
            path = f"data.{name}.collator_name"
            self.fill(Slot(family="collators", name=collator, path=path, kwargs_path=f"data.{name}.collator_kwargs"))

    def add_always_on(self) -> None:
        """Select every installed plugin of the group that is always on, with its own section if it has one."""
        for entry in self.catalogue.entries:
            if entry.family != "plugins":
                continue
            try:
                component = self._load(entry, "")
                params = self._own_section(entry) if entry.name in self.catalogue.sections else component.params_type()
            except PluginError as error:
                self.problems.append(self._problem("plugin", "", str(error)))
            except ConfigError as error:
                self.problems.extend(error.problems)
            else:
                self.selected.append(Selected(entry=entry, component=component, path="", params=params))

    def check_tracker_kwargs(self) -> None:
        """Refuse parameters for a tracker that is not on."""
        active = {choice.entry.name for choice in self.selected if choice.entry.family == "trackers"}
        for name in self.config.training.tracker_kwargs:
            if normalise(name) not in active and not self.unavailable:
                on = ", ".join(sorted(active)) or "none"
                message = f"no tracker named '{name}' is on; tracker_kwargs is keyed by tracker. On: {on}."
                self.problems.append(self._problem("unknown-key", f"training.tracker_kwargs.{name}", message))

    def check_packing(self) -> None:
        """Refuse to pack a column that neither the configuration nor the dataset names."""
        for choice in self.selected:
            split = choice.path.partition("[")[0].removesuffix(".datasets")
            if choice.entry.family != "datasets" or not value_at(self.config, f"{split}.pack"):
                continue
            if value_at(self.config, f"{split}.target_col") is None and not _target_column(choice.component):
                message = f"pack needs target_col: '{choice.entry.name}' does not say which column is trained on."
                hint = "It is messages for conversations, text for plain text."
                self.problems.append(self._problem("missing-key", f"{split}.target_col", message, hint=hint))

    def check_attention(self) -> None:
        """Refuse an attention that nobody knows, and report one that lacks its package."""
        others = any(choice.entry.distribution != OWN for choice in self.selected)
        found = attention_problem(self.config.model.attn_implementation, others=others)
        if found:
            placed = msgspec.structs.replace(found, place=self.loaded.document.place(found.path))
            (self.problems if found.code == "unknown-name" else self.unavailable).append(placed)

    def check_keys(self) -> None:
        """Report keys that an active component does not serve, or that have no effect with it."""
        for choice in self.selected:
            entry = choice.entry
            noun = FAMILIES[entry.family].noun
            name = entry.also[0] if entry.name == DEFAULT and entry.also else entry.name
            for path, reason in self._changed(choice.component.unserved):
                message = f"the {noun} '{name}' does not serve this key: {reason}"
                self.unavailable.append(self._problem("not-served", path, message, hint="Remove the key."))
            for path, reason in self._changed(choice.component.without_effect):
                message = f"no effect with the {noun} '{name}': {reason}"
                self.warnings.append(self._problem("no-effect", path, message, severity="warning"))

    def _changed(self, table: Any) -> list[tuple[str, str]]:
        keys = [(key, reason) for pattern, reason in table.items() for key in expand(self.config, pattern)]
        return [(k, reason) for k, reason in keys if value_at(self.config, k) != default_at(self.config, k)]

    def _params(self, slot: Slot, entry: Entry, component: type[Component]) -> Any:
        path = slot.kwargs_path
        raw = (self.config.training.tracker_kwargs or {}).get(entry.name, {}) if entry.family == "trackers" else None
        raw = value_at(self.config, path) if raw is None else raw
        owner = "" if entry.distribution == OWN else entry.label
        return convert(raw, component.params_type, document=self.loaded.document, path=path, distribution=owner)

    def _own_section(self, entry: Entry) -> Any:
        _, struct = self.catalogue.section(entry.name)
        raw = self.loaded.extra_sections.get(entry.name) or {}
        return convert(raw, struct, document=self.loaded.document, path=entry.name, distribution=entry.label)

    def _load(self, entry: Entry, path: str) -> type[Component]:
        had_torch = "torch" in sys.modules
        component = self.catalogue.load(entry)
        if "torch" in sys.modules and not had_torch:
            message = (
                f"{entry.label} imports torch when it is loaded, which slows every command down; "
                f"its author should move the import of {entry.value} into the hooks."
            )
            self.warnings.append(self._problem("slow-plugin", path, message, severity="warning"))
        return component

    def _preferred_collator(self, split: str) -> str:
        for choice in self.selected:
            if choice.path.startswith(f"data.{split}.") and issubclass(choice.component, DatasetComponent):
                return choice.component.default_collator
        return DEFAULT

    def _looks_like_a_typo(self, slot: Slot) -> bool:
        return slot.family == "datasets" and (
            _is_known(slot) or bool(difflib.get_close_matches(slot.name, self.catalogue.names(slot.family), 1, 0.8))
        )

    def _warn_of_hub_name(self, slot: Slot) -> None:
        if slot.family == "datasets" and "/" not in slot.name:
            message = f"no dataset is named '{slot.name}': it will be looked for on the hub under that name."
            hint = f"Installed: {', '.join(name for name in self.catalogue.names('datasets') if name != DEFAULT)}."
            self.warnings.append(self._problem("hub-name", slot.path, message, hint=hint, severity="warning"))

    def _report_unknown(self, slot: Slot) -> None:
        noun = FAMILIES[slot.family].noun
        installed = tuple(name for name in self.catalogue.names(slot.family) if name != DEFAULT)
        listing = f"Installed: {', '.join(installed)}." if installed else "None is installed."
        if _is_known(slot) or not slot.path or slot.name == DEFAULT:
            named = "" if slot.name == DEFAULT else f" named '{normalise(slot.name)}'"
            subject = slot.path if slot.name == DEFAULT else slot.name
            article = "an" if noun[0] in "aeiou" else "a"
            message = f"{subject} needs {article} {noun}{named}; none is installed."
            hint = listing if installed else ""
            self.unavailable.append(self._problem("not-installed", slot.path, message, hint=hint))
            return
        close = difflib.get_close_matches(slot.name, installed, 1)
        hint = f"did you mean '{close[0]}'? {listing}" if close else listing
        self.problems.append(self._problem("unknown-name", slot.path, f"no {noun} is named '{slot.name}'.", hint=hint))

    def _check_requirements(self, entry: Entry, component: type[Component], path: str) -> None:
        for module, requirement in component.requirements(self.config).items():
            if importlib.util.find_spec(module) is None:
                message = f"'{entry.name}' needs {module}, which is not installed."
                hint = f"pip install '{requirement}'"
                self.unavailable.append(self._problem("missing-extra", path, message, hint=hint))

    def _problem(self, code: str, path: str, message: str, *, hint: str = "", severity: Any = "error") -> Problem:
        place = self.loaded.document.place(path) if path else None
        return Problem(code=code, path=path, message=message, hint=hint, place=place, severity=severity)


def _target_column(component: type[Component]) -> str | None:
    return component.target_column if issubclass(component, DatasetComponent) else None


def _is_known(slot: Slot) -> bool:
    return normalise(slot.name) in {normalise(name) for name in VOCABULARY.get(slot.family, ())}
