import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from serving.access import keys, known
from serving.access.cli import keys as command
from serving.access.errors import InvalidRequestError
from serving.access.keys import Terms
from serving.access.known import Access
from serving.access.store import api_keys, open_store, state
from serving.errors import ApiError
from tallybook.acts import Act, is_act
from tallybook.segments import read_segment
from tests.apis import running_app
from tests.modelservers import wait_until

TERMS = Terms(user="anna", project="search")
DAY = timedelta(days=1)


@pytest.fixture
def store(access_url: str) -> Iterator[Engine]:
    engine = open_store(access_url)
    yield engine
    engine.dispose()


@pytest.fixture
def access(access_url: str) -> Iterator[Access]:
    """A worker's view that looks when it is told to."""
    opened = Access(access_url, 3600, 3600)
    yield opened
    opened.close()


def refusal(access: Access, secret: str) -> str:
    with pytest.raises(ApiError) as caught:
        access.key(secret)
    return caught.value.code


def told(journal: Path) -> list[tuple[str, str]]:
    """Kind and author of the acts in a journal."""
    lines = [line for segment in sorted(journal.glob("*.jsonl")) for line in read_segment(segment, 0).lines]
    acts = [Act.from_record(record) for line in lines if is_act(record := orjson.loads(line.raw))]
    return [(act.kind, act.who) for act in sorted(acts, key=lambda act: act.time)]


def test_a_key_is_shown_once_and_kept_as_a_hash(store: Engine, tmp_path: Path) -> None:
    terms = Terms(
        user="anna", project="search", department="retail", models=("m", "n"), networks=("10.0.0.0/8",),
        for_others=True, approver=True,
    )  # fmt: skip
    key, secret = keys.create(store, tmp_path / "journal", terms, "laptop", None, "root")
    assert keys.list_keys(store) == [key]
    assert (key.user, key.department, key.models) == ("anna", "retail", frozenset({"m", "n"}))
    assert (key.networks, key.for_others, key.approver) == (keys.networks_of(["10.0.0.0/8"]), True, True)
    [segment] = (tmp_path / "journal").iterdir()
    with store.connect() as connection:
        kept = repr(connection.execute(sa.select(api_keys)).all()) + segment.read_text()
    assert key.id in kept
    assert secret not in kept
    assert told(tmp_path / "journal") == [("key.created", "root")]


def test_a_new_key_is_known_and_a_revoked_one_refused(store: Engine, access: Access, tmp_path: Path) -> None:
    key, secret = keys.create(store, tmp_path, TERMS, "laptop", None, "root")
    access.refresh()
    assert access.key(secret) == key
    assert refusal(access, secret + "x") == "invalid_api_key"
    keys.revoke(store, tmp_path, key.id, "root")
    access.refresh()
    assert refusal(access, secret) == "invalid_api_key"
    with pytest.raises(ApiError, match="was revoked"):
        keys.revoke(store, tmp_path, key.id, "root")
    assert told(tmp_path) == [("key.created", "root"), ("key.revoked", "root")]


def test_a_rotated_key_works_for_its_grace_time(store: Engine, access: Access, tmp_path: Path) -> None:
    old, old_secret = keys.create(store, tmp_path, TERMS, "laptop", None, "root")
    new, secret = keys.rotate(store, tmp_path, old.id, DAY, "root")
    access.refresh()
    assert (new.user, new.project, new.name) == (old.user, old.project, old.name)
    assert access.key(secret).id == new.id
    kept = access.key(old_secret)
    assert kept.id == old.id
    assert kept.expires_at is not None
    assert kept.expires_at - datetime.now(timezone.utc) <= DAY
    newest, _ = keys.rotate(store, tmp_path, new.id, timedelta(0), "root")
    access.refresh()
    assert refusal(access, secret) == "invalid_api_key"
    assert {key.id: key.state(datetime.now(timezone.utc) + DAY) for key in keys.list_keys(store)} == {
        old.id: "expired", new.id: "revoked", newest.id: "live",
    }  # fmt: skip


def test_a_key_is_rotated_once_and_its_grace_is_its_own(
    store: Engine, access: Access, tmp_path: Path
) -> None:
    first, first_secret = keys.create(store, tmp_path, TERMS, "laptop", None, "root")
    second, _ = keys.rotate(store, tmp_path, first.id, DAY, "root")
    access.refresh()
    ends = access.key(first_secret).expires_at
    for grace in (timedelta(0), 2 * DAY):
        with pytest.raises(InvalidRequestError, match=f"{first.id} was rotated to {second.id}"):
            keys.rotate(store, tmp_path, first.id, grace, "root")
    third, _ = keys.rotate(store, tmp_path, second.id, timedelta(0), "root")
    access.refresh()
    assert access.key(first_secret).expires_at == ends
    assert (second.expires_at, third.expires_at) == (None, None)
    assert [kind for kind, _ in told(tmp_path)] == ["key.created", "key.rotated", "key.rotated"]


