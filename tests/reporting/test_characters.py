import math

import pytest

from sae_cli.reporting.characters import BARS, clean, clip, scatter, sparkline


def test_sparkline_maps_smallest_to_largest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0], 8, ascii_only=True) == "#_"


def test_sparkline_averages_shares_and_leaves_gaps():
    assert sparkline([0, 2, 6, 8], 2) == "▁█"
    assert sparkline([0, None, math.nan, math.inf, 7], 5) == "▁   █"
    assert sparkline([None, math.nan], 5) == sparkline([], 5) == ""
    assert sparkline([3.0] * 4, 8) == "▁▁▁▁"


def test_sparkline_is_logarithmic_over_a_factor_of_six_but_not_from_zero():
    powers = [2.0**n for n in range(8)]
    assert sparkline(powers, 8) == BARS[0]
    assert sparkline(powers, 8, zero=True) == "▁▁▁▁▂▃▅█"
    assert sparkline([1, 1.5, 5], 8) == "▁▂█"


def test_scatter_is_this_picture():
    series = {"relu": [(1, 1, True), (4, 3, False)], "prolu": [(2, 2, True)]}
    assert scatter(series, ("L0", "FVU"), 34, 5) == [
        "FVU",
        "3 │                              ○",
        "  │",
        "2 │          ■",
        "  │",
        "1 │●",
        "  └───────────────┬───────────────",
        "   1             2.5             4",
        "                L0",
        "● relu   ■ prolu",
        "full: on the frontier",
    ]


def test_scatter_names_logarithmic_axes_and_draws_the_frontier_over_the_rest():
    lines = scatter({"a": [(1, 1, True), (1, 1, False), (100, 1, False)]}, ("x", "y"), 30, 3, ascii_only=True)
    assert lines[0] == "y"
    assert "x (log)" in lines[6]
    assert lines[5].split() == ["1", "10", "100"]
    assert (sum(line.count("A") for line in lines[1:4]), sum(line.count("a") for line in lines[1:4])) == (1, 1)
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize("width", [30, 41, 80, 120])
def test_scatter_fits_its_width(width):
    series = {f"family {n}": [(10.0**n, 3.0**n, bool(n % 2))] for n in range(8)}
    lines = scatter(series, ("a long label " * 4, "another " * 9), width)
    assert max(map(len, lines)) <= width


def test_text_of_a_run_cannot_move_the_cursor():
    assert clean("a\x1b[2Jb\nc") == "a [2Jb c"
    assert clip("loss ± 3 → é", 80, ascii_only=True) == "loss +- 3 -> ?"
    assert clip("abcdef", 4) == "abc…"
    assert clip("abcd  ", 4) == "abcd"
