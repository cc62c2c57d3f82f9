import itertools
import re
from fractions import Fraction

import pytest
import reasoning_gym

from allotment.lab.policy import MAX_PROMPT
from allotment.lab.regime import REGIMES
from allotment.lab.tokenizer import Tokenizer
from allotment.tasks.countdown import (
    HELD_OUT_PER_LEVEL,
    LEVELS,
    POOL_PER_LEVEL,
    load_countdown,
    mixture_of,
    solutions,
    solutions_of,
)
from allotment.tasks.mixture import load_mixture
from allotment.tasks.verifier import is_correct

GENERIC = {"w": Fraction(1013, 7), "x": Fraction(-419, 11), "y": Fraction(97, 13), "z": Fraction(-5, 17)}
"""Values at which two expressions agree only if they agree everywhere."""


def value(text, names=GENERIC):
    try:
        return eval(text, {}, names)  # expressions made here
    except ZeroDivisionError:
        return None


def written(names):
    """Every way to write an expression of these names in this order, with and without each pair of brackets."""
    if len(names) == 1:
        return {names}
    texts = set()
    for cut in range(1, len(names)):
        parts = [
            [text for t in written(part) for text in ({t} if len(part) == 1 else {t, f"({t})"})]
            for part in (names[:cut], names[cut:])
        ]
        texts |= {f"{a}{o}{b}" for a in parts[0] for o in "+-*/" for b in parts[1]}
    return texts


def without_each_bracket(text):
    for opening in (i for i, c in enumerate(text) if c == "("):
        depth = 0
        for closing in range(opening, len(text)):
            depth += (text[closing] == "(") - (text[closing] == ")")
            if depth == 0:
                break
        yield text[:opening] + text[opening + 1 : closing] + text[closing + 1 :]


def by_brute_force(numbers, target):
    """Every order of the numbers in every expression of which no bracket can be left out."""
    names = "wxyz"[: len(numbers)]
    shapes = [t for t in written(names) if all(value(o) != value(t) for o in without_each_bracket(t))]
    found = set()
    for order in set(itertools.permutations(numbers)):
        own = dict(zip(names, map(Fraction, order), strict=True))
        for shape in shapes:
            if value(shape, own) == target:
                found.add(re.sub("[wxyz]", lambda match, own=own: str(own[match[0]]), shape))
    return found


@pytest.mark.parametrize(
    ("numbers", "target"),
    [((2, 3), 6), ((3, 3), 1), ((1, 2, 3), 6), ((2, 2, 2), 2), ((3, 8, 8), 24), ((3, 3, 8, 8), 24), ((1, 2, 3, 4), 10),
     ((2, 2, 7, 8), 20), ((1, 1, 1, 1), 30)],
)  # fmt: skip
def test_the_solutions_are_those_of_brute_force(numbers, target):
    assert set(solutions(numbers, target)) == by_brute_force(numbers, target)


def test_known_solutions():
    assert list(solutions((3, 3, 8, 8), 24)) == ["8/(3-8/3)"]  # through a fraction, the only one
    assert list(solutions((1, 1, 1, 1), 30)) == []
    assert len(solutions((1, 2, 3), 6)) == 18  # six orders of the sum, six of the product, six that divide by 1


@pytest.mark.parametrize(
    ("same", "one", "other"),
    [
        (True, "1+2+3", "3+1+2"),
        (True, "5-(1-2)", "2+5-1"),
        (True, "8/(2/3)", "3*8/2"),
        (True, "(2+3)*4", "4*(3+2)"),
        (False, "2+2", "2*2"),
        (False, "1*2*3", "1+2+3"),
        (False, "2*(3+4)-7", "2*3+2*4-7"),
        (False, "6*1", "6/1"),
    ],
)
def test_answers_of_one_form_differ_by_order_and_brackets_alone(same, one, other):
    forms = []
    for text in (one, other):
        numbers = tuple(sorted(map(int, re.findall(r"\d+", text))))
        whole = re.sub(r"\d+", lambda match: f"Fraction({match[0]})", text)
        forms.append(solutions(numbers, int(eval(whole)))[text])
    assert (forms[0] == forms[1]) == same


@pytest.mark.parametrize("numbers", [(2, 3, 4), (1, 2, 3, 4), (2, 3, 5, 7), (1, 4, 8, 9)])
def test_answers_of_one_form_are_equal_for_all_numbers(numbers):
    names = dict(zip(map(str, numbers), "wxyz", strict=False))
    for target in range(1, 31):
        values = {}
        for text, form in solutions(numbers, target).items():
            generic = value(re.sub(r"\d", lambda match: names[match[0]], text))
            assert values.setdefault(form, generic) == generic


@pytest.fixture(scope="module")
def countdown():
    return load_countdown()


def test_the_sets_are_disjoint_in_numbers_and_targets(countdown):
    keys = [
        (tuple(sorted(p.entry["metadata"]["numbers"])), p.entry["metadata"]["target"])
        for p in (*countdown.pool, *countdown.held_out)
    ]
    assert len(set(keys)) == len(keys)
    assert len(countdown.pool) == POOL_PER_LEVEL * len(LEVELS)
    assert len(countdown.held_out) == HELD_OUT_PER_LEVEL * len(LEVELS)
    assert load_countdown.__wrapped__() == countdown
    assert mixture_of("countdown") is countdown
    assert mixture_of("scratchpad") is load_mixture()


def test_all_solutions_and_only_they_are_correct(countdown):
    """reasoning-gym's own verifier gives every one of them the full score; it is more generous with the form."""
    score = reasoning_gym.get_score_answer_fn("countdown")
    for problem in countdown.pool[::12]:
        answers = list(solutions_of(problem))
        for answer in answers[:: len(answers) // 8 + 1]:
            assert score(answer, dict(problem.entry)) == 1.0
            assert is_correct(problem, answer)
            for other in (f"({answer})", f" {answer}", f"+{answer}", f"{answer}+0", f"{answer}*1", answer[:-1], ""):
                assert not is_correct(problem, other)
        assert is_correct(problem, problem.answer)
    wordy = countdown.pool[0]
    assert score(f"( {wordy.answer} )", dict(wordy.entry)) == 1.0
    assert not is_correct(wordy, f"( {wordy.answer} )")


def test_prompts_keep_their_text_and_fit_the_policy(countdown):
    questions = [p.question for p in countdown.pool]
    tokenizer = Tokenizer.train(questions)
    assert all(question.endswith("Do not include any other text or formatting.\n") for question in questions)
    assert max(len(tokenizer.encode_prompt(question)) for question in questions) <= MAX_PROMPT
    longest = max(len(answer) for p in countdown.pool for answer in solutions_of(p))
    assert longest == REGIMES["countdown"].max_answer == 11
