"""YAML as YAML 1.2 means it, with places, within limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading.yaml_reader import read_yaml
from oumi_kernel.loading.yaml_writer import to_yaml

QUIET = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1e5", 1e5),
        ("2.0e-05", 2e-5),
        ("-1e-3", -1e-3),
        ("32_768", 32768),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        (".5", 0.5),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("none", "none"),
        ("'5e-5'", "5e-5"),
        ('"true"', "true"),
        ("9" * 5000, "9" * 5000),
        (".inf", float("inf")),
        ("-.inf", -float("inf")),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = read_yaml(f"key: {text}", "f").value["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"f:3:1: the key 'a' is here a second time; the first is on line 1"),
        ("a: !!python/object/apply:os.system [ls]", r"f:1:4: the tag .*os\.system is not allowed"),
        ("a: !!binary aGk=", r"the tag .*binary is not allowed"),
        ("!!str a: 1", r"the tag .*str is not allowed"),
        ("a: 1\n---\nb: 2", r"f:2:1: a second document"),
        ("a: &x [*x]", r"f:1:8: the alias \*x refers to nothing that is complete"),
        ("<<: {a: 1}", r"merge keys are not supported"),
        ("? [1, 2]\n: 3", r"a key must be a plain word"),
        ("a: {1: x}", r"f:1:5: the key '1' is not text; put it in quotes if it is a name"),
        ("true: x", r"the key 'true' is not text"),
        ("null: x", r"the key 'null' is not text"),
        ("a:\n  - b\n\t- c", r"f:3:1: not valid YAML: a tab; indent with spaces"),
        ("a: 1\nb: é\x01", r"f:2:5: a character that YAML does not allow: #x0001"),
        ("a:\n\tb: 1", r"f:2:1: not valid YAML"),
        ("a: 'x", r"not valid YAML"),
        ("a: \x00", r"a character that YAML does not allow: #x0000"),
        ("[" * 100_000, r"nested more than 64 levels deep"),
        ("{a: " * 100_000, r"nested more than 64 levels deep"),
        ("a: " + "x" * (1 << 20), r"larger than 1 MiB"),
    ],
)
def test_what_is_not_a_configuration_is_an_error_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "f")


def test_a_billion_laughs_end_at_the_limit_of_values() -> None:
    lines = ["a0: &a0 [" + ",".join("1" * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match=r"more than 100,000 values, aliases expanded"):
        read_yaml("\n".join(lines), "f")


def test_an_alias_is_a_copy() -> None:
    data = read_yaml("a: &x {b: [1]}\nc: *x", "f").value
    data["a"]["b"].append(2)
    assert data["c"] == {"b": [1]}


@QUIET
@given(st.text())
def test_random_text_gives_data_or_our_own_error(text: str) -> None:
    try:
        read_yaml(text, "f")
    except ConfigError as error:
        assert error.problems[0].place is not None


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
NUMBER_LIKE = st.sampled_from(
    ["5e-5", "1e5", "0o17", "1_000", "no", "true", "null", "~", "", ".inf", "12:30", "0x1", "1."]
)
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)


@QUIET
@given(st.recursive(SCALARS | NUMBER_LIKE, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12))
def test_what_is_written_is_read_back_equal(tree: object) -> None:
    found = read_yaml(to_yaml({"tree": tree}), "f").value["tree"]
    assert found == tree
    assert repr(found) == repr(tree)
