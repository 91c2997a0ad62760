"""Wrong parameters: one fault for each place, whatever pydantic's model of them looks like."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from saeval.base.parameters import Fault, ParameterError, validated, validated_as


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = 1


class Kinds(BaseModel):
    on: bool = False
    size: int = 1
    share: float | None = None
    either: bool | int = 0
    shares: dict[str, float] = Field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    named: float = Field(default=0, alias="as")


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=1)] | Literal["auto"]
    lists: dict[str, list[int] | list[str]] = Field(default_factory=dict)
    inner: Inner = Field(default_factory=Inner)
    named: int = Field(default=0, alias="as")

    @field_validator("named")
    @classmethod
    def _even(cls, named: int) -> int:
        if named % 2:
            raise ValueError("Odd numbers are taken")
        return named


def faults(given, what=""):
    with pytest.raises(ParameterError) as raised:
        validated_as(Given, given, what)
    assert str(raised.value) == "; ".join(fault.sentence for fault in raised.value.faults)
    return raised.value.faults


@pytest.mark.parametrize(
    ("given", "location", "sentence", "kind"),
    [
        ({"size": 0}, ("size",), "'size': input should be greater than or equal to 1, got 0", "wrong"),
        ({}, ("size",), "the key 'size' is missing", "missing"),
        ({"size": 1, "sise": 2}, ("sise",), "unknown key 'sise'; did you mean 'size'?", "unknown"),
        ({"size": 1, "inner": {"widht": 2}}, ("inner", "widht"), "unknown key 'widht'; did you mean 'width'?", "unknown"),
        ({"size": 1, "lists": {"list[int]": [3, {}]}}, ("lists", "list[int]", 1), "'lists.list[int].1': input should be a valid integer, got {}", "wrong"),
        ({"size": 1, "as": 3}, ("as",), "'as': odd numbers are taken, got 3", "wrong"),
    ],
)  # fmt: skip
def test_each_place_is_one_fault(given, location, sentence, kind):
    assert Fault(location, sentence, kind) in faults(given)
    assert len({fault.location for fault in faults(given)}) == len(faults(given))


def test_a_sentence_says_whose_parameters_they_are():
    wrong = faults({"sise": 2, "as": "x"}, "metric 'm'")
    assert [fault.sentence for fault in wrong] == [
        "metric 'm' needs the parameter 'size'",
        "'as' of metric 'm': input should be a valid integer, unable to parse string as an integer, got 'x'",
        "unknown parameter 'sise' of metric 'm'; did you mean 'size'?",
    ]


def test_of_a_class_the_parameters_of_its_init():
    class Metric:
        def __init__(self, draws: int = 3, names: tuple[str, ...] = ()):
            pass

    assert validated(Metric, {"names": ["a"]}, "metric 'm'") == {"draws": 3, "names": ("a",)}
    with pytest.raises(ParameterError, match="an integer of at most 64 bits"):
        validated(Metric, {"draws": 10**30}, "metric 'm'")
    with pytest.raises(ParameterError, match="'draws' of metric 'm': input should be a valid integer, got '3'"):
        validated(Metric, {"draws": "3"}, "metric 'm'", strict=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"on": "yes"}, "'on' of metric 'm': expected true or false without quotes, got 'yes'"),
        ({"on": 1}, "'on' of metric 'm': expected true or false, got 1"),
        ({"size": "8"}, "'size' of metric 'm': expected a number without quotes, got '8'"),
        ({"size": True}, "'size' of metric 'm': expected a number, got True"),
        ({"share": "0.5"}, "'share' of metric 'm': expected a number without quotes, got '0.5'"),
        ({"shares": {"a": 0.5, "b": "0.5"}}, "'shares.b' of metric 'm': expected a number without quotes, got '0.5'"),
        ({"sizes": [1, "8"]}, "'sizes.1' of metric 'm': expected a number without quotes, got '8'"),
        ({"as": False}, "'as' of metric 'm': expected a number, got False"),
    ],
    ids=str,
)
def test_text_is_no_number_and_a_number_no_truth_value(given, sentence):
    with pytest.raises(ParameterError) as raised:
        validated_as(Kinds, given, "metric 'm'")
    assert [fault.sentence for fault in raised.value.faults] == [sentence]


def test_numbers_may_be_whole_and_truth_values_numbers_where_both_are_allowed():
    kinds = validated_as(Kinds, {"either": True, "size": 8.0, "share": 1})
    assert (kinds.either, kinds.size, kinds.share) == (True, 8, 1.0)
