import pytest
from scipy import stats

from datadistill.evaluation import percent, summarize
from datadistill.evaluation.scores import wilson


def test_interval_over_networks_is_students() -> None:
    values = [0.7, 0.8, 0.75, 0.9]
    summary = summarize(values, images=1000)
    low, high = stats.t.interval(0.95, 3, loc=summary.mean, scale=stats.sem(values))
    assert summary.ci95 == pytest.approx((low, high))
    assert summary.std == pytest.approx(stats.tstd(values))


def test_interval_of_one_network_is_wilsons() -> None:
    summary = summarize([0.938], images=10_000)
    expected = stats.binomtest(9380, 10_000).proportion_ci(method="wilson")
    assert summary.ci95 == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert summary.std is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_intervals_stay_in_range(share: float) -> None:
    low, high = wilson(share, 50)
    assert 0 <= low < high <= 1
    assert summarize([share, share], 50).ci95 == (share, share)


def test_percent() -> None:
    assert percent(summarize([0.93762], 10_000)) == "93.76 %"
    assert percent(summarize([0.8, 0.9], 10)) == "85.0 ± 7.1 %"
