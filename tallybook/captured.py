"""Captured texts, encrypted: written into events by serving, read by an auditor who has the key.

AES-256-GCM with a fresh nonce for each text, bound to the id of its event: a text that was moved to another
event, or altered, is not decrypted. The key's id stands in the open, so that keys can be changed: new texts
are encrypted with the current key, old ones are read as long as their key is kept.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SCHEME = "aes256gcm"
_NONCE_BYTES = 12
_KEY_BYTES = 32
KEY_ID = re.compile(r"[A-Za-z0-9._\-]{1,64}")


class NotDecryptedError(ValueError):
    """A captured text that can't be read: `code` is key_unknown or text_altered."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TextKeys:
    """Keys by their ids. Safe for many threads."""

    def __init__(self, keys: Mapping[str, bytes], current: str | None) -> None:
        """`keys`: of `key_of`; `current`: the one that encrypts, none if nothing is to be encrypted."""
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._current = current

    def encrypt(self, text: str, event_id: str) -> str:
        """The text, for `prompt_encrypted` of this event: printable ASCII, a third longer."""
        if self._current is None:
            raise ValueError("there is no key to encrypt with")
        nonce = os.urandom(_NONCE_BYTES)
        hidden = self._ciphers[self._current].encrypt(nonce, text.encode(), event_id.encode())
        return f"{_SCHEME}:{self._current}:{base64.urlsafe_b64encode(nonce + hidden).decode()}"

    def decrypt(self, encrypted: str, event_id: str) -> str:
        """The text of this event. Raises: NotDecryptedError."""
        scheme, _, rest = encrypted.partition(":")
        key_id, _, hidden = rest.partition(":")
        cipher = self._ciphers.get(key_id) if scheme == _SCHEME else None
        if cipher is None:
            raise NotDecryptedError("key_unknown", f"there is no key {key_id[:64]!r}")
        try:
            data = base64.b64decode(hidden, altchars=b"-_", validate=True)
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], event_id.encode()).decode()
        except (InvalidTag, ValueError):
            raise NotDecryptedError("text_altered", f"the captured text of {event_id} was altered") from None


def key_of(text: str) -> bytes:
    """A key as settings hold it: 32 bytes in Base64. Raises: ValueError."""
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("a key must be Base64, as `openssl rand -base64 32` writes it") from error
    if len(key) != _KEY_BYTES:
        raise ValueError(f"a key must have {_KEY_BYTES} bytes, not {len(key)}")
    return key
