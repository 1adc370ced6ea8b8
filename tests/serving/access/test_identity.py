from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access.errors import InvalidKeyError
from serving.access.identity import Caller, Gatekeeper
from serving.access.keys import Key, networks_of
from serving.errors import ApiError
from serving.settings import ServingSettings
from tallybook.usage import NAME

SECRET = "a-secret-of-the-gateway"  # noqa: S105  of this test only
KEY = Key(
    id="key-1",
    name="tests",
    user="anna",
    project="search",
    created_at=datetime.now(timezone.utc),
    created_by="x",
)
KEYS = {
    "plain": KEY,
    "department": replace(KEY, department="retail"),
    "gateway": replace(KEY, department="retail", for_others=True),
    "narrow": replace(KEY, networks=networks_of(["10.1.0.0/16", "2001:db8::/32"])),
    "one-model": replace(KEY, models=frozenset({"m"})),
    "approver": replace(KEY, approver=True),
    "approving-gateway": replace(KEY, approver=True, for_others=True),
}


def key_of(secret: str) -> Key:
    if secret not in KEYS:
        raise InvalidKeyError("unknown")
    return KEYS[secret]


def gatekeeper(settings: dict[str, Any]) -> Gatekeeper:
    return Gatekeeper(ServingSettings(**settings), key_of)


def bearer(name: str) -> str:
    return f"Bearer {name}"


def identify(settings: dict[str, Any], peer: str = "127.0.0.1", **headers: str) -> Caller:
    environ = {"REMOTE_ADDR": peer, **{f"HTTP_{name}": value for name, value in headers.items()}}
    return gatekeeper(settings).identify(environ)


def refusal(settings: dict[str, Any], peer: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        identify(settings, peer, **headers)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_a_neighbour_on_the_same_machine_is_believed_by_default(peer: str) -> None:
    assert identify({}, peer, X_USER_ID="user-a").user == "user-a"


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "", "unix:", "127.0.0.1.evil"]
)
def test_anybody_else_is_not(peer: str) -> None:
    assert refusal({}, peer, X_USER_ID="user-a") == (403, "untrusted_caller")


def test_a_peer_without_an_address_is_not_believed() -> None:
    with pytest.raises(ApiError):
        gatekeeper({}).identify({"HTTP_X_USER_ID": "user-a"})


def test_a_configured_network_is_believed() -> None:
    settings = {"trusted_networks": ["10.1.0.0/16"]}
    assert identify(settings, "10.1.2.3", X_USER_ID="user-a").client_ip == "10.1.2.3"
    assert refusal(settings, "127.0.0.1", X_USER_ID="user-a") == (403, "untrusted_caller")


def test_the_gateways_secret_is_believed_from_anywhere() -> None:
    settings = {"gateway_secret": SECRET}
    assert identify(settings, "10.0.0.1", X_USER_ID="user-a", X_GATEWAY_SECRET=SECRET).user == "user-a"


@pytest.mark.parametrize(
    "given_secret", ["", "wrong", SECRET[:-1], SECRET + "x", SECRET.upper(), "\xe9", SECRET + "," + SECRET]
)
def test_a_wrong_secret_is_not(given_secret: str) -> None:
    settings = {"gateway_secret": SECRET}
    refused = refusal(settings, "10.0.0.1", X_USER_ID="user-a", X_GATEWAY_SECRET=given_secret)
    assert refused == (403, "untrusted_caller")


def test_without_a_configured_secret_none_is_right() -> None:
    assert refusal({}, "10.0.0.1", X_USER_ID="user-a", X_GATEWAY_SECRET="") == (403, "untrusted_caller")


def test_a_request_of_nobody_is_refused() -> None:
    assert refusal({}) == (401, "missing_user")