def test_an_expired_key_says_so(store: Engine, access: Access, tmp_path: Path) -> None:
    _, secret = keys.create(store, tmp_path, TERMS, "laptop", datetime.now(timezone.utc) + DAY, "root")
    with store.begin() as connection:
        past = datetime.now(timezone.utc) - DAY
        connection.execute(api_keys.update().values(expires_at=past))
        connection.execute(state.update().values(changes=99))
    access.refresh()
    assert refusal(access, secret) == "api_key_expired"


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        (Terms(user="no name", project="p"), "x"),
        (Terms(user="u", project="p", models=("a b",)), "x"),
        (Terms(user="u", project="p", department=""), "x"),
        (Terms(user="u", project="p", networks=("10.0.0.1/8",)), "x"),
        (TERMS, "two\nlines"),
        (TERMS, ""),
    ],
)
def test_an_unfit_key_is_not_made(store: Engine, tmp_path: Path, terms: Terms, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        keys.create(store, tmp_path / "journal", terms, name, None, "root")
    assert keys.list_keys(store) == []
    assert not (tmp_path / "journal").exists()


def test_without_an_act_nothing_changes(store: Engine, tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    with pytest.raises(OSError, match="journal"):
        keys.create(store, tmp_path / "journal", TERMS, "x", None, "root")
    assert keys.list_keys(store) == []


def test_keys_hold_while_the_store_is_away_but_not_for_ever(
    store: Engine, access_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.create(store, tmp_path, TERMS, "x", None, "root")
    access = Access(access_url, 3600, 300)
    try:
        with store.begin() as connection:
            connection.execute(sa.text("DROP TABLE access_state"))
        access.refresh()
        assert access.problem() is not None
        assert access.key(secret).user == "anna"
        monkeypatch.setattr(access, "_read_at", access._read_at - 301)
        assert refusal(access, secret) == "access_unavailable"
        assert refusal(access, "unknown") == "access_unavailable"
        open_store(access_url).dispose()
        access.refresh()
        assert access.problem() is None
        assert access.key(secret).user == "anna"
    finally:
        access.close()


def test_a_look_that_fails_unexpectedly_is_not_the_last(
    store: Engine, access_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    access = Access(access_url, 0.01, 300)
    try:
        with monkeypatch.context() as broken:
            broken.setattr(known, "changes", lambda _: 1 // 0)
            wait_until(lambda: "ZeroDivisionError" in caplog.text)
        key, _ = keys.create(store, tmp_path, TERMS, "x", None, "root")
        wait_until(lambda: key in access.known().keys.values())
    finally:
        access.close()


def test_a_store_that_can_not_be_opened_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    access = Access(f"sqlite:///{tmp_path}/file/access.db", 3600, 3600)
    try:
        assert access.problem() is not None
        assert refusal(access, "any") == "access_unavailable"
    finally:
        access.close()


def test_a_store_of_a_newer_version_is_refused(store: Engine, access_url: str) -> None:
    with store.begin() as connection:
        connection.execute(state.update().values(schema_version=2))
    with pytest.raises(ApiError, match="of version 2, not 1"):
        open_store(access_url)


def test_many_may_open_a_new_store_at_once(access_url: str) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            open_store(access_url).dispose()
        except ApiError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_worker_follows_the_command_line_without_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'access.db'}"
    monkeypatch.setenv("TALLYBOOK_ACCESS_URL", url)
    monkeypatch.setenv("TALLYBOOK_JOURNAL_DIR", str(tmp_path / "acts"))
    run = CliRunner()
    with running_app(tmp_path, access_url=url, access_poll_seconds=0.02, trusted_networks=()) as api:

        def ask(secret: str) -> int:
            headers = {"Authorization": f"Bearer {secret}"}
            return api.client.post("/analyze", json={"text": "hotel"}, headers=headers).status_code

        assert api.analyze().status_code == 403
        made = run.invoke(
            command, ["create", "--user", "anna", "--project", "p", "--by", "root", "--days", "9"]
        )
        assert made.exit_code == 0, made.output
        assert "it is not shown again" in made.stderr
        secret = made.stdout.strip()
        wait_until(lambda: ask(secret) == 200)
        [event] = api.events()
        listed = run.invoke(command, ["list"]).stdout
        assert listed.startswith(f"{event.api_key_id}  live     anna in p; until ")
        assert (event.user, event.project) == ("anna", "p")
        forged = ["revoke", str(event.api_key_id), "--by", "b\nc"]
        assert "invalid_text: " in run.invoke(command, forged).stderr
        rotated = run.invoke(command, ["rotate", str(event.api_key_id), "--grace-hours", "0"])
        wait_until(lambda: ask(secret) == 401)
        assert ask(rotated.stdout.strip()) == 200
        assert "unknown_api_key" in run.invoke(command, ["revoke", str(event.api_key_id)]).stderr
    assert [kind for kind, _ in told(tmp_path / "acts")] == ["key.created", "key.rotated"]
