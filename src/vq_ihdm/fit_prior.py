"""Fitting the blurry prior on the code embeddings of a training set, chunk by chunk.

Memory holds the retained modes of one chunk, their covariance, and the PCA scores of all slices: never the embeddings
of all slices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import scipy.linalg
import torch
from sklearn.mixture import GaussianMixture

from .covariates import Covariate, covariate_features, nearest_covariates
from .errors import InputError
from .heat import dct, heat_kernel, surviving_modes
from .prior import BlurryPrior, condition

MIN_GAIN = 0.01  # modes damped below this share are lost in the noise delta, and are left out of the prior
MIN_SUBJECTS = 10  # behind every component: the mean of fewer could show one of them
CHUNK = 512  # slices embedded at a time: 63 MB of 256 x 11 x 11
FEATURE_NOISE = 0.1  # on the features of covariates: without it their covariance would be singular
NUM_RANKS = 17  # of a covariate's training values that its draws are brought to
RANKED_DRAWS = 10_000
IMPUTING_RANK = 16  # leading scores from which a missing covariate is drawn


def blurred_coefficients(embeddings: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The retained DCT coefficients of blur(e_0, sigma).

    Args:
        embeddings: (N, D, H, W) standardised code embeddings.

    Returns:
        (N, D * M), and the flat indices (M,) of the retained modes.
    """
    height, width = embeddings.shape[-2:]
    modes = surviving_modes(sigma, height, width, MIN_GAIN).flatten().nonzero()[:, 0]
    gain = heat_kernel(torch.tensor(sigma, dtype=torch.float64), height, width).flatten()[modes]
    coefficients = dct(embeddings).flatten(2)[..., modes] * gain.to(embeddings)
    return coefficients.flatten(1), modes


def fit_prior(
    states: torch.Tensor,
    sigma: float,
    kind: str = "mixture",
    rank: int = 128,
    num_components: int = 8,
    seed: int = 0,
    *,
    embed: Callable[[torch.Tensor], torch.Tensor] = lambda chunk: chunk,
    subjects: Sequence[str] | None = None,
    known_covariates: Sequence[Covariate] = (),
    covariates: torch.Tensor | None = None,
) -> BlurryPrior:
    """Fit a `BlurryPrior` on sharp code embeddings.

    Args:
        states: (N, D, H, W) standardised code embeddings e_0 of the training slices, or what `embed` makes them of.
        sigma: blur width in grid cells of the state to draw.
        kind: `mixture`, `slice` (a slice drawn by `seed`) or `images`.
        rank: dimension of the PCA space; at most N - 1 and D x (retained modes) can be had.
        num_components: Gaussians in the mixture, at most one for every `MIN_SUBJECTS` subjects. One that gathers fewer
            is dropped: its mean would be a picture of the few.
        seed: of everything that is drawn.
        embed: a chunk of states -> (n, D, H, W), for example codes to their embeddings.
        subjects: of each slice; when left out, each slice counts as a subject of its own.
        known_covariates, covariates: vocabulary and table (N, C), NaN where missing, for a mixture over scores and
            covariates together. A missing value is drawn once, given the slice's other covariates and leading scores,
            from one Gaussian fitted on the slices where none is missing. The other kinds do without covariates.

    Raises:
        ValueError: an unknown kind.
        InputError: no slice has a value of every covariate, or there is a single slice.
    """
    if kind != "slice" and len(states) < 2:
        raise InputError("a prior of one slice alone would be this slice; train on more of them")
    generator = torch.Generator().manual_seed(seed)
    if kind == "slice":
        pick = torch.randint(len(states), (1,), generator=generator)
        mean, modes = blurred_coefficients(embed(states[pick]), sigma)
        mean, basis, variance_kept = mean[0], mean.new_zeros(0, mean.shape[1]), 0.0
        weights, means, factors = mean.new_ones(1), mean.new_zeros(1, 0), mean.new_zeros(1, 0, 0)
    elif kind in ("mixture", "images"):
        limit = rank if kind == "mixture" else len(states)
        mean, basis, variance_kept = _principal_components(states, embed, sigma, min(limit, len(states) - 1))
        scores = torch.cat([(chunk - mean) @ basis.T for chunk in _chunks(states, embed, sigma)])
        if kind == "images":
            weights, means = torch.full((len(scores),), 1 / len(scores)), scores
            factors = scores.new_zeros(*scores.shape, 0)
        else:
            points = scores.double()
            if known_covariates:
                points = _with_features(points, known_covariates, covariates, generator)
            groups = np.arange(len(states)) if subjects is None else np.unique(subjects, return_inverse=True)[1]
            weights, means, factors = _fit_mixture(points, groups, num_components, seed)
        modes = blurred_coefficients(embed(states[:1]), sigma)[1]
    else:
        raise ValueError(f"a prior is of kind mixture, slice or images, not {kind}")

    code_dim, height, width = embed(states[:1]).shape[1:]
    prior = BlurryPrior(
        kind=kind,
        code_dim=code_dim,
        height=height,
        width=width,
        sigma=float(sigma),
        num_modes=len(modes),
        rank=len(basis),
        num_components=len(weights),
        factor_rank=factors.shape[-1],
        variance_kept=variance_kept,
        covariates=[asdict(covariate) for covariate in known_covariates] if kind == "mixture" else None,
    )
    state = {"modes": modes, "mean": mean, "basis": basis, "weights": weights, "means": means, "factors": factors}
    prior.load_state_dict(state)
    if prior.known_covariates:
        prior.register_to_config(ranks=list(_ranks(prior, covariates.double(), generator)))
    return prior.eval()


