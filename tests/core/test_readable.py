"""Numbers, sizes, durations and times as people read them."""

import pytest

from gcflow.readable import clock, duration, number, one_line, plural, scaled, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (2.5, "2.5"), (-0.81, "−0.81"), (12345.6, "12\u00a0346"), (0.00012, "0.00012"), (1e-7, "1·10⁻⁷"),
        (99999.6, "100\u00a0000"), (float("nan"), "nan"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


def test_durations_and_amounts_have_units():
    assert [duration(x) for x in (None, 5.0, 90.0, 5400.0)] == ["–", "5\u00a0s", "1.5\u00a0min", "1.5\u00a0h"]
    assert duration(1.8e7) == "5000\u00a0h"
    # The unit is of the rounded number.
    assert [duration(x) for x in (59.4, 59.7, 3596.0, 3599.0)] == [
        "59\u00a0s", "1.0\u00a0min", "59.9\u00a0min", "1.0\u00a0h",
    ]  # fmt: skip
    assert [size(x) for x in (999, 999_499, 999_999)] == ["999\u00a0bytes", "999\u00a0kB", "1\u00a0MB"]
    assert [size(x) for x in (12, 1500, 2_340_000)] == ["12\u00a0bytes", "1.5\u00a0kB", "2.34\u00a0MB"]
    assert [scaled(x, "FLOP") for x in (0, 999.6, 3.456e19)] == ["0\u00a0FLOP", "1\u00a0kFLOP", "34.6\u00a0EFLOP"]


def test_a_clock_shows_hours_minutes_and_seconds():
    assert [clock(seconds) for seconds in (-1.0, 0.4, 61, 3600, 360_000)] == [
        "0:00:00",
        "0:00:00",
        "0:01:01",
        "1:00:00",
        "100:00:00",
    ]


def test_words_are_plain_text():
    assert [plural(1, "run"), plural(2, "process")] == ["1\u00a0run", "2\u00a0processes"]
    assert one_line("a\n  b\x1b[2Jc\u00a0d") == "a b [2Jc d"
