"""How far a series that does not rise seems to rise: simulated series for the gate.

Under the null a series is a level, plus jitter that all documents share (AR(1) from one checkpoint to the next, with a
standard deviation that may fall or grow over training), plus the sampling noise of its documents. The sampling noise is
known: it has the covariance over checkpoints of the documents' own contributions. The jitter is not, and is what makes
the series rougher than its documents explain. Of jitter that is drawn with all autocorrelations and falls, and scaled
until it is as rough as the series, what looks most like it is kept (approximate Bayesian computation).
A scale that is uncertain, as with few checkpoints, thereby gives the simulated rises a heavier tail.

Roughness is measured so that a rise hardly changes it: on the residuals from a unimodal fit, and on the smaller two
thirds of the differences, since a rise is steep between few checkpoints.

What series are judged by, contrasts between their checkpoints, is linear: it is taken of jitter and of sampling noise
once, and of their sum never.

Letters: C checkpoints, D documents, N series, F features of roughness, P places between two checkpoints.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from sih.emergence.onset import unimodal_residuals

PATHS = 32768  # jitter paths that are drawn once for a grid
AMONG = 2500  # of them that are looked at anew where a series has gaps
KEPT = 2000  # of them, for one series; each also serves upside down
LARGEST_AUTOCORRELATION = 0.95
LARGEST_FALL = math.log(8)  # of the log of the jitter's sd, from the first checkpoint to the last
LARGEST_GROWTH = math.log(4)  # the other way
LARGEST_NOISE = math.log(10)  # of the log of the sampling noise's sd over the jitter's, either way
_SMOOTH = 0.5  # octaves: bandwidth of the smooth whose peak ends the rising part of the unimodal fit
_BLOCK = 4096  # paths whose roughness is measured at once
_CALM = 2 / 3  # share of the differences, the smallest, whose mean square is looked at
_WEIGHT = 0.5  # of the neighbours' differences in the measure of roughness; that of the rest is 1
_LAGGED = 16  # with fewer checkpoints, distant differences are left out: a rise is in too many of them
_LARGEST_SHARE = 2.0  # of the sampling noise in the roughness
AFTER = 3.0  # octaves after a place that count as after a rise there, since a rise may be transient
_SEED = 20  # of the paths, so that they depend on the grid alone
_ENOUGH = 10  # so many simulated rises above the observed one make a p that needs no fitted tail
_ROUNDING = 1e-6  # of the values, in single precision
_TAIL = 0.03  # share of the simulated rises that a tail is fitted to
_WHOLE, _NEIGHBOURS, _EARLY, _LATE, _NEAR, _FAR = range(6)  # features


@dataclass(frozen=True)
class Paths:
    """Jitter of standard deviation 1 at the first checkpoint, `path_NC`, and how rough it is with white noise added.

    `contrast_NP`: its contrasts. `white_N`: the white noise's standard deviation. `size_N`, `like_NF`: what is
    compared, see `_compared`, the latter in units of its standard deviation over paths, `sd_F`; `norm_N` is its square.
    """

    path_NC: np.ndarray
    contrast_NP: np.ndarray
    white_N: np.ndarray
    autocorrelation_N: np.ndarray
    size_N: np.ndarray
    like_NF: np.ndarray
    norm_N: np.ndarray
    sd_F: np.ndarray


def roughness(x_C: np.ndarray, y_NC: np.ndarray) -> np.ndarray:
    """Second moments of series that a rise hardly changes, (N, F), in the square of their unit.

    F: of the residuals from unimodal fits, the mean square, the mean product of neighbours, the mean square in the
    first half of the octaves and in the second; half the mean square of the smaller differences between neighbours,
    and between checkpoints that are `_reach` apart.
    """
    residual_NC, early_C, reach = unimodal_residuals(x_C, y_NC, _SMOOTH), _early(x_C), _reach(len(x_C))
    square_NC, product_NC = residual_NC**2, residual_NC[:, 1:] * residual_NC[:, :-1]
    of_residuals = (part.mean(1) for part in (square_NC, product_NC, square_NC[:, early_C], square_NC[:, ~early_C]))
    return np.stack([*of_residuals, *(_calm(y_NC[:, k:] - y_NC[:, :-k]) for k in (1, reach))], axis=1)


def _calm(difference_NC: np.ndarray) -> np.ndarray:
    count = max(1, round(_CALM * difference_NC.shape[1]))
    return np.partition(difference_NC**2, count - 1, axis=1)[:, :count].mean(1) / 2


def _reach(count: int) -> int:
    """The largest power of 2 up to an eighth of the checkpoints, at least 2."""
    return 2 ** max(1, int(math.log2(max(1, count / 8))))


def _early(x_C: np.ndarray) -> np.ndarray:
    return x_C <= (x_C[0] + x_C[-1]) / 2


def paths(x_C: np.ndarray) -> Paths:
    """Jitter on this grid (octaves, at least three checkpoints).

    Autocorrelations go up to the largest. They are uniform on coarse grids and tend to be high on fine ones, whose
    neighbours are closer. How much the size falls is log-uniform.
    """
    return _paths(tuple(float(x) for x in x_C))


@functools.lru_cache(maxsize=8)
def _paths(grid: tuple[float, ...]) -> Paths:
    x_C, count = np.array(grid), len(grid)
    rng = np.random.default_rng([_SEED, count])
    coarse = np.clip((x_C[-1] - x_C[0]) / (count - 1) / 1.5, 0.5, 1)
    phi_N = LARGEST_AUTOCORRELATION * rng.uniform(size=PATHS) ** coarse
    fall_N = rng.uniform(-LARGEST_GROWTH, LARGEST_FALL, PATHS)
    path_NC = rng.standard_normal((PATHS, count), np.float32)
    for c in range(1, count):
        path_NC[:, c] = phi_N * path_NC[:, c - 1] + np.sqrt(1 - phi_N**2) * path_NC[:, c]
    path_NC *= np.exp(-fall_N[:, None] * (x_C - x_C[0]) / (x_C[-1] - x_C[0])).astype(np.float32)
    white_N = np.exp(rng.uniform(-LARGEST_NOISE, LARGEST_NOISE, PATHS))
    return _with_likeness(x_C, path_NC, white_N, phi_N, rng)


def _with_likeness(
    x_C: np.ndarray, path_NC: np.ndarray, white_N: np.ndarray, phi_N: np.ndarray, rng: np.random.Generator
) -> Paths:
    rough_NF = np.concatenate([
        roughness(x_C, path_NC[block] + white_N[block, None] * rng.standard_normal(path_NC[block].shape, np.float32))
        for block in (slice(n, n + _BLOCK) for n in range(0, len(path_NC), _BLOCK))
    ])  # fmt: skip
    lagged = len(x_C) >= _LAGGED
    size_N = _size(rough_NF, lagged)
    like_NF = np.column_stack([_compared(rough_NF, lagged), white_N**2 / size_N])
    sd_F = np.maximum(like_NF.std(0), 1e-12)
    like_NF /= sd_F
    norm_N = np.einsum("nf,nf->n", like_NF, like_NF)
    return Paths(path_NC, path_NC @ contrasts(x_C).T, white_N, phi_N, size_N, like_NF, norm_N, sd_F)


@functools.lru_cache(maxsize=8)
def _normals(width: int) -> np.ndarray:
    """The standard normal vectors that every series' sampling noise is made of, (2 * KEPT, width)."""
    return np.random.default_rng([_SEED, width]).standard_normal((2 * KEPT, width), dtype=np.float32)


