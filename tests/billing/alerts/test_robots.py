"""What robots are sent, and what is believed of their answers.

The robots are stand-ins: see tests/billing/alerts/robots.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from billing.alerts.robots import Message, Robot, dingtalk_signature, feishu_signature, robot_of
from billing.errors import NotifyError
from tallybook.processes import free_port
from tests.billing.robots import SECRET, Robots, running_robots

MORE = "and {count} more"
MESSAGE = Message(
    "m-1", ("Tallybook: 1 alert",), ("[NEW] user user-a used 50,000 tokens",), MORE, {"alerts": []}
)
NOW = 1_795_000_000.25


@pytest.fixture
def robots() -> Iterator[Robots]:
    with running_robots() as running:
        yield running


def robot(robots: Robots, kind: str, secret: str = SECRET) -> Robot:
    found = robot_of(f"{kind}+{robots.url}/{kind}?access_token=token#{secret}")
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["wecom", "dingtalk", "feishu", "slack", "webhook"])
def test_every_robot_takes_a_message_as_we_write_it(robots: Robots, kind: str) -> None:
    robot(robots, kind).send(MESSAGE, NOW)
    assert len(robots.came) == 1
    assert "user user-a used 50,000 tokens" in robots.texts()[0]
    assert SECRET not in str(robots.came)


@pytest.mark.parametrize("kind", ["dingtalk", "feishu"])
def test_a_wrong_secret_is_told_though_the_robot_answers_200(robots: Robots, kind: str) -> None:
    with pytest.raises(NotifyError, match="sign") as refused:
        robot(robots, kind, "another").send(MESSAGE, NOW)
    assert refused.value.code == "notify_refused"


def test_signatures_are_what_openssl_computes() -> None:
    # printf '1599360473000\nSECabc' | openssl dgst -sha256 -hmac SECabc -binary | base64
    assert dingtalk_signature("SECabc", 1_599_360_473_000) == "3SJkK5Fm70JVVkwmvZFkgdPlr53Kn2utLHLz9DzuOSc="
    # printf '' | openssl dgst -sha256 -hmac $'1599360473\nabc' -binary | base64
    assert feishu_signature("abc", 1_599_360_473) == "cgtpJzI2j6bUDggbdGYjskCK3FPgKpTkwosfWsMzKqM="


@pytest.mark.parametrize(
    ("kind", "status", "answer", "code"),
    [
        ("wecom", 200, b'{"errcode":93000,"errmsg":"invalid webhook url"}', "notify_refused"),
        ("wecom", 200, b"<html>a proxy's page</html>", "notify_refused"),
        ("wecom", 200, b'{"errcode":"0"}', "notify_refused"),
        ("wecom", 200, b"[]", "notify_refused"),
        ("dingtalk", 200, b'{"errcode":130101,"errmsg":"send too fast"}', "notify_refused"),
        ("feishu", 200, b'{"code":9499,"msg":"Bad Request"}', "notify_refused"),
        ("feishu", 200, b"{}", "notify_refused"),
        ("slack", 200, b"invalid_payload", "notify_refused"),
        ("slack", 404, b"no_service", "notify_refused"),
        ("webhook", 302, b"", "notify_refused"),
        ("webhook", 503, b"busy", "notify_uncertain"),
    ],
)
def test_only_the_answer_of_a_robot_that_took_it_is_believed(
    robots: Robots, kind: str, status: int, answer: bytes, code: str
) -> None:
    robots.refusals.append((status, answer))
    with pytest.raises(NotifyError) as refused:
        robot(robots, kind).send(MESSAGE, NOW)
    assert refused.value.code == code
    assert "access_token" not in str(refused.value)


def test_nobody_knows_whether_a_silent_robot_has_it(robots: Robots) -> None:
    robots.silent = 1
    with pytest.raises(NotifyError) as refused:
        robot(robots, "webhook").send(MESSAGE, NOW)
    assert refused.value.code == "notify_uncertain"


def test_a_robot_that_is_not_there_does_not_have_it() -> None:
    nobody = robot_of(f"slack+http://127.0.0.1:{free_port()}/x")
    assert nobody is not None
    with pytest.raises(NotifyError) as refused:
        nobody.send(MESSAGE, NOW)
    assert refused.value.code == "notify_refused"


@pytest.mark.parametrize(
    ("kind", "line", "sent"),
    [
        ("slack", "<!channel> a & b", "&lt;!channel&gt; a &amp; b"),
        ("feishu", '<at user_id="all">all</at>', '‹at user_id="all"›all‹/at›'),
        ("wecom", "a\nb\u202e", "a�b�"),
        ("dingtalk", "@all", "@all"),
    ],
)
def test_names_are_text_to_every_robot(robots: Robots, kind: str, line: str, sent: str) -> None:
    robot(robots, kind).send(Message("m", (), (line,), MORE, {}), NOW)
    assert [text.strip() for text in robots.texts()] == [sent]
    assert robots.came[0][1].get("at", {}).get("isAtAll") in (None, False)


def test_a_long_message_is_cut_between_lines_and_says_how_many_are_missing(robots: Robots) -> None:
    lines = tuple(f"line {number} 模型 {'x' * 120}" for number in range(60))
    head = ("Tallybook: 60 alerts", "(sent again, as nobody knows whether it arrived)")
    robot(robots, "wecom").send(Message("m", head, lines, MORE, {}), NOW)
    first, again, *kept, last = robots.texts()[0].split("\n")
    assert (first, again) == head  # what may be a repetition says so, however long it is
    assert tuple(kept) == lines[: len(kept)]
    assert 0 < len(kept) < 20
    assert last == f"and {60 - len(kept)} more"


@pytest.mark.parametrize(("count", "end"), [(1, ""), (1_001, "\nand 1,000 more")])
def test_one_line_that_is_too_long_is_cut_at_a_character(count: int, end: str) -> None:
    text = Message("m", ("!",), ("模" * 1000,) * count, MORE, {}).text(100)
    assert text == "!\n" + "模" * ((98 - len(end)) // 3) + end


@pytest.mark.parametrize(
    "address", ["slack", "slack+ftp://x", "slack+https://", "irc+https://x", "mailto:a@b"]
)
def test_what_is_no_robot_is_none(address: str) -> None:
    assert robot_of(address) is None


def test_an_address_is_not_shown_with_its_keys() -> None:
    shown = robot_of("wecom+https://qyapi.example.com/cgi-bin/webhook/send?key=693a#S")
    assert shown is not None
    assert "693a" not in f"{shown} {shown.place}"
    assert shown.place == "wecom qyapi.example.com"
