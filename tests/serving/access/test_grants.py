from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving.access import keys
from serving.access.keys import Terms
from serving.quotas.cli import quota
from tests.apis import Api, running_app
from tests.modelservers import wait_until
from tests.serving.access.test_keys import told

TOMORROW = (datetime.now(timezone.utc) + timedelta(days=1)).isoformat(timespec="seconds")
ASKED = {"quota": "user_day_tokens", "tokens": 1000, "until": TOMORROW, "reason": "a launch"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path, quota_user_day_tokens=50, access_poll_seconds=0.02) as running:
        yield running


def a_key(api: Api, user: str, *, approver: bool = False) -> dict[str, str]:
    terms = Terms(user=user, project="search", approver=approver)
    store = api.services.access.store()
    _, secret = keys.create(store, api.services.settings.journal_dir, terms, user, None, "root")
    api.services.access.refresh()
    return {"Authorization": f"Bearer {secret}"}


def post(api: Api, path: str, headers: dict[str, str], body: Any = None) -> Any:
    return api.client.post(f"/v1/quota/{path}", json={} if body is None else body, headers=headers)


def get(api: Api, path: str, headers: dict[str, str]) -> Any:
    return api.client.get(f"/v1/quota{path}", headers=headers).json


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["error"]["code"]


def ask(api: Api, headers: dict[str, str]) -> int:
    return int(api.client.post("/analyze", json={"text": "hotel"}, headers=headers).status_code)


def test_overage_is_asked_for_approved_used_and_ended_and_all_of_it_is_told(api: Api) -> None:
    anna, boss = a_key(api, "anna"), a_key(api, "boss", approver=True)
    assert ask(api, anna) == 200
    assert ask(api, anna) == 429
    asked = post(api, "requests", anna, ASKED)
    assert (asked.status_code, asked.json["state"], asked.json["subject"]) == (200, "asked", "anna")
    assert ask(api, anna) == 429
    grant = asked.json["id"]
    approved = post(api, f"requests/{grant}/approve", boss, {"tokens": 60})
    assert (approved.json["state"], approved.json["tokens"], approved.json["decided_by"]) == (
        "approved",
        60,
        "boss",
    )
    assert ask(api, anna) == 200
    standing = get(api, "", anna)["quotas"]["user_day_tokens"]
    assert standing["limit"] == 110
    assert standing["used"] + standing["remaining"] == 110
    assert post(api, f"requests/{grant}/end", boss).json["state"] == "ended"
    assert ask(api, anna) == 429
    kinds = [kind for kind, who in told(api.services.settings.journal_dir) if who != "root"]
    assert kinds == ["quota.asked", "quota.approved", "quota.ended"]


def test_who_may_decide(api: Api) -> None:
    anna, boss = a_key(api, "anna"), a_key(api, "boss", approver=True)
    grant = post(api, "requests", anna, ASKED).json["id"]
    assert code(post(api, f"requests/{grant}/approve", anna)) == (403, "not_approver")
    own = post(api, "requests", boss, {**ASKED, "quota": "project_month_tokens"}).json
    assert own["subject"] == "search"
    assert code(post(api, f"requests/{own['id']}/approve", boss)) == (403, "own_grant")
    assert post(api, f"requests/{grant}/deny", boss).json["state"] == "denied"
    late = post(api, f"requests/{grant}/approve", boss)
    assert code(late) == (409, "grant_decided")
    assert late.json["error"]["message"] == f"{grant} is denied, not asked."  # the id as it is spelt
    assert code(post(api, "requests/grant-none/deny", boss)) == (404, "unknown_grant")
    listed = get(api, "/requests", anna)["requests"]
    assert [each["id"] for each in listed] == [grant]
    assert len(get(api, "/requests", boss)["requests"]) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"quota": "requests_per_minute"}, "invalid_request"),
        ({"quota": 7}, "invalid_request"),
        ({"tokens": 0}, "invalid_request"),
        ({"tokens": "7"}, "invalid_request"),
        ({"tokens": 10**12}, "invalid_request"),
        ({"until": "tomorrow"}, "invalid_request"),
        ({"until": "2020-01-01T00:00:00Z"}, "invalid_request"),
        ({"until": "2999-01-01T00:00:00Z"}, "invalid_request"),
        ({"reason": ""}, "invalid_request"),
        ({"reason": "two\nlines"}, "invalid_request"),
        ({"subject": "bob"}, "unknown_field"),
    ],
)
def test_what_can_not_be_asked_for(api: Api, changes: dict[str, Any], expected: str) -> None:
    assert code(post(api, "requests", {"X-User-ID": "anna"}, {**ASKED, **changes})) == (400, expected)
    assert get(api, "/requests", {"X-User-ID": "anna"}) == {"requests": []}


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(api: Api, body: bytes) -> None:
    answer = api.client.post("/v1/quota/requests", data=body, headers={"X-User-ID": "anna"})
    assert code(answer) == (400, "invalid_json")


def test_the_command_line_sets_limits_and_decides(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYBOOK_ACCESS_URL", f"sqlite:///{tmp_path / 'access.db'}")
    monkeypatch.setenv("TALLYBOOK_JOURNAL_DIR", str(tmp_path / "acts"))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(quota, arguments)
        return done.stdout + done.stderr

    anna = {"X-User-ID": "anna"}
    assert ask(api, anna) == 200
    assert ask(api, anna) == 429
    assert run("limit", "user_day_tokens", "anna", "90", "--by", "root") == "user_day_tokens of anna: 90\n"
    wait_until(lambda: ask(api, anna) == 200)
    assert "user_day_tokens        anna                     90" in run("limits")
    assert "a whole number, or default" in run("limit", "user_day_tokens", "anna", "many")
    run("limit", "user_day_tokens", "anna", "default")
    until = (datetime.now() + timedelta(days=2)).strftime("%Y-%m-%d")  # noqa: DTZ005 -- a day that is far enough
    asked = run(
        "ask", "user_day_tokens", "anna", "500", "--until", until, "--reason", "a launch", "--by", "anna"
    )
    grant = asked.split()[0]
    assert "own_grant" in run("approve", grant, "--by", "anna")
    assert "approved, by boss: 500 user_day_tokens for anna" in run("approve", grant, "--by", "boss")
    wait_until(lambda: ask(api, anna) == 200)
    assert "grant_decided" in run("deny", grant, "--by", "boss")
    assert "ended, by boss" in run("end", grant, "--by", "boss")
    assert run("list").startswith(f"{grant}  ended, by boss")
    kinds = [kind for kind, _ in told(tmp_path / "acts")]
    assert kinds == ["quota.set", "quota.set", "quota.asked", "quota.approved", "quota.ended"]
