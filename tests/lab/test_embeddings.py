import numpy as np

from allotment.lab.embeddings import KIND, SHIPPED, prompt_embeddings
from allotment.prediction import embed
from allotment.state import load_state
from allotment.tasks.countdown import load_countdown


def test_the_shipped_embeddings_are_those_of_the_pool(mixture):
    questions = [problem.question for problem in mixture.pool[::97]]
    shipped = load_state(SHIPPED, kind=KIND)["embeddings"]
    assert shipped.shape == (len(mixture.pool) + len(load_countdown().pool), 384)
    np.testing.assert_array_equal(prompt_embeddings(questions), shipped[: len(mixture.pool) : 97].astype(np.float64))
    np.testing.assert_allclose(prompt_embeddings(questions), embed(questions), atol=1e-3)


def test_the_shipped_embeddings_are_also_those_of_countdown():
    questions = [problem.question for problem in load_countdown().pool[::60]]
    np.testing.assert_allclose(prompt_embeddings(questions), embed(questions), atol=1e-3)


def test_other_questions_are_embedded():
    question = "What did nobody put into the pool?"
    np.testing.assert_array_equal(prompt_embeddings([question]), embed([question]).astype(np.float64))
