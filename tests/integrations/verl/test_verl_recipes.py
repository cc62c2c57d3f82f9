"""The recipes of docs/guides/recipes.md for verl: hydra composes them, verl and the adapter take them."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from verl.trainer.ppo.utils import need_critic
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import validate_config

import allotment.integrations.verl  # noqa: F401 (registers the trainers)
from allotment.integrations.verl.config import planner_of, read, set_values

sys.path.append(str(Path(__file__).parents[2]))
from pages import titled

RECIPES = {name: text for name, text in titled("guides/recipes.md").items() if name.startswith("verl_")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_taken(name):
    words = shlex.split(RECIPES[name].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", words[3:])
    validate_config(config, use_reference_policy=False, use_critic=need_critic(config))
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)
    set_values(config, {"trainer.v1.trainer_mode": trainer.verl_mode, "allotment.trainer_hook": True})  # as it does
    settings, batch = read(config)
    assert batch.budget == 4096
    assert planner_of(config, settings, batch).name == "vip"
