from typing import Any

import pytest
from pydantic import ValidationError

from serving.settings import ServingSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"gateway_secret": ""},
        {"gateway_secret": "short"},
        {"gateway_secret": "has a space in the middle"},
        {"gateway_secret": "has,a,comma,in,the,middle"},
        {"gateway_secret": "密码密码密码密码密码密码密码密码"},
        {"trusted_networks": ["10.0.0.1/8"]},
        {"trusted_networks": ["everybody"]},
        {"default_project": "no good"},
        {"project_departments": {"search": "no good"}},
        {"prompt_capture": "all"},
        {"deadline_seconds": 0},
        {"workers": 0},
        {"port": 70_000},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServingSettings(**wrong)


def test_every_setting_is_described() -> None:
    assert [name for name, field in ServingSettings.model_fields.items() if not field.description] == []


def test_the_gateways_secret_is_not_shown() -> None:
    secret = "".join(["a-secret", "-of-the-gateway"])
    assert secret not in repr(ServingSettings(gateway_secret=secret))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBOOK_TRUSTED_NETWORKS", '["10.0.0.0/8"]')
    monkeypatch.setenv("TALLYBOOK_PROJECT_DEPARTMENTS", '{"search": "retail"}')
    settings = ServingSettings()
    assert [str(network) for network in settings.trusted_networks] == ["10.0.0.0/8"]
    assert settings.project_departments == {"search": "retail"}
