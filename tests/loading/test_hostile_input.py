"""Whatever is fed to the loader, it ends soon: with a configuration, or with a few of our own errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import load_config, load_text, render_problems, split_overrides
from oumi_kernel.loading.yaml_reader import read_yaml
from tests.conftest import minimal_yaml

QUIET = settings(max_examples=150, deadline=None, derandomize=True)
KWARGS = "  trainer_kwargs:\n"


def messages(text: str, *flags: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "c.yaml", split_overrides(flags)[0])
    for form in ("text", "json", "github"):
        render_problems(caught.value.problems, form)
    return [str(problem) for problem in caught.value.problems]


def test_aliases_cannot_nest_deeper_than_the_limit() -> None:
    lines = ["b0: &b0 " + "[" * 50 + "]" * 50] + [f"b{n}: &b{n} {'[' * 50}*b{n - 1}{']' * 50}" for n in range(1, 100)]
    assert messages("\n".join(lines)) == ["c.yaml:2:59: nested more than 64 levels deep."]


def test_a_flag_cannot_nest_deeper_than_the_limit() -> None:
    assert "nested more than 64 levels deep" in messages(minimal_yaml(), "--" + ".".join("a" * 5000), "1")[0]


def test_a_hundred_problems_are_listed_and_the_rest_are_counted() -> None:
    found = messages(minimal_yaml(training="".join(f"  a{n}: 1\n" for n in range(30_000))))
    assert len(found) == 101
    assert found[-1] == "c.yaml: 29,900 more problems are not shown."


def test_problems_of_items_are_counted_too() -> None:
    text = "model:\n  model_name: x\ndata:\n  train:\n    datasets:\n" + "      - {}\n" * 20_000
    assert messages(text)[-1] == "c.yaml: 19,900 more problems are not shown."


def test_a_key_of_a_megabyte_is_cut_in_messages() -> None:
    rendered = render_problems(problems_of(minimal_yaml() + '? "' + "a" * 900_000 + '"\n: 1\n'))
    assert len(rendered) < 1000


def problems_of(text: str) -> tuple[object, ...]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "c.yaml")
    return caught.value.problems


def test_references_cannot_multiply_text_without_end() -> None:
    ref = "${ref:training.trainer_kwargs.a%d}"
    lines = [f"    a{n + 1}: {ref % n}{ref % n}\n" for n in range(40)]
    found = messages(minimal_yaml(training=KWARGS + "    a0: xxxxxxxxxx\n" + "".join(lines)))
    assert "would be 81,988 characters long; the limit is 65,536" in found[0]


def test_a_long_chain_of_references_is_refused() -> None:
    lines = [f"    a{n}: ${{ref:training.trainer_kwargs.a{n + 1}}}\n" for n in range(3000)]
    assert "more than 32 times" in messages(minimal_yaml(training=KWARGS + "".join(lines)))[0]


@pytest.mark.parametrize("section", ["3", "[1]", "text"])
def test_a_spelling_that_means_a_key_of_a_section_that_is_none_leaves_one_problem(section: str) -> None:
    found = messages(f"{minimal_yaml(peft='  enable_peft: true')}\ntraining: {section}\n")
    assert len(found) == 1
    assert "training: expected a mapping" in found[0]


def test_a_flag_that_is_not_utf_8_is_an_error_that_can_be_printed() -> None:
    for flag in ("--training.run_name", "--training.seed"):
        (found,) = messages(minimal_yaml(), flag, "a\udcff")
        assert found == f"command line: {flag[2:]}: is not UTF-8 text."


def test_an_environment_variable_that_is_not_utf_8_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISE", "a\udcff")
    found = messages(minimal_yaml(training="  run_name: ${env:NOISE}\n"))
    assert "the environment variable NOISE is not UTF-8 text" in found[0]


def test_a_message_holds_nothing_that_a_terminal_would_obey() -> None:
    text = minimal_yaml() + '"\\e[31mx": 1\n"a\\u202Eb": 1\n'
    assert all(c.isprintable() or c == "\n" for c in render_problems(problems_of(text)))


def test_a_device_that_never_ends_is_read_to_the_limit() -> None:
    with pytest.raises(ConfigError, match="is larger than 1 MiB"):
        load_config(Path("/dev/zero"))


def test_an_empty_file_says_what_a_configuration_needs(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(" \n\n")
    with pytest.raises(ConfigError, match=r"is empty\. A configuration needs at least the sections model and data"):
        load_config(tmp_path / "c.yaml")


TEXTS = st.text(alphabet="ab: -[]{}\"'#&*!|>%@`\n\t,?\u00e9\u2028\x00\\~5e.0") | st.text()


@QUIET
@given(TEXTS)
def test_without_libyaml_the_same_text_gives_the_same_data(text: str) -> None:
    """Or an error from both: the two disagree about a few characters that no configuration holds."""

    def read() -> object:
        try:
            node = read_yaml(text, "f")
        except ConfigError:
            return ConfigError
        return repr(node.value), {key: (item.line, item.column) for key, item in node.items.items()}

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(yaml, "CSafeLoader")
        slow = read()
    assert fast == slow or ConfigError in (fast, slow)


def test_without_libyaml_the_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert "nested more than 64 levels deep" in messages("[" * 20_000)[0]
    assert "#x0000" in messages("\u00e9: 1\na: \x00")[0]


@QUIET
@given(st.lists(st.text(alphabet="-.[]=ab0\udcff{}'\"no $:\n") | st.text(max_size=8), max_size=5))
def test_random_arguments_are_split_or_refused_and_none_is_lost(argv: list[str]) -> None:
    try:
        overrides, rest = split_overrides(argv)
        load_text(minimal_yaml(), "c.yaml", overrides)
    except ConfigError as error:
        render_problems(error.problems)
        return
    assert not [token for token in rest if token not in argv]
