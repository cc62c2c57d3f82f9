import pytest
import reasoning_gym

from allotment.tasks.levels import LEVELS
from allotment.tasks.mixture import load_mixture
from allotment.tasks.verifier import is_correct


@pytest.fixture(scope="module")
def mixture():
    return load_mixture()


def test_the_three_sets_are_disjoint_and_every_level_is_in_each(mixture):
    sets = [mixture.pool, mixture.held_out, mixture.warm_start]
    questions = [p.question for part in sets for p in part]
    assert len(set(questions)) == len(questions)
    ids = [p.id for part in sets for p in part]
    assert len(set(ids)) == len(ids)
    for part in sets:
        assert {p.level for p in part} == {level.name for level in LEVELS}


def test_the_mixture_is_the_same_at_every_generation(mixture):
    assert load_mixture.__wrapped__() == mixture


def test_the_reference_answer_is_correct_and_nothing_else_is(mixture):
    for problem in mixture.held_out:
        assert is_correct(problem, problem.answer)
        for other in (problem.answer + "1", " " + problem.answer, problem.answer + " ", "0" + problem.answer, ""):
            assert not is_correct(problem, other)


def test_partial_credit_and_the_spell_backward_hole_are_closed(mixture):
    """reasoning-gym's own scores for these wrong answers are above any sensible threshold."""
    score = reasoning_gym.get_score_answer_fn("spell_backward")
    words = [p for p in mixture.pool if p.level == "spell_backward-8"]
    assert max(score(p.answer + "s", dict(p.entry)) for p in words) > 0.999
    assert all(score(p.answer.upper(), dict(p.entry)) == 1.0 for p in words)
    assert not any(is_correct(p, p.answer + "s") or is_correct(p, p.answer.upper()) for p in words)
    total = next(p for p in mixture.pool if p.level == "chain_sum-2x2")
    assert reasoning_gym.get_score_answer_fn("chain_sum")(total.answer + ".0", dict(total.entry)) == 1.0
    assert not is_correct(total, total.answer + ".0")