def _among(x_C: np.ndarray, y_C: np.ndarray, beyond_DS: np.ndarray) -> Paths:
    """Paths on the S checkpoints that have a value.

    Where some have none, those of all paths that are most alike when straight lines fill the gaps, so that not every
    pattern of gaps needs all paths anew.
    """
    drawn, seen_C = paths(x_C), np.isfinite(y_C)
    if seen_C.all():
        return drawn
    fill_CS = np.stack([np.interp(x_C, x_C[seen_C], one) for one in np.eye(int(seen_C.sum()))], axis=1)
    _, far_N = _likeness(x_C, fill_CS @ y_C[seen_C], beyond_DS @ fill_CS.T, drawn)
    near = np.sort(np.argpartition(far_N, AMONG)[:AMONG])
    rng = np.random.default_rng([_SEED, *np.flatnonzero(seen_C).tolist()])
    path_NC, white_N = drawn.path_NC[near][:, seen_C], drawn.white_N[near]
    return _with_likeness(x_C[seen_C], path_NC, white_N, drawn.autocorrelation_N[near], rng)


@dataclass(frozen=True)
class Noise:
    """Contrasts of a series' noise: of its jitter, `jitter_NP` (N kept paths, each at its own size), and its documents.

    A standard normal vector @ `sampling_XP` has the covariance of the documents' contrasts; `documents` of them
    estimated it. `sd` and `autocorrelation` are the medians over the kept paths.
    """

    jitter_NP: np.ndarray
    sampling_XP: np.ndarray
    documents: int
    sd: float
    autocorrelation: float

    @property
    def sd_P(self) -> np.ndarray:
        """The standard deviation of each contrast of series that do not rise, (P,), in the series' unit."""
        free = self.documents - 1
        uncertain = free / max(free - 2, 1)  # the variance of Student's t, which is infinite with 2 degrees or fewer
        return np.sqrt((self.jitter_NP**2).mean(0) + uncertain * (self.sampling_XP**2).sum(0))

    def largest(self, count: int, unit_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The largest contrast of series that do not rise, each in its unit, (2 * count,).

        With the first paths, and with the same upside down. The sampling noise of few documents is itself uncertain: it
        is scaled as in Student's t.
        """
        jitter_NP, sampling_XP = self.jitter_NP[:count] / unit_P, self.sampling_XP / unit_P
        free = self.documents - 1
        scale_SN1 = np.sqrt(free / rng.chisquare(free, size=(2, count, 1))).astype(np.float32)
        normal_SNX = _normals(len(sampling_XP))[: 2 * count].reshape(2, count, -1)
        found = []
        for scale_N1, normal_NX, add in zip(scale_SN1, normal_SNX, (np.add, np.subtract), strict=True):
            simulated_NP = normal_NX @ sampling_XP
            simulated_NP *= scale_N1
            found.append(add(simulated_NP, jitter_NP, out=simulated_NP).max(1))
        return np.concatenate(found)


def noise_of(x_C: np.ndarray, y_C: np.ndarray, beyond_DC: np.ndarray, rng: np.random.Generator) -> Noise:
    """The noise of a series y over x (octaves), where it has values; elsewhere it is NaN.

    Args:
        beyond_DC: each document's contribution to y beyond its share, adding up to 0 over documents; D > 1. Where y has
            values only.
    """
    seen_C, documents = np.isfinite(y_C), len(beyond_DC)
    beyond_DC = beyond_DC * math.sqrt(documents / (documents - 1))
    drawn = _among(x_C, y_C, beyond_DC)
    size, far_N = _likeness(x_C[seen_C], y_C[seen_C], beyond_DC, drawn)
    kept = rng.permutation(np.argpartition(far_N, KEPT)[:KEPT])
    sd_N = np.sqrt(size / drawn.size_N[kept])  # with which each is as rough as y
    # As many vectors as checkpoints have the covariance of any number of documents.
    factor_XC = beyond_DC if documents <= seen_C.sum() else np.asarray(np.linalg.qr(beyond_DC, mode="r"))
    return Noise(
        sd_N[:, None].astype(np.float32) * drawn.contrast_NP[kept],
        factor_XC.astype(np.float32) @ contrasts(x_C[seen_C]).T,
        documents,
        float(np.median(sd_N)),
        float(np.median(drawn.autocorrelation_N[kept])),
    )


def _likeness(x_C: np.ndarray, y_C: np.ndarray, beyond_DC: np.ndarray, drawn: Paths) -> tuple[float, np.ndarray]:
    """y's roughness; and how unlike y each path with its white noise is once it is as rough, (N,), but for a constant.

    Compared are what `_compared` does, and the share of the white noise in the roughness. Where the sampling noise is
    not the same early and late, that of y is put in proportion.
    """
    lagged = len(x_C) >= _LAGGED
    observed_1F = roughness(x_C, y_C[None])
    size = _size(observed_1F, lagged)[0]
    like_F = np.append(_compared(observed_1F, lagged), 0.0)
    whole, early, late = _sampled(x_C, beyond_DC)
    if whole > 0 and size > 0:
        share = like_F[-1] = min(whole / size, _LARGEST_SHARE)
        jitter = max(1 - share, 0)
        of_early, of_late = (jitter + share * max(part / whole, 1e-2) for part in (early, late))
        like_F[1] -= np.log(of_late / of_early)
    return float(size), drawn.norm_N - drawn.like_NF @ (2 * like_F / drawn.sd_F)


def _size(rough_NF: np.ndarray, lagged: bool) -> np.ndarray:
    """One measure of roughness; it is 0 for constants only."""
    return rough_NF[:, _WHOLE] + _WEIGHT * rough_NF[:, _NEAR] + (rough_NF[:, _FAR] if lagged else 0)


def _compared(rough_NF: np.ndarray, lagged: bool) -> np.ndarray:
    """What of the roughness does not depend on its size: autocorrelation of residuals; late against early; far, near.

    Infinitely small values are kept from mattering infinitely.
    """
    floor_N = 1e-2 * _size(rough_NF, lagged) + 1e-300

    def log_ratio(one: int, other: int) -> np.ndarray:
        return np.log((rough_NF[:, one] + floor_N) / (rough_NF[:, other] + floor_N))

    far_N = log_ratio(_FAR, _NEAR) if lagged else np.zeros(len(rough_NF))
    correlation_N = rough_NF[:, _NEIGHBOURS] / (rough_NF[:, _WHOLE] + floor_N)
    return np.stack([correlation_N, log_ratio(_LATE, _EARLY), far_N], axis=1)


def _sampled(x_C: np.ndarray, beyond_DC: np.ndarray) -> tuple[float, float, float]:
    """Sampling variance that neighbours do not share: its mean; that of the early and the late half of the octaves."""
    near_C, early_C = (np.diff(beyond_DC, axis=1) ** 2).sum(0) / 2, _early(x_C)
    own_C = np.interp(x_C, (x_C[1:] + x_C[:-1]) / 2, near_C)
    return float(own_C.mean()), float(own_C[early_C].mean()), float(own_C[~early_C].mean())


def contrasts(x_C: np.ndarray) -> np.ndarray:
    """For each place between two checkpoints: the mean over AFTER octaves after it minus the mean before it, (C-1, C).

    `contrasts @ y` are the contrasts of a series.
    """
    return _contrasts(tuple(x_C.tolist()))


@functools.lru_cache(maxsize=64)
def _contrasts(grid: tuple[float, ...]) -> np.ndarray:
    x_C, at_C, found = np.array(grid), np.arange(len(grid)), []
    for c in at_C[:-1]:
        before, after = at_C <= c, (at_C > c) & (x_C <= x_C[c + 1] + AFTER)
        found.append(after / after.sum() - before / before.sum())
    return np.array(found, dtype=np.float32)


def rise_p(x_C: np.ndarray, y_C: np.ndarray, beyond_DC: np.ndarray, rng: np.random.Generator) -> float:
    """p of the largest contrast between later and earlier checkpoints, among simulated series that do not rise.

    Contrasts are in units of their standard deviation in series that do not rise, place by place. So noise that is
    large early, where checkpoints are few, does not hide a rise that comes later. Simulates a twentieth first, and the
    rest only if few of these rise as much; for the p see `tail_p`. 1 with a single document, whose sampling noise
    nothing shows. For the arguments see `noise_of`.
    """
    if len(beyond_DC) < 2:
        return 1.0
    seen_C = np.isfinite(y_C)
    noise, y = noise_of(x_C, y_C, beyond_DC, rng), y_C[seen_C]
    unit_P = np.maximum(noise.sd_P, np.float32(_ROUNDING * np.abs(y).max()))
    observed = float((contrasts(x_C[seen_C]) @ y / unit_P).max())
    for count in (KEPT // 20, KEPT):
        largest_N = noise.largest(count, unit_P, rng)
        if (above := int((largest_N >= observed).sum())) > _ENOUGH:
            return (1 + above) / (1 + len(largest_N))
    return tail_p(largest_N.astype(float), observed)


def tail_p(null_N: np.ndarray, observed: float) -> float:
    """(1 + how many of the null are at least the observed) / (1 + N); by a fitted tail where fewer than 10 are.

    The largest 3 % are fitted by a generalised Pareto distribution (probability-weighted moments, Hosking and Wallis
    1987), whose shape is at least 0: its tail never ends.
    """
    above = int((null_N >= observed).sum())
    count = int(_TAIL * len(null_N))
    top_N = np.sort(null_N)[len(null_N) - count - 1 :]
    excess = top_N[1:] - top_N[0]
    mean = excess.mean()
    if above >= _ENOUGH or mean <= 0:
        return (1 + above) / (1 + len(null_N))
    weighted = (excess * (1 - (np.arange(1, count + 1) - 0.35) / count)).mean()
    shape = max(0.0, 2 - mean / (mean - 2 * weighted))
    beyond = (observed - top_N[0]) / (mean * (1 - shape))
    return count / len(null_N) * math.exp(-math.log1p(shape * beyond) / shape if shape > 0 else -beyond)
