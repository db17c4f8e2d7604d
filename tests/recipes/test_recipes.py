from __future__ import annotations

import pytest
import torch

from factories import write_dataset
from u2pl import make_config
from u2pl.config import Config, parse_config
from u2pl.data.sources import load_dataset
from u2pl.engine.loop import check_against_data
from u2pl.errors import UserError
from u2pl.models import Segmenter
from u2pl.recipes import RECIPES, SETTINGS, adapt, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_a_complete_configuration_of_its_name(name: str) -> None:
    config = get_recipe(name)
    assert isinstance(config, Config)
    assert config.recipe == name
    adapts = config.method.mixing == "classmix_labeled"
    other = "weak" if name in ("voc-tags", "msrc21-small", "demo-weak") else "semi"
    assert config.setting == ("adapt" if adapts else other)
    assert parse_config(config.model_dump()) == config


@pytest.mark.parametrize(
    "name", ["camvid-small", "demo", "street6-small", "demo-adapt", "msrc21-small", "demo-weak"]
)
def test_small_recipe_builds_a_network_that_sees_its_own_crop(name: str) -> None:
    config = get_recipe(name)
    model = Segmenter(config.model, 3, load_pretrained=False).eval()
    height, width = config.data.crop
    with torch.no_grad():
        logits = model(torch.rand(1, 3, height, width), with_features=False).logits
    assert logits.shape == (1, 3, height // 4, width // 4)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_fits_every_number_of_classes(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for num_classes in (2, 6):
        folder = tmp_path_factory.mktemp("data")
        dataset = load_dataset(write_dataset(folder, num_classes=num_classes))
        check_against_data(get_recipe(name), dataset)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_leaves_steps_for_the_method(name: str) -> None:
    train = get_recipe(name).train
    assert 2 * train.supervised_steps <= train.steps


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_recipe_of_another_setting_takes_what_the_setting_changes(
    name: str, setting: str
) -> None:
    own, config = get_recipe(name), make_config(name, setting=setting)
    assert config.setting == setting
    if setting == own.setting:
        assert config == own
        return
    tree = config.model_dump()
    for dotted, value in SETTINGS[setting].items():
        group, key = dotted.split(".")
        assert tree[group][key] == value


def test_dacs_is_a_recipe_of_its_own_in_the_same_step() -> None:
    """Every target pixel has a label and weighs by the teacher's confidence; nothing contrasts."""
    config = get_recipe("gta5-cityscapes-dacs")
    assert config.method.contrastive_weight == 0
    assert config.method.initial_unreliable_fraction == 0
    assert config.method.pixel_weighting == "confident_share"
    assert config.method.mixing == "classmix_labeled"
    assert config.data.rare_class_temperature is None
    back = get_recipe("gta5-cityscapes").model_dump()
    changed = adapt.DACS | {"recipe": "gta5-cityscapes-dacs"}
    assert config.model_dump() == parse_config(back).with_overrides(changed).model_dump()


def test_queues_of_a_recipe_remember_several_steps() -> None:
    """method.md: pushing a whole step's keys would leave a queue no memory."""
    for name in RECIPES:
        method = get_recipe(name).method
        assert method.queue_size >= 10 * method.keys_per_step


def test_unknown_recipe_gets_the_nearest_name_and_the_list() -> None:
    with pytest.raises(UserError) as caught:
        get_recipe("camvit")
    assert str(caught.value) == (
        f"There is no recipe 'camvit'. Did you mean 'camvid'? Recipes: {', '.join(RECIPES)}."
    )
    assert caught.value.exit_code == 2
