"""Numbers are rounded to what they carry and never lose their unit."""

import pytest

from potstill.report import figures


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (figures.count, 4000, "4,000"),
        (figures.count, 4_128_256, "4.13 M"),
        (figures.count, 999_990, "1.00 M"),
        (figures.size, 512, "512 B"),
        (figures.size, 34, "34 B"),
        (figures.size, 1_058_000, "1.06 MB"),
        (figures.size, 0, "0 B"),
        (figures.seconds, 0.42, "0.42 s"),
        (figures.seconds, 12.34, "12.3 s"),
        (figures.seconds, 185, "3 min 05 s"),
        (figures.seconds, 7380, "2 h 03 min"),
        (figures.share, 0.7131, "71.3 %"),
        (figures.nats, 0.2431, "0.243 nats"),
        (figures.nats, 0.00021, "0.00021 nats"),
        (figures.signed_nats, -0.214, "\N{MINUS SIGN}0.214 nats"),
        (figures.signed_nats, 0.05, "+0.050 nats"),
        (figures.rate, 1243.7, "1,240 tokens/s"),
        (figures.probability, 0.4116, "0.412"),
        (figures.decimal, 9.996, "10.0"),
        (figures.decimal, 0.01234, "0.0123"),
        (figures.times, 13.98, "14"),
    ],
)
def test_a_number_is_written_with_its_unit(write, value, text):
    """The units and roundings of the page."""
    assert write(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize("name", ["count", "size", "seconds", "share", "nats", "rate", "probability", "decimal"])
def test_a_missing_number_is_a_dash(name):
    """What was not measured is never written as zero."""
    assert getattr(figures, name)(None) == figures.MISSING
