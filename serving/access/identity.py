"""Who is asking: user, project, department and address of a request, from its API key or believed headers.

A request with an API key is its key's, whatever network it comes from; a header that says else is refused,
unless the key may act for others. Without a key X-User-ID is believed from a peer in a trusted network, or
with the gateway's secret. Where nobody has said which networks are trusted, this machine itself is: but not
what a proxy there passes on, which X-Forwarded-For and Forwarded give away. The address of the client is the
peer's, unless the peer is a trusted proxy: then it is the last hop in X-Forwarded-For that is not one. A
trusted proxy that sends something else than addresses is refused, for a guess would end up in the audit.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from serving.access.errors import (
    ContradictionError,
    InvalidKeyError,
    ModelNotAllowedError,
    RefusedNetworkError,
)
from serving.access.keys import Key
from serving.errors import (
    InvalidForwardedForError,
    InvalidProjectError,
    InvalidUserError,
    MissingUserError,
    UntrustedCallerError,
)
from serving.settings import Network, ServingSettings
from tallybook.usage import NAME


class Caller(NamedTuple):
    """Whom a request is billed to, and where it came from."""

    user: str
    project: str
    department: str
    client_ip: str
    api_key_id: str | None = None  # of the key that it came with
    models: frozenset[str] | None = None  # that the key is for; None: every model
    approver: bool = False  # whether the key may decide about overage


class _Address(NamedTuple):
    text: str
    may_name_users: bool
    is_proxy: bool


class Gatekeeper:
    """Reads the caller of a request; the settings decide whose word counts."""

    def __init__(
        self,
        settings: ServingSettings,
        key_of: Callable[[str], Key],
        check_credit: Callable[[str], None] = lambda project: None,
    ) -> None:
        """`key_of` gives the live key with a secret, `check_credit` looks at a project's; or an ApiError."""
        self._key_of = key_of
        self._check_credit = check_credit
        self._trusted_networks = settings.trusted_networks
        self._trusts_forwarders = "trusted_networks" in settings.model_fields_set
        self._trusted_proxies = settings.trusted_proxies
        secret = settings.gateway_secret
        self._secret = None if secret is None else secret.get_secret_value().encode()
        self._default_project = settings.default_project
        self._default_department = settings.default_department
        self._departments = settings.project_departments
        self._model_networks = settings.model_networks
        self._address = lru_cache(maxsize=4096)(self._examine)

    def identify(self, environ: Mapping[str, Any]) -> Caller:
        """The caller of the request with this WSGI environment.

        Raises: InvalidKeyError, ExpiredKeyError, ContradictionError, RefusedNetworkError,
            AccessUnavailableError, UntrustedCallerError, MissingUserError, InvalidUserError,
            InvalidProjectError, InvalidForwardedForError.
        """
        peer = self._peer(environ)
        authorization = environ.get("HTTP_AUTHORIZATION")
        if authorization is not None:
            return self._by_key(authorization, peer, environ)
        is_believed = peer.may_name_users and (
            self._trusts_forwarders or not ("HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ)
        )
        if not is_believed and not self._knows_the_secret(environ):
            forwarded = (
                " for whom it forwards, unless trusted_networks says so" if peer.may_name_users else ""
            )
            raise UntrustedCallerError(
                f"X-User-ID is not believed from {peer.text}{forwarded}: "
                "it needs an API key, or a gateway's secret."
            )
        user = environ.get("HTTP_X_USER_ID")
        if user is None:
            raise MissingUserError("The header X-User-ID is missing.")
        project = environ.get("HTTP_X_PROJECT_ID", self._default_project)
        _check_names(user, project)
        return Caller(user, project, self._department(project), self._client_ip(peer, environ))

    def check_model(self, caller: Caller, model: str) -> None:
        """Whether the caller may use a model now.

        Raises: ModelNotAllowedError, RefusedNetworkError, WalletEmptyError.
        """
        self._check_credit(caller.project)
        refusal = self._refusal(caller, model)
        if refusal is not None:
            raise refusal

    def may_use(self, caller: Caller, model: str) -> bool:
        """Whether a model is there for the caller, credit aside."""
        return self._refusal(caller, model) is None

    def _refusal(self, caller: Caller, model: str) -> ModelNotAllowedError | RefusedNetworkError | None:
        if caller.models is not None and model not in caller.models:
            return ModelNotAllowedError(f"The API key is not for the model {model}.")
        networks = self._model_networks.get(model)
        if networks is not None and not _lies_in(ip_address(caller.client_ip), networks):
            return RefusedNetworkError(f"The model {model} may not be used from {caller.client_ip}.")
        return None

    def _by_key(self, authorization: str, peer: _Address, environ: Mapping[str, Any]) -> Caller:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidKeyError("Authorization must be Bearer and an API key.")
        key = self._key_of(secret.strip())
        client_ip = self._client_ip(peer, environ)
        if key.networks is not None and not _lies_in(ip_address(client_ip), key.networks):
            raise RefusedNetworkError(f"The API key may not be used from {client_ip}.")
        user = environ.get("HTTP_X_USER_ID", key.user)
        project = environ.get("HTTP_X_PROJECT_ID", key.project)
        department = key.department
        approver = key.approver and user == key.user  # whom it names has not been given that
        if user != key.user or project != key.project:
            if not key.for_others:
                raise ContradictionError(f"The API key is {key.user}'s in {key.project}, and no one else's.")
            _check_names(user, project)
            department = key.department if project == key.project else None
        department = department or self._department(project)
        return Caller(user, project, department, client_ip, key.id, key.models, approver)

    def _department(self, project: str) -> str:
        return self._departments.get(project, self._default_department)

    def _peer(self, environ: Mapping[str, Any]) -> _Address:
        try:
            return self._address(environ["REMOTE_ADDR"])
        except (KeyError, ValueError):
            raise UntrustedCallerError("The peer has no IP address.") from None

    def _knows_the_secret(self, environ: Mapping[str, Any]) -> bool:
        given = environ.get("HTTP_X_GATEWAY_SECRET")
        if self._secret is None or given is None:
            return False
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._secret)

    def _client_ip(self, peer: _Address, environ: Mapping[str, Any]) -> str:
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        if not peer.is_proxy or forwarded is None:
            return peer.text
        for hop in reversed(forwarded.split(",")):
            try:
                address = self._address(_without_port(hop.strip()))
            except ValueError:
                raise InvalidForwardedForError(
                    "X-Forwarded-For holds something that is no IP address."
                ) from None
            if not address.is_proxy:
                break
        return address.text

    def _examine(self, text: str) -> _Address:
        """Raises: ValueError: not an IP address."""
        if "%" in text:
            raise ValueError("a zone means nothing here, and may hold any text")
        address = ip_address(text)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return _Address(
            str(address),
            may_name_users=_lies_in(address, self._trusted_networks),
            is_proxy=_lies_in(address, self._trusted_proxies),
        )


def _check_names(user: str, project: str) -> None:
    if not NAME.fullmatch(user):
        raise InvalidUserError("X-User-ID must be 1-128 of letters, digits and ._@:-")
    if not NAME.fullmatch(project):
        raise InvalidProjectError("X-Project-ID must be 1-128 of letters, digits and ._@:-")


def _lies_in(address: IPv4Address | IPv6Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _without_port(hop: str) -> str:
    """`1.2.3.4:5678` and `[2001:db8::1]:5678`, as some proxies write, without the port."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
