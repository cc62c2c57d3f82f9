"""What ``predictor_scale.py`` compares: each method takes a stream of embeddings and gives a predictor."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, logit

from allotment.prediction import GaussianProcess, HierarchicalPredictor
from allotment.prompts.embeddings import EmbeddedPrompts
from allotment.types import FloatArray

WINDOW = 8
"""Steps whose outcomes the refitted regressions know: 4,096 observations at 512 a step."""
Block = tuple[range, npt.NDArray[np.float32]]
"""Ids and embeddings [q, D] of some prompts; ids count from 0 through all blocks."""


class Predictor(Protocol):
    """What is measured: a step is one call of each."""

    def predict(self, ids: list[int]) -> object:
        """The belief about Q prompts."""
        ...

    def observe(self, ids: list[int], successes: Any, trials: Any) -> None:
        """Learn B counts."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to predict."""

    label: str
    make: Callable[[Iterable[Block]], Predictor]
    after_epoch: bool = False
    """Whether every prompt is visited once before anything is timed."""
    bytes_at: Callable[[int], float] = lambda n: 0.0
    """Memory that N prompts are known to need, where that may be too much to try; bytes."""
    package: str | None = None
    """What has to be installed."""


class PairwiseProcess:
    """The paper's Gaussian process the way the authors' code stores it: all pairwise distances and their kernel.

    Both [N, N] in float32 and kept, which with the temporaries of the kernel makes 12 N^2 bytes; length scale 0.4,
    prior mean -1, jitter 1e-4, labels clipped at 1e-6. The same recursion as ``GaussianProcess``, which forms the
    columns of the batch only.
    """

    def __init__(self, x_ND: npt.NDArray[np.float32], length_scale: float = 0.4, prior_mean: float = -1.0) -> None:
        self.distances_NN = _distances(x_ND)
        self.kernel_NN = np.exp(-0.5 * (self.distances_NN / length_scale) ** 2)
        self.mean_N = np.full(len(x_ND), prior_mean)

    def predict(self, ids: list[int]) -> FloatArray:
        """[Q] success probabilities."""
        return np.asarray(expit(self.mean_N[ids]))

    def observe(self, ids: list[int], successes: Any, trials: Any) -> None:
        """Move all N means by what B counts say."""
        targets_B = logit(np.clip(np.asarray(successes) / np.asarray(trials), 1e-6, 1 - 1e-6))
        columns_BN = self.kernel_NN[ids]
        factor = cho_factor(columns_BN[:, ids] + 1e-4 * np.eye(len(ids)), lower=True)
        self.mean_N += columns_BN.T @ cho_solve(factor, targets_B - self.mean_N[ids])
        self.mean_N[ids] = targets_B


def _distances(x_ND: npt.NDArray[np.float32], rows: int = 2048) -> npt.NDArray[np.float32]:
    """[N, N] Euclidean distances, computed in blocks of rows."""
    squares_N = (x_ND**2).sum(axis=1)
    out_NN = np.empty((len(x_ND), len(x_ND)), dtype=np.float32)
    for start in range(0, len(x_ND), rows):
        block = slice(start, start + rows)
        squares = squares_N[block, None] + squares_N - 2 * (x_ND[block] @ x_ND.T)
        out_NN[block] = np.sqrt(np.maximum(squares, 0))
    return out_NN


class Refitted:
    """A regression of smoothed logits on embeddings, fitted anew at every step to the last :data:`WINDOW` steps.

    Kernel ``4 exp(-|x - x'|^2 / 2)``, noise variance 0.5, all held: estimating them by maximum likelihood would cost a
    fit for each of dozens of trial values. Nothing is fitted before the window is full.
    """

    def __init__(
        self, vectors: EmbeddedPrompts, fit: Callable[[FloatArray, FloatArray], Callable[[FloatArray], object]]
    ):
        self.vectors, self.fit = vectors, fit
        self.window: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=WINDOW)
        self.fitted: Callable[[FloatArray], object] | None = None

    def predict(self, ids: list[int]) -> object:
        """Means and standard deviations of Q logits, once there is a fit."""
        return self.fitted and self.fitted(self._embeddings(ids))

    def observe(self, ids: list[int], successes: Any, trials: Any) -> None:
        """Put B counts into the window and fit."""
        rates_B = (np.asarray(successes) + 0.5) / (np.asarray(trials) + 1.0)
        self.window.append((self._embeddings(ids), np.asarray(logit(rates_B))))
        if len(self.window) == WINDOW:
            self.fitted = self.fit(np.vstack([x for x, _ in self.window]), np.hstack([y for _, y in self.window]))

    def _embeddings(self, ids: list[int]) -> FloatArray:
        return self.vectors.rows(self.vectors.index.rows(ids))


def fit_sklearn(x_BD: FloatArray, y_B: FloatArray) -> Callable[[FloatArray], object]:
    """scikit-learn's GaussianProcessRegressor."""
    process: Any = importlib.import_module("sklearn.gaussian_process")
    kernel = process.kernels.ConstantKernel(4.0) * process.kernels.RBF(1.0)
    model = process.GaussianProcessRegressor(kernel, alpha=0.5, optimizer=None).fit(x_BD, y_B)
    return lambda x_QD: model.predict(x_QD, return_std=True)


def fit_gpytorch(x_BD: FloatArray, y_B: FloatArray) -> Callable[[FloatArray], object]:
    """GPyTorch's ExactGP, float32, by Cholesky factor: faster here than the conjugate gradients it defaults to."""
    torch, gpytorch = (importlib.import_module(name) for name in ("torch", "gpytorch"))

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc, name-defined]
        def __init__(self, x: Any, y: Any, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ZeroMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Process(torch.tensor(x_BD).float(), torch.tensor(y_B).float(), likelihood).eval()
    model.initialize(**{"likelihood.noise": 0.5, "kernel.outputscale": 4.0, "kernel.base_kernel.lengthscale": 1.0})

    def predict(x_QD: FloatArray) -> object:
        with torch.no_grad(), gpytorch.settings.max_cholesky_size(len(x_BD) + 1):
            posterior = model(torch.tensor(x_QD).float())
            return posterior.mean, posterior.variance

    return predict


def _registered(predictor: Any, blocks: Iterable[Block]) -> Any:
    for ids, x_qD in blocks:
        predictor.register(ids, x_qD)
    return predictor


METHODS = {
    "default": Method("HierarchicalPredictor", lambda blocks: _registered(HierarchicalPredictor(), blocks)),
    "default-visited": Method(
        "HierarchicalPredictor, all visited", lambda blocks: _registered(HierarchicalPredictor(), blocks), True
    ),
    "paper": Method("GaussianProcess (paper)", lambda blocks: _registered(GaussianProcess(), blocks)),
    "pairwise": Method(
        "N × N distances (authors' code)",
        lambda blocks: PairwiseProcess(np.concatenate([x_qD for _, x_qD in blocks])),
        bytes_at=lambda n: 12.0 * n * n,
    ),
    "sklearn": Method(
        "scikit-learn, refit on 8 steps",
        lambda blocks: Refitted(_registered(EmbeddedPrompts(), blocks), fit_sklearn),
        package="sklearn",
    ),
    "gpytorch": Method(
        "GPyTorch, refit on 8 steps",
        lambda blocks: Refitted(_registered(EmbeddedPrompts(), blocks), fit_gpytorch),
        package="gpytorch",
    ),
}
