"""Robust statistics for verdicts, and intervals for shares. No torch: the report uses them too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_MAD_TO_SIGMA = 1.4826
# Rousseeuw & Croux (JASA 1993), Sec. 4: consistency at the normal, and finite-sample factors for n = 2..9.
_QN_TO_SIGMA = 2.2219
_QN_SMALL = {2: 0.399, 3: 0.994, 4: 0.512, 5: 0.844, 6: 0.611, 7: 0.857, 8: 0.669, 9: 0.872}


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson, JASA 1927): (low, high) in [0, 1].

    Raises:
        ValueError: n < 1, or hits not in 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"expected 0 <= hits <= n and n >= 1, got {hits} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # rounding must not push the ends past what the exact formula gives there
    return (0.0 if hits == 0 else max(0.0, middle - half)), (1.0 if hits == n else min(1.0, middle + half))


def anomaly_index(norms: Array, reference: Array) -> Array:
    """Neural Cleanse's anomaly index (Sec. IV-C), small side positive: (median - norm) / (1.4826 MAD).

    Args:
        norms: (K,) mask norms; NaN stays NaN.
        reference: the norms that median and MAD are taken from.

    Where MAD = 0 a norm on the median gives 0, one under it +inf, one over it -inf.
    """
    median = float(np.median(reference))
    mad = float(np.median(np.abs(reference - median)))
    gap = median - np.asarray(norms, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / (_MAD_TO_SIGMA * mad))


def mad(values: Array) -> float:
    """Median absolute deviation, not scaled."""
    return float(np.median(np.abs(values - np.median(values))))


def qn_scale(values: Array) -> float:
    """Qn (Rousseeuw & Croux, JASA 1993): standard deviation of the bulk; half of the values may be outliers.

    The k-th smallest pairwise distance, k = C(n // 2 + 1, 2). At the normal it is 82 % efficient, where MAD is 37 %:
    that is what makes p-values at 10 labels mean something.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"expected at least 2 values, got {n}")
    rows, columns = np.triu_indices(n, 1)
    distances = np.abs(values[rows] - values[columns])
    half = n // 2 + 1
    kth = np.partition(distances, half * (half - 1) // 2 - 1)[half * (half - 1) // 2 - 1]
    small = _QN_SMALL.get(n, n / (n + 1.4) if n % 2 else n / (n + 3.8))
    return float(_QN_TO_SIGMA * small * kth)


def student_t_tail(t: float, df: float) -> float:
    """P(T > t) for Student's t with `df` degrees of freedom (not necessarily whole), by quadrature.

    Substituting t = sqrt(df) / tan(b) leaves sin(b)^(df - 1) on (0, atan(sqrt(df) / t)), smooth however far the
    tail: no difference of nearly equal numbers is taken (tested against closed forms for df = 1, 2).
    """
    if t < 0:
        return 1 - student_t_tail(-t, df)
    upper = math.atan2(math.sqrt(df), t)
    # b = upper * s^power: takes the singularity at 0 away where df < 2
    power = max(1.0, 2.0 / df)
    s = (_NODES + 1) / 2
    b = upper * s**power
    log_values = (df - 1) * np.log(np.sin(b)) + np.log(upper * power) + (power - 1) * np.log(s)
    log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
    return float(np.sum(_WEIGHTS / 2 * np.exp(log_values + log_constant)))


@dataclass(frozen=True, kw_only=True)
class ScalePrior:
    """What is known of a scale before the data: worth `df` values whose standard deviation is `scale`."""

    scale: float
    df: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """How unusually small values are: `t` (K,) in robust deviations under the median, `p` (K,) its p-value."""

    t: Array
    p: Array


def small_side(values: Array, in_reference: npt.NDArray[np.bool_], *, prior: ScalePrior | None = None) -> Tested:
    """How unusually small is each value, given that the reference values are normal but for some outliers.

    t = (median - value) / (s sqrt(1 + pi / 2n)) and p = P(T > t): the predictive distribution of one more normal value,
    given n of them. s is Qn with 0.8 (n - 1) degrees of freedom, joined with the prior as variances, each by its
    degrees of freedom (Smyth, 2004, "Linear models and empirical Bayes methods", Sec. 3); T is Student's t with the sum
    of both. A value that is itself in a reference of up to 100 is left out of it. Large values are never unusual.

    Args:
        values: (K,); NaN gives NaN.
        in_reference: (K,) which of them make the null; at least 4 finite ones, else all NaN.
        prior: None takes the reference alone (and several equal values then make the scale 0: every p is 0 or 1).
    """
    finite = np.isfinite(values)
    reference = values[in_reference & finite]
    t, p = np.full(len(values), np.nan), np.full(len(values), np.nan)
    if len(reference) >= 4:
        whole = _null(reference, prior)
        for i in np.flatnonzero(finite):
            leave_out = bool(in_reference[i]) and len(reference) <= 100
            null = _null(np.delete(values, i)[np.delete(in_reference & finite, i)], prior) if leave_out else whole
            t[i], p[i] = _deviation(float(values[i]), null), _tail(float(values[i]), null)
    return Tested(t=t, p=p)


def small_side_p_values(
    values: Array, in_reference: npt.NDArray[np.bool_], *, prior: ScalePrior | None = None
) -> Array:
    """The p-values of `small_side`."""
    return small_side(values, in_reference, prior=prior).p


def small_side_threshold(reference: Array, p_value: float, *, prior: ScalePrior | None = None) -> float:
    """The value at which `small_side_p_values` of something outside the reference gives `p_value`."""
    null = _null(reference, prior)
    low, high = float(np.min(reference)) - 1e3, null[0]
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(middle, null) < p_value else (low, middle)
    return low


def _null(reference: Array, prior: ScalePrior | None) -> tuple[float, float, float]:
    """(median, scale of one more value, degrees of freedom)"""
    n = len(reference)
    own = max(1.0, 0.8 * (n - 1))
    known = prior or ScalePrior(scale=0.0, df=0.0)
    df = own + known.df
    variance = (own * qn_scale(reference) ** 2 + known.df * known.scale**2) / df
    return float(np.median(reference)), math.sqrt(variance * (1 + math.pi / (2 * n))), df


def _tail(value: float, null: tuple[float, float, float]) -> float:
    deviation = _deviation(value, null)
    return student_t_tail(deviation, null[2]) if math.isfinite(deviation) else float(deviation < 0)


def _deviation(value: float, null: tuple[float, float, float]) -> float:
    median, scale, _ = null
    if scale == 0:
        return math.inf if value < median else -math.inf
    return (median - value) / scale


def auc(positives: Array, negatives: Array) -> float:
    """Area under the ROC curve: the chance that a positive has the higher score, ties counted half; NaN without any."""
    if len(positives) == 0 or len(negatives) == 0:
        return math.nan
    order = np.sort(negatives)
    under = np.searchsorted(order, positives, "left") + np.searchsorted(order, positives, "right")
    return float(under.sum() / 2 / len(positives) / len(negatives))


def hits_at(positives: Array, negatives: Array, share: float) -> float:
    """Share of positives over the lowest threshold that at most `share` of the negatives lie over; NaN without any."""
    if len(positives) == 0 or len(negatives) == 0:
        return math.nan
    threshold = np.sort(negatives)[::-1][min(int(share * len(negatives) + 1e-9), len(negatives) - 1)]
    return float((positives > threshold).mean())
