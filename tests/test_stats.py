from __future__ import annotations

import math

import numpy as np
import pytest

from goodnet import stats


def test_wilson_matches_published_values() -> None:
    # Newcombe (1998), Table I, method 3 (score without continuity correction)
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert stats.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_are_exact_and_inside() -> None:
    assert stats.wilson(0, 7)[0] == 0.0
    assert stats.wilson(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match="expected 0 <= hits <= n"):
        stats.wilson(3, 2)


def test_student_t_tail_against_closed_forms() -> None:
    for t in (0.0, 0.5, 2.0, 7.0, 50.0, 1e5):
        assert stats.student_t_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-9)
        # 1/2 - t / (2 sqrt(2 + t^2)), written without cancellation
        root = math.sqrt(2 + t * t)
        assert stats.student_t_tail(t, 2) == pytest.approx(1 / (root * (root + t)), rel=1e-9)
    assert stats.student_t_tail(-2, 2) == pytest.approx(1 - stats.student_t_tail(2, 2))


def test_student_t_tail_goes_to_the_normal() -> None:
    for t in (1.0, 3.0, 5.0):
        assert stats.student_t_tail(t, 1e4) == pytest.approx(0.5 * math.erfc(t / math.sqrt(2)), rel=2e-2)


def test_student_t_tail_at_fractional_degrees_against_a_fine_sum() -> None:
    df, t = 7.2, 3.1
    x = np.linspace(t, 4000, 4_000_001)
    log_density = -(df + 1) / 2 * np.log1p(x * x / df)
    constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    assert stats.student_t_tail(t, df) == pytest.approx(constant * np.trapezoid(np.exp(log_density), x), rel=1e-6)


def test_qn_against_its_definition() -> None:
    random = np.random.default_rng(0)
    for n in (2, 5, 9, 10, 31):
        values = random.normal(size=n)
        pairs = sorted(abs(a - b) for i, a in enumerate(values) for b in values[i + 1 :])
        half = n // 2 + 1
        small = {2: 0.399, 5: 0.844, 9: 0.872, 10: 10 / 13.8, 31: 31 / 32.4}[n]
        assert stats.qn_scale(values) == pytest.approx(2.2219 * small * pairs[math.comb(half, 2) - 1])


def test_qn_survives_outliers_that_ruin_the_standard_deviation() -> None:
    values = np.random.default_rng(0).normal(size=200)
    values[:60] -= 1000
    assert values.std() > 400
    assert stats.qn_scale(values) < 3


def test_anomaly_index_is_one_sided_and_stands_mad_zero() -> None:
    norms = np.array([1.0, 2, 3, 4, 5])
    assert stats.anomaly_index(norms, norms) == pytest.approx((3 - norms) / 1.4826)
    same = np.array([4.0, 4, 4, 4, 1, 9])
    assert stats.anomaly_index(same, same).tolist() == [0, 0, 0, 0, math.inf, -math.inf]


@pytest.mark.parametrize("count", [6, 10, 24])
def test_false_alarm_rate_is_what_it_says_on_normal_nulls(count: int) -> None:
    random = np.random.default_rng(count)
    everyone = np.ones(count, dtype=bool)
    smallest = np.array(
        [np.min(stats.small_side_p_values(random.normal(size=count), everyone)) * count for _ in range(400)]
    )
    # 10 % asked for: 40 of 400 expected, sigma is 6
    assert 14 <= int((smallest <= 0.10).sum()) <= 66


def test_anomaly_index_two_flags_nearly_every_clean_net_where_p_values_do_not() -> None:
    random = np.random.default_rng(3)
    by_index = by_p = 0
    for _ in range(40):
        values = random.normal(100, 10, size=1283)
        reference = np.zeros(1283, dtype=bool)
        reference[:150] = True
        by_index += bool((stats.anomaly_index(values, values) > 2).any())
        smallest = np.argmin(values)
        some = np.append(np.arange(150), smallest)
        p = stats.small_side_p_values(values[some], reference[some] & (some < 150))
        by_p += bool(p[-1] * 1283 <= 0.01)
    assert by_index == 40
    assert by_p <= 3


def test_p_values_find_one_and_three_outliers() -> None:
    random = np.random.default_rng(1)
    values = random.normal(5, 0.25, size=43)
    values[:3] -= 2.5
    p = stats.small_side_p_values(values, np.ones(43, dtype=bool))
    assert (p[:3] * 43 < 0.01).all()
    assert (p[3:] * 43 > 0.01).all()


def test_p_values_ignore_large_outliers_nan_and_equal_values() -> None:
    prior = stats.ScalePrior(scale=0.5, df=7)
    p = stats.small_side_p_values(np.array([5.0, 5, 5, 5, 50, np.nan]), np.ones(6, dtype=bool), prior=prior)
    assert np.isnan(p[5])
    assert (p[:4] > 0.3).all()
    assert p[4] > 0.99
    assert np.isnan(stats.small_side_p_values(np.array([1.0, 2, 3]), np.ones(3, dtype=bool))).all()


def test_threshold_is_where_the_p_value_is() -> None:
    values = np.random.default_rng(2).normal(5, 0.3, size=150)
    threshold = stats.small_side_threshold(values, 1e-5)
    both = np.append(values, threshold)
    reference = np.append(np.ones(150, dtype=bool), False)
    assert stats.small_side_p_values(both, reference)[-1] == pytest.approx(1e-5, rel=1e-3)


def test_a_prior_counts_by_its_degrees_of_freedom() -> None:
    random = np.random.default_rng(4)
    few, many = random.normal(0, 0.1, size=8), random.normal(0, 0.1, size=2000)
    prior = stats.ScalePrior(scale=1.0, df=7)

    def p(values: np.ndarray, prior: stats.ScalePrior | None) -> float:
        with_one = np.append(values, -0.5)
        return float(stats.small_side_p_values(with_one, np.append(np.ones(len(values), bool), False), prior=prior)[-1])

    assert p(few, prior) > 0.1 > p(few, None)
    assert p(many, stats.ScalePrior(scale=0.11, df=7)) == pytest.approx(p(many, None), rel=0.05)
    # all prior: the normal quantile with the prior's scale
    flat = stats.ScalePrior(scale=1.0, df=1e4)
    expected = 0.5 * math.erfc((0.5 + float(np.median(few))) / math.sqrt(1 + math.pi / 16) / math.sqrt(2))
    assert p(few, flat) == pytest.approx(expected, rel=0.02)


def test_equal_values_without_a_prior_do_not_divide_by_zero() -> None:
    p = stats.small_side_p_values(np.array([5.0, 5, 5, 5, 4]), np.array([True] * 4 + [False]))
    assert p.tolist() == [1, 1, 1, 1, 0]


def test_auc_and_hits_against_every_pair() -> None:
    random = np.random.default_rng(0)
    positives, negatives = random.integers(2, 9, 60) / 2.0, random.integers(0, 7, 200) / 2.0
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    assert stats.auc(positives, negatives) == pytest.approx(np.mean(pairs))
    for share in (0.0, 0.01, 0.1, 0.5):
        possible = [t for t in negatives if (negatives > t).mean() <= share]
        assert stats.hits_at(positives, negatives, share) == pytest.approx((positives > min(possible)).mean())
    assert stats.auc(positives, positives) == pytest.approx(0.5)
    assert np.isnan(stats.auc(positives, negatives[:0]))
    assert np.isnan(stats.hits_at(positives[:0], negatives, 0.1))
