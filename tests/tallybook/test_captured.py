import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.settings import ServingSettings
from tallybook.captured import NotDecryptedError, TextKeys, key_of
from tallybook.settings import CommonSettings
from tallybook.usage import is_encrypted

OLD, NEW = b"o" * 32, b"n" * 32
KEY = base64.b64encode(NEW).decode()


@given(st.text(), st.uuids().map(str))
def test_a_text_comes_back_and_fits_an_event(text: str, event_id: str) -> None:
    keys = TextKeys({"new": NEW}, "new")
    encrypted = keys.encrypt(text, event_id)
    assert is_encrypted(encrypted)
    assert keys.decrypt(encrypted, event_id) == text
    assert keys.encrypt(text, event_id) != encrypted


def test_old_texts_are_read_after_the_key_was_changed() -> None:
    encrypted = TextKeys({"old": OLD}, "old").encrypt("text", "id")
    changed = TextKeys({"old": OLD, "new": NEW}, "new")
    assert changed.decrypt(encrypted, "id") == "text"
    assert changed.encrypt("text", "id").split(":")[1] == "new"


@given(st.integers(0, 10_000), st.integers(0, 93))
def test_a_text_of_which_anything_was_altered_is_not_read(where: int, to: int) -> None:
    keys = TextKeys({"new": NEW}, "new")
    encrypted = keys.encrypt("一些文字", "id")
    at = where % len(encrypted)
    altered = encrypted[:at] + chr(33 + to) + encrypted[at + 1 :]
    if altered != encrypted:
        try:
            # The last digit of Base64 may have bits that mean nothing.
            assert keys.decrypt(altered, "id") == "一些文字"
            assert at == len(encrypted.rstrip("=")) - 1
        except NotDecryptedError:
            pass


def test_a_text_is_read_for_its_own_event_only() -> None:
    keys = TextKeys({"new": NEW}, "new")
    with pytest.raises(NotDecryptedError) as altered:
        keys.decrypt(keys.encrypt("text", "id"), "another")
    assert altered.value.code == "text_altered"


@pytest.mark.parametrize("encrypted", ["", "x", "aes256gcm:new", "aes256gcm:other:AAAA", "plain:new:AAAA"])
def test_what_no_key_reads_is_told(encrypted: str) -> None:
    with pytest.raises(NotDecryptedError):
        TextKeys({"new": NEW}, "new").decrypt(encrypted, "id")


@pytest.mark.parametrize("text", ["", "short", "AAAA", base64.b64encode(b"x" * 31).decode(), "é" * 44])
def test_a_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        key_of(text)


def test_settings_refuse_what_could_not_be_encrypted() -> None:
    with pytest.raises(ValidationError, match="no key 'k2'"):
        CommonSettings(prompt_keys={"k1": KEY}, prompt_key="k2")
    with pytest.raises(ValidationError, match="needs prompt_key"):
        ServingSettings(project_prompt_capture={"a": "full"})
    with pytest.raises(ValidationError, match="32 bytes"):
        CommonSettings(prompt_keys={"k1": "AAAA"})
    with pytest.raises(ValidationError, match="id of a key"):
        CommonSettings(prompt_keys={"k:1": KEY})


def test_no_key_is_shown_by_its_settings() -> None:
    assert KEY not in repr(CommonSettings(prompt_keys={"k1": KEY}, prompt_key="k1"))
