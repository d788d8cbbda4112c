"A training that goes well raises no alarm."
from dataclasses import replace

import pytest, torch

from dpo_nb.dpo import read_training
from dpo_nb.running import recipes, run_recipe

@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.full) for s in range(1, 5))])
def test_a_healthy_run_raises_no_alarm(tmp_path, seed):
    torch.set_num_threads(1)
    result = run_recipe(replace(recipes["tiny"], seed=seed, num_test_instructions=20), tmp_path, say=lambda line: None)
    assert result.training.alarms == read_training(tmp_path).alarms == [] and len(result.training.history) > 20
