"""The weight of a prompt: the variance of one of its rewards.

Unit: variance of a 0/1 reward, ``p (1 - p)``, between 0 and 1/4. The paper's rewards are -1/+1 and its weight carries
the factor ``4 sigma_Z^2``, the same for all prompts; it changes no allocation and is left out. For real-valued rewards
the weight is ``Var(R)`` itself (VIP, propositions E.1 and E.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.types import FloatArray, Posterior


def posterior_weights(posterior: Posterior, *, plug_in: bool = False) -> FloatArray:
    """Weight of each prompt, [Q], in [0, 1/4].

    By default ``E[p (1 - p)]`` under the posterior: uncertainty about p is priced. With ``plug_in`` it is
    ``p (1 - p)`` at ``p = sigmoid(mean)``, the paper's choice (VIP, section 5.1).
    """
    return bernoulli_weights(posterior.plug_in_probability()) if plug_in else posterior.expected_variance()


def bernoulli_weights(success_probabilities: npt.ArrayLike) -> FloatArray:
    """``p (1 - p)`` of each prompt, [Q]; raises as :func:`check_probabilities`."""
    p_Q = check_probabilities(success_probabilities)
    return p_Q * (1.0 - p_Q)


def check_probabilities(success_probabilities: npt.ArrayLike) -> FloatArray:
    """``success_probabilities`` as a non-empty float vector [Q], all in [0, 1]; raises as :func:`check_vector`."""
    return check_vector("success probability", success_probabilities, high=1.0)


def check_vector(what: str, values: npt.ArrayLike, *, high: float | None = None) -> FloatArray:
    """``values`` as a non-empty float vector [Q] whose entries are finite, >= 0 and (if given) <= ``high``.

    Raises:
        InvalidInputError: they are not; names the first offending index and its value.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"a {what} is not a number", got=error, allowed="real numbers", fix="pass a vector of floats"
        ) from error
    if vector.ndim != 1 or vector.size == 0:
        raise InvalidInputError(
            f"the batch needs one {what} per prompt",
            got=f"an array of shape {vector.shape}",
            allowed="a non-empty vector [Q]",
            fix="skip empty batches; pass one number per prompt",
        )
    bad_Q = ~(np.isfinite(vector) & (vector >= 0.0))
    if high is not None:
        bad_Q |= vector > high
    if bad_Q.any():
        index = int(bad_Q.argmax())
        raise InvalidInputError(
            f"the {what} of prompt {index} is outside its domain",
            got=f"{vector[index]} at index {index} ({int(bad_Q.sum())} such of {vector.size})",
            allowed="finite, >= 0" if high is None else f"in [0, {high:g}]",
            fix="look at the predictor or the file this number comes from",
        )
    return vector
