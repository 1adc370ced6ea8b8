"""The server over gRPC while versions come and go, and while it starts and stops."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from serving.model_server.server import create_server
from serving.model_server.settings import ModelServerSettings
from tests.modelservers import (
    TIMEOUT_SECONDS,
    Calls,
    Gate,
    Stubs,
    predict_request,
    probabilities,
    running_server,
    text,
    wait_until,
)
from tests.savedmodels import tiny_probabilities

NAME = "review-sentiment"
CODE = grpc.StatusCode


def export_version_2(model_versions: Path, models_dir: Path) -> None:
    """Put it in place as an export does: written beside, then renamed."""
    beside = models_dir / NAME / ".2"
    shutil.copytree(model_versions / "2", beside)
    beside.rename(models_dir / NAME / "2")


def test_a_new_version_takes_over_without_one_failed_request(models_dir: Path, model_versions: Path) -> None:
    ids = [2, 9, 17, 3]
    stop = threading.Event()

    def ask(address: str) -> list[int]:
        seen = []
        with Stubs(address) as stubs:
            while not stop.is_set():
                answer = stubs.predict(text(*ids))
                version = answer.model_spec.version.value
                assert probabilities(answer)[0] == pytest.approx(tiny_probabilities(ids, version), abs=1e-6)
                seen.append(version)
        return seen

    with (
        running_server(models_dir) as server,
        ThreadPoolExecutor(8) as pool,
        Stubs(server.address) as stubs,
    ):
        asking = [pool.submit(ask, server.address) for _ in range(8)]
        try:
            export_version_2(model_versions, models_dir)
            wait_until(lambda: stubs.status().get(1, ("",))[0] == "END")
        finally:
            stop.set()
        for seen in (call.result(TIMEOUT_SECONDS) for call in asking):
            assert seen == sorted(seen)
        assert stubs.predict(text(*ids)).model_spec.version.value == 2
        with pytest.raises(grpc.RpcError) as caught:
            stubs.predict(text(*ids), version=1)
        assert caught.value.code() is CODE.NOT_FOUND


def test_a_replaced_version_first_answers_what_it_took(models_dir: Path, model_versions: Path) -> None:
    gate = Gate()
    with running_server(models_dir, gate.load) as server, Stubs(server.address) as stubs:
        taken = stubs.later(predict_request(NAME, 1, text(2, 9)), TIMEOUT_SECONDS)
        gate.wait_for_run()
        export_version_2(model_versions, models_dir)
        wait_until(lambda: stubs.status().get(1, ("",))[0] == "UNLOADING")
        assert stubs.status()[2][0] == "AVAILABLE"
        gate.open()
        assert probabilities(taken.result())[0] == pytest.approx(tiny_probabilities([2, 9], 1), abs=1e-6)
        wait_until(lambda: stubs.status()[1][0] == "END")


def test_a_version_that_does_not_load_says_why_over_grpc(models_dir: Path, model_versions: Path) -> None:
    shutil.copytree(model_versions / "2", models_dir / NAME / "2")
    (models_dir / NAME / "2" / "saved_model.pb").write_bytes(b"noise")
    with running_server(models_dir) as server, Stubs(server.address) as stubs:
        state, code, message = stubs.status()[2]
        assert (state, code != 0) == ("END", True)
        assert "saved_model.pb" in message
        assert stubs.predict(text(2, 3)).model_spec.version.value == 1


def test_a_version_copied_into_place_file_by_file_is_served_when_it_is_whole(
    models_dir: Path, model_versions: Path
) -> None:
    def states() -> dict[int, str]:
        return {version: state for version, (state, _, _) in stubs.status().items()}

    with running_server(models_dir) as server, Stubs(server.address) as stubs:
        files = sorted(path for path in (model_versions / "2").rglob("*") if path.is_file())
        for file in files:
            target = models_dir / NAME / "2" / file.relative_to(model_versions / "2")
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.name == "saved_model.pb":
                target.write_bytes(file.read_bytes()[:200])
                wait_until(lambda: states().get(2) == "END")
                assert states()[1] == "AVAILABLE"
            shutil.copyfile(file, target)
        wait_until(lambda: states() == {2: "AVAILABLE", 1: "END"})
        assert stubs.predict(text(2, 3)).model_spec.version.value == 2


def test_a_server_without_models_waits_for_the_first(tmp_path: Path, model_versions: Path) -> None:
    shutil.copytree(model_versions, tmp_path / "beside" / NAME)
    with running_server(tmp_path / "models") as server, Stubs(server.address) as stubs:
        with pytest.raises(grpc.RpcError) as caught:
            stubs.predict(text(2, 3))
        assert caught.value.code() is CODE.NOT_FOUND
        (tmp_path / "beside").rename(tmp_path / "models")
        wait_until(lambda: server.manager.available())
        assert stubs.predict(text(2, 3)).model_spec.version.value == 2


def test_a_second_server_on_the_same_port_is_told(models_dir: Path) -> None:
    with running_server(models_dir) as server:
        rest_port = urlsplit(server.counters_url).port or 0
        for ports in ((server.port, 0), (0, rest_port)):
            taken = ModelServerSettings(
                models_dir=models_dir, model_server_port=ports[0], model_server_rest_port=ports[1]
            )
            with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{max(ports)}"):
                create_server(taken)


def test_stopping_answers_what_runs_and_refuses_what_comes(models_dir: Path) -> None:
    gate, stopping = Gate(), Calls()
    with running_server(models_dir, gate.load) as server, Stubs(server.address) as stubs:
        running = stubs.later(predict_request(NAME, None, text(2, 9)), TIMEOUT_SECONDS)
        gate.wait_for_run()
        stopping.start(server.stop)
        wait_until(lambda: unreachable(server.address))
        gate.open()
        assert probabilities(running.result())[0] == pytest.approx(tiny_probabilities([2, 9]), abs=1e-6)
        stopping.wait()
    assert not stopping.errors


def unreachable(address: str) -> bool:
    with Stubs(address) as stubs:
        try:
            stubs.status()
        except grpc.RpcError as error:
            return error.code() is CODE.UNAVAILABLE
    return False
