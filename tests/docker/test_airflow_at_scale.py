"""Airflow with Celery and on Kubernetes, as far as it can be checked without either."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

from billing.settings import BillingSettings
from tests.docker.test_compose import DOCKER, ROOT, SERVICES

CELERY: dict[str, Any] = yaml.safe_load((DOCKER / "compose.celery.yaml").read_text("utf-8"))["services"]
OBJECTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((DOCKER / "kubernetes" / "airflow.yaml").read_text("utf-8"))
)
TASK: dict[str, Any] = yaml.safe_load(
    next(o["data"]["task.yaml"] for o in OBJECTS if o["metadata"]["name"] == "tallybook-airflow-task")
)


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """The specification of every pod that there may be, by the name of what makes it."""
    found = {name: each["spec"]["template"]["spec"] for name, each in named("Deployment").items()}
    return found | {"task": TASK["spec"]}


def test_with_celery_every_part_of_airflow_has_the_same_executor() -> None:
    parts = {name for name in SERVICES if name.startswith("airflow-")}
    assert parts | {"airflow-worker", "airflow-redis"} == CELERY.keys()
    for name in CELERY.keys() - {"airflow-redis"}:
        assert CELERY[name]["environment"]["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
        assert "@airflow-redis:6379" in CELERY[name]["environment"]["AIRFLOW__CELERY__BROKER_URL"]


def test_a_worker_has_what_the_scheduler_has_in_compose() -> None:
    extended = CELERY["airflow-worker"]["extends"]
    assert (DOCKER / extended["file"]).exists()
    assert "journal:/var/lib/tallybook/journal:ro" in SERVICES[extended["service"]]["volumes"]
    assert CELERY["airflow-redis"]["cap_drop"] == ["ALL"]
    assert re.search(r":\d+\.\d+\.\d+-", CELERY["airflow-redis"]["image"])


def test_the_image_has_both_executors() -> None:
    assert ",executors]'" in (DOCKER / "airflow.Dockerfile").read_text("utf-8")
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    for provider in ("celery", "cncf-kubernetes"):
        assert f"apache-airflow-providers-{provider}==" in pins


@pytest.mark.parametrize("name", pods())
def test_a_pod_runs_our_image_with_no_more_rights_than_it_needs(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert "serviceAccountName" in pod or pod["automountServiceAccountToken"] is False
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["image"] == SERVICES["airflow-scheduler"]["image"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


@pytest.mark.parametrize("name", pods())
def test_what_a_pod_refers_to_exists_or_is_made_as_the_first_lines_say(name: str) -> None:
    head = (DOCKER / "kubernetes" / "airflow.yaml").read_text("utf-8").partition("apiVersion")[0]
    pod = pods()[name]
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            wanted = volume["configMap"]["name"]
            assert wanted in named("ConfigMap") or f"create configmap {wanted} " in head
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in named("PersistentVolumeClaim")
    for container in pod["containers"]:
        for source in container["envFrom"]:
            if "secretRef" in source:
                assert f"create secret generic {source['secretRef']['name']} " in head
            else:
                assert source["configMapRef"]["name"] in named("ConfigMap")


def test_services_and_accounts_belong_to_deployments() -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in named("Deployment").values()]
    assert all(each["spec"]["selector"] in labels for each in named("Service").values())
    assert named("RoleBinding")["airflow-scheduler"]["subjects"][0]["name"] in named("ServiceAccount")


def test_tasks_are_made_of_the_template_in_the_image_that_all_have() -> None:
    settings = named("ConfigMap")["tallybook-airflow"]["data"]
    image = SERVICES["airflow-scheduler"]["image"].split(":")
    kubernetes = "AIRFLOW__KUBERNETES_EXECUTOR__"
    assert [settings[f"{kubernetes}WORKER_CONTAINER_{part}"] for part in ("REPOSITORY", "TAG")] == image
    assert settings[f"{kubernetes}POD_TEMPLATE_FILE"] == "/etc/airflow/task.yaml"
    assert TASK["spec"]["containers"][0]["name"] == "base"
    ours = {name for name in settings if name.startswith("TALLYBOOK_")}
    assert ours <= {f"TALLYBOOK_{name.upper()}" for name in BillingSettings.model_fields}