BAD_NAMES = [
    "",
    " ",
    "a b",
    "a\n",
    "a,b",
    "a/b",
    "é",
    "用户",
    "<b>",
    "'",
    '"',
    "a;b",
    "=1+1",
    "a" * 129,
    "\x00",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_outside_the_alphabet_is_refused(name: str) -> None:
    assert refusal({}, X_USER_ID=name) == (400, "invalid_user")
    assert refusal({}, X_USER_ID="user-a", X_PROJECT_ID=name) == (400, "invalid_project")


@pytest.mark.parametrize("name", ["a", "a" * 128, "user-a@example.com", "team:search-2.0_x"])
def test_a_name_of_the_alphabet_is_taken_as_it_is(name: str) -> None:
    caller = identify({}, X_USER_ID=name, X_PROJECT_ID=name)
    assert (caller.user, caller.project) == (name, name)


@given(st.text())
def test_no_name_that_billing_would_refuse_gets_through(name: str) -> None:
    try:
        caller = identify({}, X_USER_ID=name)
    except ApiError:
        return
    assert NAME.fullmatch(caller.user)


def test_project_and_department_have_defaults() -> None:
    settings = {
        "default_project": "misc",
        "default_department": "other",
        "project_departments": {"search": "retail"},
    }
    assert identify(settings, X_USER_ID="a")[1:3] == ("misc", "other")
    assert identify(settings, X_USER_ID="a", X_PROJECT_ID="search")[1:3] == ("search", "retail")


PROXIES = {
    "trusted_networks": ["10.0.0.0/8"],
    "trusted_proxies": ["10.0.0.0/8", "2001:db8::/32"],
}


@pytest.mark.parametrize(
    ("forwarded", "client_ip"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("1.1.1.1, 203.0.113.7", "203.0.113.7"),
        ("<script>, 203.0.113.7", "203.0.113.7"),
        ("1.1.1.1,203.0.113.7,10.9.9.9", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db9::1]:4711", "2001:db9::1"),
        ("2001:DB9:0::1", "2001:db9::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
    ],
)
def test_behind_a_trusted_proxy_the_client_is_the_last_hop_that_is_none(
    forwarded: str, client_ip: str
) -> None:
    assert identify(PROXIES, "10.0.0.1", X_USER_ID="a", X_FORWARDED_FOR=forwarded).client_ip == client_ip


def test_a_proxy_that_forwards_nothing_is_the_client_itself() -> None:
    assert identify(PROXIES, "10.0.0.1", X_USER_ID="a").client_ip == "10.0.0.1"


@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        "unknown",
        "203.0.113.7, ",
        "203.0.113.7, nonsense",
        "fe80::1%<script>",
        "1.2.3.4\n5",
        "[",
        "999.1.1.1",
    ],
)
def test_a_trusted_proxy_that_forwards_nonsense_is_refused_not_guessed_at(forwarded: str) -> None:
    assert refusal(PROXIES, "10.0.0.1", X_USER_ID="a", X_FORWARDED_FOR=forwarded) == (
        400,
        "invalid_forwarded_for",
    )


def test_a_peer_that_is_no_proxy_can_forward_nothing() -> None:
    settings = {"trusted_networks": ["127.0.0.0/8"]}
    assert identify(settings, X_USER_ID="a", X_FORWARDED_FOR="203.0.113.7").client_ip == "127.0.0.1"


@pytest.mark.parametrize("header", ["X_FORWARDED_FOR", "FORWARDED"])
@pytest.mark.parametrize("more", [{}, {"trusted_proxies": ["127.0.0.0/8"]}])
def test_what_a_proxy_on_the_same_machine_passes_on_is_believed_only_where_it_is_said(
    header: str, more: dict[str, Any]
) -> None:
    forwarded = {"X_USER_ID": "user-a", header: "203.0.113.7"}
    assert refusal(more, **forwarded) == (403, "untrusted_caller")
    assert identify({**more, "gateway_secret": SECRET}, X_GATEWAY_SECRET=SECRET, **forwarded).user == "user-a"
    assert identify({**more, "trusted_networks": ["127.0.0.0/8"]}, **forwarded).user == "user-a"
    assert identify(more, AUTHORIZATION=bearer("plain"), **{header: "203.0.113.7"}).user == "anna"


