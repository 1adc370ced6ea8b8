"""Tables as text: names to the left, numbers to the right, and never wider than the terminal."""

from __future__ import annotations

from billing.text_table import WIDTH, text_table


def test_names_go_to_the_left_and_numbers_to_the_right() -> None:
    assert text_table([["", "tokens"], ["search", "7"], ["chat", "1,000"]], indent=2) == [
        "          tokens",
        "  search       7",
        "  chat     1,000",
    ]


def test_a_name_is_cut_in_the_middle_to_what_is_left_of_the_line() -> None:
    number = "1" * 60
    [line] = text_table([["a" * 30 + "b" * 30, number]], indent=2)
    assert len(line) == WIDTH
    assert line == f"  {'a' * 17}…{'b' * 18}  {number}"
    assert text_table([["name" * 3, "1" * 200]]) == [f"{'name' * 3}  {'1' * 200}"]  # nothing is left to cut
