import pytest

from numwatch.errors import NumwatchError
from numwatch.recipes.blockwise import BlockScaling, MXScaling, NVFP4Scaling, RowScaling
from numwatch.recipes.loss_scalers import GradScalerRecipe, MegatronScaler, StaticLossScale
from numwatch.recipes.scaling import CurrentScaling, DelayedScaling, StaticScaling
from numwatch.recipes.spec import parse_any_recipe, parse_recipe, recipe_text

TEXTS = {
    "static:scale=8.0": StaticScaling(8.0),
    "current": CurrentScaling(),
    "current:power_of_two=true": CurrentScaling(power_of_two=True),
    "delayed": DelayedScaling(),
    "delayed:history=16,margin=1,algorithm=most_recent": DelayedScaling(16, 1, "most_recent"),
    "rowwise:power_of_two=true": RowScaling(power_of_two=True),
    "block": BlockScaling(),
    "mx:rule=rceil": MXScaling("rceil"),
    "nvfp4:square=true,hadamard=true": NVFP4Scaling(square=True, hadamard=True),
    "static-loss:scale=1024.0": StaticLossScale(1024.0),
    "grad-scaler:growth_interval=100": GradScalerRecipe(growth_interval=100),
    "megatron:initial_scale=65536.0,hysteresis=3": MegatronScaler(65536.0, hysteresis=3),
}


@pytest.mark.parametrize(("text", "recipe"), TEXTS.items())
def test_a_text_is_a_recipe_and_back(text, recipe):
    assert parse_any_recipe(text) == recipe
    assert recipe_text(recipe) == text


def test_spaces_and_switches_are_read_generously():
    assert parse_recipe(" delayed: history = 16 , margin=0 ") == DelayedScaling(16)
    assert parse_recipe("current:power_of_two=YES") == CurrentScaling(power_of_two=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "delay",
            "unknown recipe 'delay': allowed are static, delayed, .*; did you mean 'delayed'",
        ),
        ("megatron", "unknown recipe 'megatron'"),  # none of an operand
        ("delayed:hist=3", "delayed takes history=, margin=, algorithm=; did you mean 'history'"),
        ("delayed:history", "has 'history': delayed takes"),
        ("delayed:history=1.5", "history is a whole number; got '1.5'"),
        ("delayed:history=1,history=2", "gives history twice"),
        ("static:scale=big", "scale is a number; got 'big'"),
        ("current:power_of_two=2", "power_of_two is true or false; got '2'"),
        ("block:size=3", "block takes none"),
        ("mx:rule=round", "one of floor, ceil, even, rceil; got 'round'"),
    ],
)
def test_bad_texts_say_what_is_allowed(text, said):
    with pytest.raises(NumwatchError, match=said):
        parse_recipe(text)


def test_a_function_of_ones_own_is_told_by_its_name():
    def median(history):
        return history.median(dim=0).values

    text = recipe_text(DelayedScaling(algorithm=median))
    assert text == "delayed:algorithm=median"
    with pytest.raises(NumwatchError, match="got 'median'"):
        parse_recipe(text)
