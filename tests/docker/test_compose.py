"""compose.yaml and its images, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types
from pydantic import SecretStr
from sqlalchemy import make_url

from billing.settings import BillingSettings
from serving.settings import ServingSettings
from tallybook.settings import CommonSettings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = "airflow-init"
SECRET = "5ec2e7" * 6
# ${NAME}, ${NAME:-default} and ${NAME:?message}.
REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")
SETTINGS: dict[str, type[CommonSettings]] = {"api": ServingSettings, "airflow-scheduler": BillingSettings}


def example() -> dict[str, str]:
    """What .env.example becomes by following its own first lines."""
    lines = (DOCKER / ".env.example").read_text("utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value.strip("'") or SECRET for name, _, value in pairs}


def environment(service: str, given: dict[str, str]) -> dict[str, str]:
    """What Compose sets in a container of this service, with these variables in .env."""

    def resolve(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if given.get(name):
            return given[name]
        assert kind == "-", f"{name} is not in .env"
        return str(rest)

    set_here = SERVICES[service].get("environment", {})
    return {
        name: given[name] if value is None else REFERENCE.sub(resolve, str(value))
        for name, value in set_here.items()
        if value is not None or name in given
    }


def references() -> set[str]:
    passed_on = {n for s in SERVICES.values() for n, v in s.get("environment", {}).items() if v is None}
    return passed_on | {match["name"] for match in REFERENCE.finditer((DOCKER / "compose.yaml").read_text())}


@pytest.mark.parametrize("service", SERVICES)
def test_images_are_pinned_to_a_whole_version(service: str) -> None:
    assert re.search(r":v?\d+\.\d+\.?\d*(-\w+)?$", SERVICES[service]["image"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(service: str) -> None:
    described = SERVICES[service]
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    user = described.get("user")
    if user is None:
        dockerfile = (ROOT / described["build"]["dockerfile"]).read_text("utf-8")
        (user,) = re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)
    assert user.partition(":")[0] not in {"root", "0"}


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_open_on_the_loopback_address_only(service: str) -> None:
    for port in SERVICES[service].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {ONE_SHOT}))
def test_a_service_says_whether_it_is_healthy(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_waits_for_can_come_true(service: str) -> None:
    for other, how in SERVICES[service].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other == ONE_SHOT else "service_healthy"
        assert how["condition"] == wanted
        assert other != service


@pytest.mark.parametrize("service", SERVICES)
def test_volumes_exist(service: str) -> None:
    for volume in SERVICES[service].get("volumes", []):
        source = REFERENCE.sub(lambda match: match["rest"], volume).partition(":")[0]
        if source.startswith("."):
            assert (DOCKER / source).exists() or source == "../models"
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_written_down(service: str) -> None:
    for name, value in SERVICES[service].get("environment", {}).items():
        if re.search(r"PASSWORD$|SECRET|_KEY$", name) and value:
            assert re.fullmatch(r"\$\{\w+:\?see \.env\.example\}", value), name
        for url in re.findall(r"://[^/@]*:[^/@]+@", str(value)):
            assert re.fullmatch(r"://\w+:\$\{\w+:\?see \.env\.example\}@", url), name


def test_every_secret_must_be_given_and_is_in_the_example() -> None:
    given = example()
    secrets = {name for name, value in given.items() if value == SECRET}
    files = str(COMPOSE) + (DOCKER / "compose.celery.yaml").read_text("utf-8")
    required = {m["name"] for m in REFERENCE.finditer(files) if m["kind"] == "?"}
    assert required == secrets
    celery = (DOCKER / "compose.celery.yaml").read_text("utf-8")
    assert references() | {match["name"] for match in REFERENCE.finditer(celery)} == given.keys()


def test_every_env_file_gets_secrets_of_its_own_and_is_not_overwritten(tmp_path: Path) -> None:
    made = tmp_path / ".env"
    command = ["/bin/bash", str(DOCKER / "make-env.sh"), str(made)]
    subprocess.run(command, check=True)
    secrets = re.findall(r"^[A-Z_]+=([0-9a-f]{64})$", made.read_text("utf-8"), re.MULTILINE)
    assert len(set(secrets)) == list(example().values()).count(SECRET)
    assert made.stat().st_mode & 0o777 == 0o600
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_that_is_set_is_one(service: str) -> None:
    known = {f"TALLYBOOK_{name.upper()}" for cls in SETTINGS.values() for name in cls.model_fields}
    ours = {name for name in SERVICES[service].get("environment", {}) if name.startswith("TALLYBOOK_")}
    assert ours <= known


@pytest.mark.parametrize("service", SETTINGS)
@pytest.mark.parametrize("filled", ["whole", "secrets only"])
def test_the_settings_take_what_compose_sets(
    service: str, filled: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {n: v for n, v in example().items() if filled == "whole" or v == SECRET}
    for name in [n for n in os.environ if n.startswith("TALLYBOOK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # where there is no tallybook.toml
    for name, value in environment(service, given).items():
        monkeypatch.setenv(name, value)
    settings = SETTINGS[service]()
    if isinstance(settings, BillingSettings):
        assert make_url(settings.ledger_url).password == SECRET
    if isinstance(settings, ServingSettings):
        assert settings.gateway_secret == SecretStr(SECRET)
        assert all(network.is_loopback for network in settings.trusted_networks)


def test_the_api_writes_the_journal_and_airflow_only_reads_it() -> None:
    assert "journal:/var/lib/tallybook/journal" in SERVICES["api"]["volumes"]
    assert "journal:/var/lib/tallybook/journal:ro" in SERVICES["airflow-scheduler"]["volumes"]


def test_prometheus_asks_services_that_there_are() -> None:
    watched = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    hosts = {
        target.split(":")[0] for job in watched for t in job["static_configs"] for target in t["targets"]
    }
    assert hosts - {"localhost"} <= SERVICES.keys()
    (model_server,) = (job for job in watched if job["job_name"] == "model-server")
    assert f'path: "{model_server["metrics_path"]}"' in (DOCKER / "monitoring.config").read_text("utf-8")


def test_the_model_server_serves_the_model_that_the_api_asks_for() -> None:
    model = ServingSettings.model_fields["model"].default
    config = (DOCKER / "releases" / "models.config").read_text("utf-8")
    assert f'name: "{model}"' in config
    assert f'base_path: "/models/{model}"' in config
    assert f"/v1/models/{model} " in str(SERVICES["model-server"]["healthcheck"])


@pytest.mark.parametrize("dockerfile", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda path: path.name)
def test_images_are_built_from_pinned_parts(dockerfile: Path) -> None:
    text = dockerfile.read_text("utf-8").replace("\\\n", " ")
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-", base)
    for command in re.findall(r"pip (?:install|download) [^&\n]*", text):
        assert "--constraint constraints.txt" in command or command.startswith(
            "pip install --no-deps --force"
        )
    copied = [
        word
        for line in re.findall(r"^COPY ((?!--from).*)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in copied)
