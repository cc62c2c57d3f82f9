"""Questions that cannot be answered are refused with a reason and a remedy, and change nothing."""

import numpy as np
import pytest
from planning_cases import COUNTING, EMBEDDING, EMBEDDINGS, IDS, NAMES, Known, assert_same, make, snapshot, with_history

from allotment import VIP
from allotment.errors import (
    DuplicatePromptError,
    InfeasibleBudgetError,
    InvalidInputError,
    UnknownPromptError,
)
from allotment.planning import RewardVarianceVIP, RidgeVIP

every_planner = pytest.mark.parametrize("name", NAMES)

BAD_ASKS = {
    "empty batch": ([], None, InvalidInputError, "empty"),
    "empty array": (np.array([], dtype=int), None, InvalidInputError, "empty"),
    "duplicate": ([7, "x", 7], 12, DuplicatePromptError, "7"),
    "duplicate across int types": ([7, np.int32(7)], 12, DuplicatePromptError, "7"),
    "duplicate across str types": (["x", np.str_("x")], 12, DuplicatePromptError, "x"),
    "float id": ([7, 1.0], 12, InvalidInputError, "float"),
    "bool id": ([7, True], 12, InvalidInputError, "bool"),
    "numpy bool id": ([7, np.True_], 12, InvalidInputError, "bool"),
    "no id": ([7, None], 12, InvalidInputError, "NoneType"),
    "bytes id": ([7, b"x"], 12, InvalidInputError, "bytes"),
    "tuple id": ([7, ("x",)], 12, InvalidInputError, "tuple"),
    "two dimensions": (np.array([[7, 0]]), 12, InvalidInputError, "ndarray"),
    "lone string": ("7xy", 12, InvalidInputError, "not a sequence"),
    "lone int": (7, 12, InvalidInputError, "not a sequence"),
    "nothing": (None, 12, InvalidInputError, "not a sequence"),
    "budget below": ([7, "x"], 5, InfeasibleBudgetError, "6 .*20 "),
    "budget above": ([7, "x"], 21, InfeasibleBudgetError, "6 .*20 "),
    "budget zero": ([7, "x"], 0, InfeasibleBudgetError, "6 .*20 "),
    "budget negative": ([7, "x"], -12, InfeasibleBudgetError, "6 .*20 "),
    "own budget does not fit": ([7, "x"], None, InfeasibleBudgetError, "6 .*20 "),
    "budget float": ([7, "x"], 12.0, InvalidInputError, "12.0"),
    "budget nan": ([7, "x"], float("nan"), InvalidInputError, "nan"),
    "budget bool": ([7, "x"], True, InvalidInputError, "True"),
    "budget text": ([7, "x"], "12", InvalidInputError, "'12'"),
}


@pytest.mark.parametrize("name", ["VIP", "VIP.paper", "RidgeVIP", "RewardVarianceVIP"])
@pytest.mark.parametrize("case", BAD_ASKS)
def test_a_bad_question_is_refused_and_changes_nothing(name, case):
    ids, budget, error, mentions = BAD_ASKS[case]
    planner = with_history(make(name))
    before = snapshot(planner)
    with pytest.raises(error, match=mentions) as caught:
        planner.ask(ids, budget=budget)
    assert "fix:" in str(caught.value)
    assert_same(snapshot(planner), before)
    assert planner.ask([7, "x"], budget=12).budget == 12


@pytest.mark.parametrize("name", EMBEDDING)
def test_a_prompt_without_embedding_is_named_until_it_is_registered(name):
    planner = with_history(make(name))
    before = snapshot(planner)
    with pytest.raises(UnknownPromptError, match="stranger") as caught:
        planner.ask([7, "stranger"], budget=12)
    assert not str(caught.value).startswith(("'", '"'))
    assert_same(snapshot(planner), before)
    planner.predictor.register(["stranger"], EMBEDDINGS[:1])
    assert planner.ask([7, "stranger"], budget=12).budget == 12


@pytest.mark.parametrize("name", COUNTING)
def test_counting_planners_need_no_registration(name):
    assert with_history(make(name)).ask(["stranger", 7], budget=12).budget == 12