def test_a_key_says_who_asks_from_anywhere() -> None:
    settings = {"project_departments": {"search": "product"}}
    caller = identify(settings, "10.0.0.1", AUTHORIZATION=bearer("plain"))
    assert caller == Caller("anna", "search", "product", "10.0.0.1", "key-1")
    assert identify(settings, AUTHORIZATION=bearer("department")).department == "retail"
    assert identify(settings, AUTHORIZATION=bearer("approver")).approver
    assert identify(settings, AUTHORIZATION="bearer  plain ").api_key_id == "key-1"


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "Bearer", "Bearer ", "", "plain", "Basic plain", "Bearer a, b"]
)
def test_a_wrong_key_is_refused_even_where_x_user_id_is_believed(header: str) -> None:
    assert refusal({}, AUTHORIZATION=header, X_USER_ID="anna") == (401, "invalid_api_key")


@pytest.mark.parametrize("headers", [{"X_USER_ID": "bob"}, {"X_PROJECT_ID": "other"}, {"X_USER_ID": ""}])
def test_a_header_that_contradicts_its_key_is_refused(headers: dict[str, str]) -> None:
    assert refusal({}, AUTHORIZATION=bearer("plain"), **headers) == (403, "caller_contradicted")
    secret = {"X_GATEWAY_SECRET": SECRET}
    refused = refusal({"gateway_secret": SECRET}, AUTHORIZATION=bearer("plain"), **headers, **secret)
    assert refused == (403, "caller_contradicted")


def test_a_header_may_repeat_what_the_key_says() -> None:
    caller = identify({}, AUTHORIZATION=bearer("plain"), X_USER_ID="anna", X_PROJECT_ID="search")
    assert (caller.user, caller.project) == ("anna", "search")


def test_a_key_that_may_act_for_others_lets_headers_say_who() -> None:
    settings = {"project_departments": {"other": "product"}}
    same = identify(settings, AUTHORIZATION=bearer("gateway"), X_USER_ID="bob")
    assert (same.user, same.project, same.department) == ("bob", "search", "retail")
    other = identify(settings, AUTHORIZATION=bearer("gateway"), X_USER_ID="bob", X_PROJECT_ID="other")
    assert (other.user, other.project, other.department) == ("bob", "other", "product")
    assert refusal({}, AUTHORIZATION=bearer("gateway"), X_USER_ID="no name") == (400, "invalid_user")


def test_whom_a_key_names_does_not_approve_with_it() -> None:
    assert identify({}, AUTHORIZATION=bearer("approving-gateway")).approver
    assert not identify({}, AUTHORIZATION=bearer("approving-gateway"), X_USER_ID="bob").approver


def test_a_key_of_some_networks_works_there_only() -> None:
    behind_proxy = {"trusted_proxies": ["127.0.0.0/8"]}
    inside = identify(behind_proxy, AUTHORIZATION=bearer("narrow"), X_FORWARDED_FOR="10.1.2.3")
    assert inside.client_ip == "10.1.2.3"
    assert identify({}, "::ffff:10.1.0.9", AUTHORIZATION=bearer("narrow")).client_ip == "10.1.0.9"
    assert refusal({}, "10.2.0.1", AUTHORIZATION=bearer("narrow")) == (403, "network_refused")
    outside = refusal({}, "127.0.0.1", AUTHORIZATION=bearer("narrow"), X_FORWARDED_FOR="10.1.2.3")
    assert outside == (403, "network_refused")  # no proxy that is trusted said so


def test_a_key_is_for_its_models_and_a_model_for_its_networks() -> None:
    keeper = gatekeeper({"model_networks": {"m": ["10.1.0.0/16"], "closed": []}})
    near, far = Caller("anna", "p", "d", "10.1.0.1"), Caller("anna", "p", "d", "10.2.0.1")
    limited = near._replace(models=frozenset({"m"}))
    assert [keeper.may_use(near, model) for model in ("m", "n", "closed")] == [True, True, False]
    assert [keeper.may_use(far, model) for model in ("m", "n", "closed")] == [False, True, False]
    assert [keeper.may_use(limited, model) for model in ("m", "n", "closed")] == [True, False, False]
    for caller, model, code in [(far, "m", "network_refused"), (limited, "n", "model_not_allowed")]:
        with pytest.raises(ApiError) as caught:
            keeper.check_model(caller, model)
        assert (caught.value.status, caught.value.code) == (403, code)
