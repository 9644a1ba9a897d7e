"""What a value may stand for, and how a wrong one is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import Document, convert, load_text, render_problems
from oumi_kernel.loading.yaml_reader import read_yaml
from oumi_kernel.schema import FINITE, ConfigEnum, Params
from tests.conftest import minimal_yaml


class Shape(ConfigEnum):
    ROUND = "round"
    SQUARE = "square"


class Inner(Params):
    size: int
    names: list[str] = []


class Outer(Params):
    whole: Annotated[int, Meta(ge=1, le=9)] = 1
    real: Annotated[float, Meta(ge=0, le=FINITE)] = 1.0
    text: str = ""
    switch: bool = False
    either: int | Literal["auto"] = "auto"
    shape: Shape = Shape.ROUND
    bits: Literal[4, 8] = 4
    inner: Inner | None = None
    inners: list[Inner] | None = None
    by_name: dict[str, Inner] = {}
    at_least_one: Annotated[list[str], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["x"])
    free: dict[str, Any] = {}

    def check(self) -> Iterator[tuple[str, str]]:
        if self.whole == 7:
            yield "whole", "seven is taken."


class Needs(Params):
    number: Annotated[int, Meta(ge=1)]
    other: int = 0


class Strict(Params):
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must not be above high")


def read(text: str, struct: type[Any] = Outer) -> Any:
    root = read_yaml(text, "f")
    return convert(root.value, struct, document=Document(root, text, "f"), path="", distribution="acme 1.0")


def problems(text: str, struct: type[Any] = Outer) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(text, struct)
    assert {problem.distribution for problem in caught.value.problems} == {"acme 1.0"}
    return [(problem.path, f"{problem.message} {problem.hint}".strip()) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("whole: 3.0", "whole", 3),
        ("whole: '3'", "whole", 3),
        ("whole: '3e0'", "whole", 3),
        ("real: 1", "real", 1.0),
        ("real: '5e-5'", "real", 5e-5),
        ("text: 5e-5", "text", "5e-5"),
        ("text: 1_0", "text", "1_0"),
        ("switch: 'true'", "switch", True),
        ("either: 4.0", "either", 4),
        ("either: auto", "either", "auto"),
        ("shape: SQUARE", "shape", Shape.SQUARE),
        ("bits: 8.0", "bits", 8),
        ("inner:", "inner", None),
        ("inners: [{size: 1.0}]", "inners", [Inner(size=1)]),
        ("by_name: {a: {size: '2', names: [1, 2e0, x]}}", "by_name", {"a": Inner(size=2, names=["1", "2e0", "x"])}),
        ("free: {a: '5e-5', b: 5e-5}", "free", {"a": "5e-5", "b": 5e-5}),
    ],
)
def test_a_value_stands_for_what_it_can_only_mean(text: str, field: str, value: object) -> None:
    assert getattr(read(text), field) == value


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("whole: 0", "whole", "expected a whole number >= 1 and <= 9, got 0."),
        ("whole: 2.5", "whole", "expected a whole number >= 1 and <= 9, got 2.5."),
        ("whole: true", "whole", "expected a whole number >= 1 and <= 9, got true."),
        ("real: .inf", "real", "expected a number >= 0, got inf."),
        ("real: .nan", "real", "expected a number >= 0, got nan."),
        ("text: true", "text", "expected text, got true. put it in quotes if it is meant as text"),
        ("switch: on", "switch", "expected true or false, got 'on'. write true or false"),
        ("either: autox", "either", "'autox' is not a valid choice. did you mean 'auto'? choices: auto"),
        ("shape: rond", "shape", "'rond' is not a valid choice. did you mean 'round'? choices: round, square"),
        ("bits: 3", "bits", "expected 4, or 8, got 3."),
        ("inner: 3", "inner", "expected a mapping, or null, got 3."),
        ("inner: {}", "inner.size", "'size' is required here."),
        ("inners: [{size: 1}, {siz: 2}]", "inners[1].siz", "unknown key 'siz'. did you mean 'size'?"),
        ("by_name: {a: {size: x}}", "by_name.a.size", "expected a whole number, got 'x'."),
        ("by_name: {a.b: {size: x}}", 'by_name["a.b"].size', "expected a whole number, got 'x'."),
        ("inner: {size: 1, names: [a, [b]]}", "inner.names[1]", "expected text, got a list of 1."),
        ("whole: 7", "whole", "seven is taken."),
    ],
)
def test_a_wrong_value_is_told_with_its_path_and_what_was_expected(text: str, path: str, message: str) -> None:
    assert problems(text)[0] == (path, message)


@pytest.mark.parametrize(
    ("text", "code"), [("whole: 0", "out-of-range"), ("whole: 2.5", "wrong-type"), ("real: -0.5", "out-of-range")]
)
def test_a_number_is_out_of_range_only_where_its_kind_fits(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_constraint_on_a_whole_list_is_kept() -> None:
    assert problems("at_least_one: []")[0][0] == "at_least_one"


def test_a_required_value_that_nothing_can_stand_in_for_is_an_error_of_ours() -> None:
    assert problems("othr: 1", Needs) == [
        ("othr", "unknown key 'othr'. did you mean 'other'?"),
        ("number", "'number' is required here."),
    ]
    assert problems("number: 0", Needs) == [("number", "expected a whole number >= 1, got 0.")]


def test_what_a_struct_checks_for_itself_is_an_error_of_ours() -> None:
    assert problems("low: 3", Strict) == [("", "low must not be above high.")]


def test_a_misplaced_key_is_sent_to_its_section() -> None:
    text = minimal_yaml(model="  seed: 3\n  r: 3\n", training="  peft: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_text(text, "c.yaml")
    assert {problem.path: problem.hint for problem in caught.value.problems} == {
        "model.seed": "this key belongs under `training` or `data.train`",
        "model.r": "this key belongs under `peft`",
        "training.peft": "this key belongs at the top, not in a section",
    }


def test_a_section_of_the_wrong_kind_is_one_problem_and_not_also_its_consequences() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("model: 3\ndata: [1]\n", "c.yaml")
    assert [str(problem) for problem in caught.value.problems] == [
        "c.yaml:1:8: model: expected a mapping, got 3.",
        "c.yaml:2:7: data: expected a mapping, got a list of 1.",
    ]


def test_every_rule_runs_beside_wrong_values() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(minimal_yaml(training="  seed: x\n  max_steps: 0\n  num_train_epochs: 0\n"), "c.yaml")
    assert {problem.path for problem in caught.value.problems} == {"training.seed", "training.max_steps"}


def test_the_caret_stands_under_the_value_after_wide_characters() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(
            "model: {model_name: 模型, trust_remote_code: x}\n"
            + minimal_yaml().partition("data")[2].join(["data", ""]),
            "c",
        )
    lines = render_problems(caught.value.problems).splitlines()
    cells = sum(2 if ord(c) > 0x2E80 else 1 for c in lines[1][: lines[1].index("x}")])
    assert lines[2].index("^") == cells


def test_a_problem_far_to_the_right_is_shown_with_its_surroundings() -> None:
    line = "training: {trainer_kwargs: {a: " + "x" * 300 + "}, sed: 1}"
    with pytest.raises(ConfigError) as caught:
        load_text(minimal_yaml() + line, "c.yaml")
    _, excerpt, pointer, _ = render_problems(caught.value.problems).splitlines()
    assert excerpt[pointer.index("^") :] == "sed: 1}"
