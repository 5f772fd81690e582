"""Sizes, rates and counts, as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.errors import ConfigError
from klotski.units import (
    UNITS,
    format_flops,
    format_seconds,
    format_size,
    parse_count,
    parse_rate,
    parse_seconds,
    parse_size,
)
from tests.unit.fakes import examples


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6),
        ("12b", 12),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("2.5GB", 2_500_000_000),
        ("2.5 gb", 2_500_000_000),
        (" 1K ", 1024),
        ("1kb", 1000),
        ("3.b", 3),
        ("0.5GiB", 1 << 29),
        ("2TB", 2 * 10**12),
        ("2T", 2 << 40),
    ],
)
def test_a_size_is_read_as_people_mean_it(text: str, size: int) -> None:
    assert parse_size("hw.device_memory", text) == size


@pytest.mark.parametrize("text", ["auto", "AUTO", " Auto "])
def test_auto_leaves_the_choice_open(text: str) -> None:
    assert parse_size("hw.device_memory", text) is None
    assert parse_count("pipeline.n_batches", text) is None


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9", "1,5GB", "1.5.2GB", "12 monkeys", "12XB", ".5GB", "nan", "inf", "1GB 2GB", "0x10"]
)
def test_what_is_not_a_size_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.device_memory=.* is not a size"):
        parse_size("hw.device_memory", text)


@pytest.mark.parametrize("text", ["0", "0GB", "0.4", "0.0001KB"])
def test_less_than_a_byte_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.host_memory=.* must be above zero"):
        parse_size("hw.host_memory", text)


@pytest.mark.parametrize("text", ["128", " 24 ", "24000", "0.9", "999999"])
def test_a_size_whose_unit_was_forgotten_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.host_memory=.* has no unit; write it like .*GB"):
        parse_size("hw.host_memory", text)


def test_nothing_is_a_size_where_it_means_something() -> None:
    assert parse_size("hw.runtime_memory", "0", least=0) == 0
    assert parse_size("hw.runtime_memory", "auto", least=0) is None


@given(st.integers(1, 10**12), st.sampled_from(sorted(UNITS.keys() - {""})))
@examples(200)
def test_a_whole_number_of_any_unit_is_exact(count: int, unit: str) -> None:
    count %= 2**53 // UNITS[unit]  # beyond, a float has no room for it
    assert parse_size("key", f"{count + 1}{unit}") == (count + 1) * UNITS[unit]


@pytest.mark.parametrize(("text", "size"), [("4.1MB", 4_100_000), ("2.01GB", 2_010_000_000)])
def test_a_decimal_fraction_of_a_unit_is_exact(text: str, size: int) -> None:
    assert parse_size("key", text) == size


@given(st.integers(1, 10**15))
@examples(300)
def test_a_formatted_size_is_read_back_within_its_three_digits(size: int) -> None:
    text = format_size(size)
    assert parse_size("key", text) == pytest.approx(size, rel=0.005, abs=1)
    assert len(text) <= 7


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1KB"),
        (12_345_678, "12.3MB"),
        (999_400_000, "999MB"),
        (999_700_000, "1000MB"),
        (93_400_000_000, "93.4GB"),
        (5e12, "5TB"),
        (1.234e16, "12340TB"),
    ],
)
def test_a_size_is_written_with_three_digits(size: float, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, 10**12))
@examples(50)
def test_a_count_is_read_back(count: int) -> None:
    assert parse_count("key", str(count)) == count


@pytest.mark.parametrize("text", ["", "0", "-3", "2.0", "1e3", "two", "0x4", "1 2", "²"])
def test_what_is_not_a_count_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.n_batches=.* must be a whole number of at least 1, or auto"):
        parse_count("pipeline.n_batches", text)


@pytest.mark.parametrize(
    ("text", "unit", "rate"),
    [
        ("2GB/s", "B", 2e9),
        ("1.6 gB/s", "B", 1.6e9),
        ("500MiB/s", "B", 500 << 20),
        ("1000B/s", "B", 1000),
        ("400GFLOP/s", "FLOP", 4e11),
        ("1.2TFLOP/s", "FLOP", 1.2e12),
        (" 7 pflop/S ", "FLOP", 7e15),
    ],
)
def test_a_rate_is_read_as_people_mean_it(text: str, unit: str, rate: float) -> None:
    assert parse_rate("hw.disk_bandwidth", text, unit) == pytest.approx(rate)


@pytest.mark.parametrize("unit", ["B", "FLOP"])
def test_a_rate_may_be_left_open(unit: str) -> None:
    assert parse_rate("hw.disk_bandwidth", " Auto", unit) is None


@pytest.mark.parametrize("text", ["", "2", "2GB", "GB/s", "-2GB/s", "2GB/h", "2GB/s/s", "1e9B/s", "2GFLOP/s", "2G/s"])
def test_what_is_not_a_disks_rate_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.disk_bandwidth=.* is not a rate; write it like 2GB/s or auto$"):
        parse_rate("hw.disk_bandwidth", text, "B")


@pytest.mark.parametrize("text", ["400", "400GFLOP", "400GFLOPS", "400GB/s", "fast"])
def test_what_is_not_a_rate_of_arithmetic_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.compute_rate=.* is not a rate; write it like 400GFLOP/s or auto$"):
        parse_rate("hw.compute_rate", text, "FLOP")


@pytest.mark.parametrize("text", ["0GB/s", "0.2B/s"])
def test_a_rate_is_above_zero(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hw\.disk_bandwidth=.* must be above zero"):
        parse_rate("hw.disk_bandwidth", text, "B")


@given(st.integers(1000, 10**15))
@examples(50)
def test_a_formatted_rate_is_read_back_within_its_three_digits(rate: int) -> None:
    assert parse_rate("key", format_flops(rate), "FLOP") == pytest.approx(rate, rel=0.005)
    assert parse_rate("key", f"{format_size(rate)}/s", "B") == pytest.approx(rate, rel=0.005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123456, "0.0123 s"), (4.967, "4.97 s"), (119, "119 s"), (732, "12.2 min"), (7200, "2 h"), (128_000, "35.6 h")],
)
def test_a_time_is_written_in_the_unit_that_people_would_say(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("6ms", 6e-3), ("50 us", 5e-5), ("1s", 1.0), ("0.5MS", 5e-4)])
def test_a_short_time_is_read_as_people_mean_it(text: str, seconds: float) -> None:
    assert parse_seconds("hw.batch_overhead", text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "says"), [("6", "not a time"), ("-6ms", "not a time"), ("0ms", "above zero")])
def test_what_is_not_a_time_is_refused_by_its_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"hw\.batch_overhead={text} .*{says}"):
        parse_seconds("hw.batch_overhead", text)


@pytest.mark.parametrize(
    "text",
    ["25Gb/s", "200Gbps", "200Gbit/s", "8 Mb/s", "1000bps", "25gb/s", "12b/s", "25gib/s", "8 Mbits/s", "8 Mbitps "],
)
def test_bits_are_not_taken_for_bytes(text: str) -> None:
    with pytest.raises(ConfigError, match="is in bits"):
        parse_rate("hw.link_bandwidth", text, "B")


@pytest.mark.parametrize("text", ["25GB/s", "25gB/s", "2.5GiB/s", "900MB/s", "12B/s"])
def test_bytes_are_not_taken_for_bits(text: str) -> None:
    assert parse_rate("hw.link_bandwidth", text, "B") is not None