@every_planner
@pytest.mark.parametrize(
    "ids",
    [
        (7, 0, 12),
        [np.int64(7), np.uint8(0), 12],
        np.array([7, 0, 12]),
        np.array([7, 0, 12], dtype=object),
        dict.fromkeys([7, 0, 12]),
    ],
    ids=["tuple", "numpy ints", "array", "object array", "dict"],
)
def test_ids_of_any_make_become_plain(name, ids):
    planner, plain = make(name), make(name)
    plan = planner.ask(ids, budget=19)
    assert plan.prompt_ids == (7, 0, 12)
    assert [type(i) for i in plan.prompt_ids] == [int, int, int]
    np.testing.assert_array_equal(plan.counts, plain.ask([7, 0, 12], budget=19).counts)


def test_string_arrays_become_plain():
    plan = make("VIP").ask(np.array(["a", "b"]), budget=12)
    assert [type(i) for i in plan.prompt_ids] == [str, str]


def test_an_int_and_its_decimal_are_two_prompts():
    planner = make("VIP")
    plan = planner.ask([1, "1"], budget=12)
    planner.tell(plan, [1.0] * 6 + [0.0] * 6, [1] * 6 + ["1"] * 6)
    p_int, p_str = planner.ask([1, "1"], budget=12).posterior.success_probability()
    assert p_int > 0.7
    assert p_str < 0.3


@every_planner
def test_dr_grpo_needs_three(name):
    with pytest.raises(InvalidInputError, match="3 <= lower"):
        make(name, bounds=(2, 10), estimator="dr_grpo")
    assert make(name, bounds=(2, 10), estimator="rloo").ask(IDS, budget=24).counts.tolist() == [2] * len(IDS)
    with pytest.raises(InvalidInputError, match="2 <= lower"):
        make(name, bounds=(1, 10), estimator="rloo")


BAD_SETTINGS = [
    ({"budget": 75.0}, "budget"),
    ({"budget": True}, "budget"),
    ({"budget": "75"}, "budget"),
    ({"budget": None}, "budget"),
    ({"budget": 2}, "budget"),
    ({"budget": -75}, "budget"),
    ({"bounds": (10, 3)}, "lower <= upper"),
    ({"bounds": (3,)}, "pair"),
    ({"bounds": 3}, "pair"),
    ({"bounds": (3, 4, 5)}, "pair"),
    ({"bounds": (3.0, 10)}, "lower bound"),
    ({"bounds": (3, 10.5)}, "upper bound"),
    ({"bounds": ([3, 4], 10)}, "lower bound"),
    ({"bounds": (3, None)}, "upper bound"),
    ({"seed": 0.5}, "seed"),
    ({"seed": None}, "seed"),
    ({"estimator": "reinforce"}, "reinforce"),
]


@every_planner
@pytest.mark.parametrize(("setting", "mentions"), BAD_SETTINGS)
def test_settings_that_make_no_sense_are_refused(name, setting, mentions):
    with pytest.raises(InvalidInputError, match=mentions) as caught:
        make(name, **setting)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf")])
def test_a_threshold_that_decides_nothing_is_refused(threshold):
    with pytest.raises(InvalidInputError, match="threshold"):
        VIP(budget=75, success_threshold=threshold)


@every_planner
def test_numpy_settings_can_be_saved(name, tmp_path):
    """They could not, and nobody would have noticed before the first checkpoint."""
    numpy_made = make(name, budget=np.int64(75), bounds=np.array([3, 10]), seed=np.int32(0))
    numpy_made.save(tmp_path / "planner")
    assert_same(make(name).load(tmp_path / "planner").state_dict(), numpy_made.state_dict())


@pytest.mark.parametrize("make_planner", [VIP.paper, RidgeVIP, RewardVarianceVIP])
def test_embeddings_as_mapping_or_array_are_the_same(make_planner):
    settings = {"budget": 75, "bounds": (3, 10), "seed": 4}
    by_array = make_planner(**settings, embeddings=EMBEDDINGS, ids=IDS)
    by_mapping = make_planner(**settings, embeddings=dict(zip(IDS, EMBEDDINGS, strict=True)))
    assert_same(with_history(by_array).state_dict(), with_history(by_mapping).state_dict())


@pytest.mark.parametrize("mean", [[0.0, float("nan")], [0.0], [0.0, 1.0, 2.0]])
def test_a_predictor_that_answers_nonsense_is_caught(mean):
    class Broken(Known):
        def predict(self, ids):
            return super().predict(range(len(mean)))

    planner = VIP(budget=12, predictor=Broken(enumerate(mean)))
    with pytest.raises(InvalidInputError):
        planner.ask(["a", "b"])
    assert planner.open_plans == ()
