"""Shapes are checked while the tests run, in functions within functions, too, and whenever these are made."""

from typing import Protocol, runtime_checkable

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from typechecking import CheckedOnce, check_types

from patchscopes.model.lens_model import LensModel


def make_double(factor: float):
    @jaxtyped(typechecker=check_types)
    def double(one: Float[Tensor, " row"], other: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        return (one + other).repeat(int(factor))

    return double


@pytest.mark.parametrize("time", ["first", "second"])
def test_a_function_within_a_function(time):
    two, three = torch.zeros(2), torch.zeros(3)
    assert make_double(1)(two, two).shape == (2,)
    with pytest.raises(TypeCheckError, match="parameters of"):
        make_double(1)(two, three)
    with pytest.raises(TypeCheckError, match="return value"):
        make_double(2)(two, two)


def test_another_signature_of_the_same_name_is_another_check():
    def make(annotation):
        @jaxtyped(typechecker=check_types)
        def same(x: annotation) -> None:
            pass

        return same

    make(Float[Tensor, " row"])(torch.zeros(2))
    make(Float[Tensor, "row column"])(torch.zeros(2, 2))
    with pytest.raises(TypeCheckError):
        make(Float[Tensor, "row column"])(torch.zeros(2))


def test_models_are_still_told_from_others(llama):
    assert isinstance(llama, LensModel)
    assert not isinstance(llama.original_model, LensModel)
    assert not isinstance("llama", LensModel)


def test_one_look_at_each_type():
    looks = []

    @runtime_checkable
    class HasCost(Protocol):
        @property
        def cost(self) -> int: ...

    class Costly:
        @property
        def cost(self) -> int:
            looks.append(self)
            return 1

    HasCost.__class__ = CheckedOnce
    assert all(isinstance(Costly(), HasCost) for _ in range(3))
    assert len(looks) == 1
