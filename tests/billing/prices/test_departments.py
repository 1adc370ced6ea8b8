from datetime import date

import pytest

from billing.prices.departments import DepartmentRule, Departments

START = date(2026, 3, 1)
RULES = Departments(
    [
        DepartmentRule(None, "search", "by-project", START),
        DepartmentRule("user-a", None, "by-user", START),
        DepartmentRule("user-a", "search", "by-both", START),
        DepartmentRule("user-b", "search", "before", START),
        DepartmentRule("user-b", "search", "after", date(2026, 6, 1)),
    ]
)


@pytest.mark.parametrize(
    ("user", "project", "day", "department"),
    [
        ("user-a", "search", date(2026, 2, 28), "said"),
        ("user-a", "search", START, "by-both"),
        ("user-a", "ads", START, "by-user"),
        ("user-c", "search", START, "by-project"),
        ("user-c", "ads", START, "said"),
        ("user-b", "search", date(2026, 5, 31), "before"),
        ("user-b", "search", date(2026, 6, 1), "after"),
    ],
)
def test_the_most_specific_rule_that_has_begun_says_who_pays(
    user: str, project: str, day: date, department: str
) -> None:
    assert RULES.assigned(user, project, "said", day) == department


def test_without_rules_the_event_says_who_pays() -> None:
    assert Departments([]).assigned("user-a", "search", "said", START) == "said"