def _ranks(prior: BlurryPrior, covariates: torch.Tensor, generator: torch.Generator) -> Iterator[list[list[float]]]:
    """`ranks` of a prior by the covariates (N, C), rounded to hundredths of their range: each value is somebody's."""
    # Features alone: with the scores, of which there are hundreds, so many draws would take gigabytes.
    component = torch.multinomial(prior.weights, RANKED_DRAWS, replacement=True, generator=generator)
    noise = torch.randn(RANKED_DRAWS, prior.config.factor_rank, 1, generator=generator)
    rank, shares = prior.config.rank, torch.linspace(0, 1, NUM_RANKS, dtype=torch.float64)
    features = prior.means[component, rank:] + (prior.factors[:, rank:][component] @ noise)[..., 0]
    columns = features.double().split([covariate.num_features for covariate in prior.known_covariates], dim=1)
    for covariate, column, values in zip(prior.known_covariates, columns, covariates.T, strict=True):
        if covariate.kind == "category":
            yield []
            continue
        low, width = covariate.low, covariate.high - covariate.low
        drawn = covariate.nearest_numbers(column).quantile(shares)
        hundredths = ((values[~values.isnan()].quantile(shares) - low) / width * 100).round()
        hundredths[0], hundredths[-1] = 0, 100
        pairs = torch.stack([drawn, low + width * hundredths / 100], 1)
        yield pairs[drawn.diff(prepend=drawn[:1] - 1) > 0].tolist()  # several ranks may share a level


def _chunks(states: torch.Tensor, embed: Callable, sigma: float) -> Iterator[torch.Tensor]:
    """The retained coefficients (n, P) of one chunk after the other."""
    for chunk in states.split(CHUNK):
        yield blurred_coefficients(embed(chunk), sigma)[0]


def _principal_components(
    states: torch.Tensor, embed: Callable, sigma: float, rank: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean (P,) and leading principal directions (R, P) of the retained coefficients, and the variance they keep."""
    mean = sum(chunk.double().sum(0) for chunk in _chunks(states, embed, sigma)) / len(states)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for chunk in _chunks(states, embed, sigma):
        centred = chunk - mean.to(chunk)
        covariance += centred.T @ centred
    covariance /= len(states)
    total = covariance.diagonal().sum()
    rank = min(rank, len(mean))
    values, vectors = scipy.linalg.eigh(  # transposed, it lies in memory as LAPACK wants it: no copy
        covariance.numpy().T, subset_by_index=[len(mean) - rank, len(mean) - 1], overwrite_a=True
    )
    basis = torch.from_numpy(vectors[:, ::-1].T.copy())
    return mean.float(), basis.float(), float(values.clip(0).sum() / total.clamp_min(1e-300))


def _with_features(
    scores: torch.Tensor, known: Sequence[Covariate], covariates: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Scores (N, R) and noisy features of the completed covariates (N, F) side by side, float64."""
    covariates = covariates.to(torch.float64, copy=True)
    features = covariate_features(known, covariates)
    noise = FEATURE_NOISE * torch.randn(features.shape, generator=generator, dtype=torch.float64)
    incomplete = covariates.isnan().any(1)
    if incomplete.any():
        joint = torch.cat([scores[:, :IMPUTING_RANK], features + noise], dim=1)
        if (~incomplete).sum() < 2:
            names = ", ".join(covariate.name for covariate in known)
            raise InputError(f"no slice has a value of all of {names}; leave one of them out with --covariates")
        mean, covariance = joint[~incomplete].mean(0), joint[~incomplete].T.cov()
        values, vectors = torch.linalg.eigh(covariance)
        # Everything but the missing values is given, the scores too.
        covariance += 1e-6 * values.max() * torch.eye(len(mean), dtype=torch.float64)
        for rows in incomplete.nonzero()[:, 0].split(CHUNK):
            draws = torch.randn(len(rows), len(mean), generator=generator, dtype=torch.float64)
            draws = mean + draws * values.clamp_min(0).sqrt() @ vectors.T
            drawn = condition(draws, joint[rows], covariance)[:, -features.shape[1] :]
            covariates[rows] = covariates[rows].where(~covariates[rows].isnan(), nearest_covariates(known, drawn))
    return torch.cat([scores, covariate_features(known, covariates) + noise], dim=1)


def _fit_mixture(points: torch.Tensor, groups: np.ndarray, num_components: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Weights (C,), means (C, R) and covariance factors (C, R, R) of a mixture fitted to points (N, R).

    Args:
        groups: (N,) the number of each point's subject.
    """
    scale = points.std(0).clamp_min(1e-12)  # the fit's regularisation is absolute: give every axis unit variance
    num_components = max(1, min(num_components, (groups.max() + 1) // MIN_SUBJECTS))
    mixture = GaussianMixture(num_components, covariance_type="full", reg_covar=1e-3, random_state=seed)
    standardised = (points / scale).numpy()
    mixture.fit(standardised)
    # Subjects behind a component's mean, by Kish's effective number: those with many slices in it count for more.
    shares = np.zeros((groups.max() + 1, num_components))
    np.add.at(shares, groups, mixture.predict_proba(standardised))
    num_subjects = shares.sum(0) ** 2 / (shares**2).sum(0).clip(1e-300)
    kept = num_subjects >= min(MIN_SUBJECTS, num_subjects.max())
    weights = mixture.weights_[kept] / mixture.weights_[kept].sum()
    # Symmetric square roots: unlike Cholesky factors they exist where a covariance is singular to rounding.
    values, vectors = np.linalg.eigh(mixture.covariances_[kept])
    factors = torch.from_numpy(vectors * np.sqrt(values.clip(0))[:, None, :])
    return torch.from_numpy(weights), torch.from_numpy(mixture.means_[kept]) * scale, scale[:, None] * factors
