"""Fitting the blurry prior on the code embeddings of a training set."""

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from .heat import dct, heat_kernel, surviving_modes
from .prior import BlurryPrior

MIN_GAIN = 0.01  # modes damped below this share are lost in the noise delta, and are left out of the prior
MIN_MEMBERS = 100  # slices in a component: the mean of fewer could show one subject (40 slices, mirrored: 80)


def blurred_coefficients(embeddings: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The retained DCT coefficients of blur(e_0, sigma).

    Args:
        embeddings: (N, D, H, W) standardised code embeddings.

    Returns:
        (N, D * M) float64, and the flat indices (M,) of the retained modes.
    """
    height, width = embeddings.shape[-2:]
    modes = surviving_modes(sigma, height, width, MIN_GAIN).flatten().nonzero()[:, 0]
    gain = heat_kernel(torch.tensor(sigma, dtype=torch.float64), height, width).flatten()[modes]
    coefficients = dct(embeddings.double()).flatten(2)[..., modes] * gain
    return coefficients.flatten(1), modes


def fit_prior(
    embeddings: torch.Tensor,
    sigma: float,
    kind: str = "mixture",
    rank: int = 128,
    num_components: int = 8,
    seed: int = 0,
) -> BlurryPrior:
    """Fit a `BlurryPrior` on sharp code embeddings.

    Args:
        embeddings: (N, D, H, W) standardised code embeddings e_0 of the training slices.
        sigma: blur width in grid cells of the state to draw.
        kind: `mixture`, `slice` (a slice drawn by `seed`) or `images`.
        rank: dimension of the PCA space; at most N - 1 and D x (retained modes) can be had.
        num_components: Gaussians in the mixture, at most one for every `MIN_MEMBERS` slices. One that gathers fewer is
            dropped: its mean would be a picture of the few.
        seed: of the mixture's initialisation.
    """
    coefficients, modes = blurred_coefficients(embeddings, sigma)
    generator = torch.Generator().manual_seed(seed)
    if kind == "slice":
        mean = coefficients[torch.randint(len(coefficients), (), generator=generator)]
        basis, means, weights = mean.new_zeros(0, len(mean)), mean.new_zeros(1, 0), mean.new_ones(1)
        factors, variance_kept = mean.new_zeros(1, 0, 0), 0.0
    else:
        mean = coefficients.mean(0)
        _, singular, basis = torch.linalg.svd(coefficients - mean, full_matrices=False)
        if kind == "mixture":
            basis = basis[: min(rank, len(coefficients) - 1)]
        scores = (coefficients - mean) @ basis.T
        variance_kept = float((singular[: len(basis)] ** 2).sum() / (singular**2).sum())
        if kind == "images":
            means, weights = scores, mean.new_full((len(scores),), 1 / len(scores))
            factors = mean.new_zeros(len(scores), len(basis), 0)
        elif kind == "mixture":
            weights, means, factors = _fit_mixture(scores, num_components, seed)
        else:
            raise ValueError(f"a prior is of kind mixture, slice or images, not {kind}")

    prior = BlurryPrior(
        kind=kind,
        code_dim=embeddings.shape[1],
        height=embeddings.shape[2],
        width=embeddings.shape[3],
        sigma=float(sigma),
        num_modes=len(modes),
        rank=len(basis),
        num_components=len(weights),
        factor_rank=factors.shape[-1],
        variance_kept=variance_kept,
    )
    state = {"modes": modes, "mean": mean, "basis": basis, "weights": weights, "means": means, "factors": factors}
    prior.load_state_dict(state)
    return prior.eval()


def _fit_mixture(scores: torch.Tensor, num_components: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Weights (C,), means (C, R) and covariance factors (C, R, R) of a mixture fitted to (N, R) PCA scores."""
    scale = scores.std(0).clamp_min(1e-12)  # the fit's regularisation is absolute: give every axis unit variance
    num_components = max(1, min(num_components, len(scores) // MIN_MEMBERS))
    mixture = GaussianMixture(num_components, covariance_type="full", reg_covar=1e-3, random_state=seed)
    mixture.fit((scores / scale).numpy())
    kept = mixture.weights_ >= min(MIN_MEMBERS / len(scores), mixture.weights_.max())
    weights = mixture.weights_[kept] / mixture.weights_[kept].sum()
    # Symmetric square roots: unlike Cholesky factors they exist where a covariance is singular to rounding.
    values, vectors = np.linalg.eigh(mixture.covariances_[kept])
    factors = torch.from_numpy(vectors * np.sqrt(values.clip(0))[:, None, :])
    return torch.from_numpy(weights), torch.from_numpy(mixture.means_[kept]) * scale, scale[:, None] * factors
