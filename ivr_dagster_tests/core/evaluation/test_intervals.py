import numpy as np
import pytest

from ivr_dagster.core.evaluation import intervals as module
from ivr_dagster.core.evaluation.intervals import bpb_intervals
from ivr_dagster.errors import InputError

BYTES = np.array([100, 2000, 350, 0, 40, 900])
BITS = {
    "base": np.array([150.0, 2100.0, 700.0, 0.0, 90.0, 1000.0]),
    "sft": np.array([120.0, 1800.0, 650.0, 0.0, 95.0, 900.0]),
}


@pytest.mark.parametrize("chunk", [4_000_000, 7])
def test_intervals_are_percentiles_of_resampled_ratios(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    variants, differences = bpb_intervals(BITS, BYTES, [("sft", "base")], resamples=300, seed=5)

    texts = [number for number in range(6) if BYTES[number]]
    rng = np.random.default_rng(5)
    found: dict[str, list[float]] = {"base": [], "sft": [], "difference": []}
    for _ in range(300):
        chosen = [texts[int(place)] for place in rng.integers(0, len(texts), size=len(texts))]
        size = sum(int(BYTES[number]) for number in chosen)
        base, sft = (sum(float(BITS[name][number]) for number in chosen) / size for name in ("base", "sft"))
        for name, value in (("base", base), ("sft", sft), ("difference", sft - base)):
            found[name].append(value)

    for name, got in (*variants.items(), ("difference", differences["sft", "base"])):
        ordered = sorted(found[name])
        # linear interpolation at share · (n − 1)
        for share, end in ((0.025, got.low), (0.975, got.high)):
            place = share * 299
            below, above = ordered[int(place)], ordered[int(place) + 1]
            assert end == pytest.approx(below + (place - int(place)) * (above - below))
    assert variants["base"].value == pytest.approx(4040 / 3390)
    assert differences["sft", "base"].value == pytest.approx((3565 - 4040) / 3390)


def test_intervals_contain_the_true_value_at_their_level() -> None:
    rng, held, trials, documents = np.random.default_rng(1), 0, 400, 60
    for trial in range(trials):
        sizes = rng.integers(500, 1500, documents)
        base = 1.5 * sizes + rng.normal(0, 100, documents)
        sft = base - 0.2 * sizes + rng.normal(0, 40, documents)
        _, differences = bpb_intervals({"base": base, "sft": sft}, sizes, [("sft", "base")], resamples=400, seed=trial)
        interval = differences["sft", "base"]
        held += interval.low <= -0.2 <= interval.high
    assert 0.91 <= held / trials <= 0.98


def test_differences_are_paired_by_document() -> None:
    variants, differences = bpb_intervals(
        {"base": BITS["base"], "sft": BITS["base"] - 0.25 * BYTES}, BYTES, [("sft", "base")]
    )
    interval = differences["sft", "base"]
    assert (interval.low, interval.value, interval.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert variants["base"].high - variants["base"].low > 0.1


def test_an_invalid_request_is_rejected() -> None:
    with pytest.raises(InputError, match="sft was scored on 2 documents, the others on 6"):
        bpb_intervals({"sft": np.ones(2)}, BYTES)
    with pytest.raises(InputError, match="all 2 documents are empty"):
        bpb_intervals({"sft": np.ones(2)}, np.zeros(2, dtype=np.int64))
