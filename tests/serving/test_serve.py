import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from serving import server
from tallybook.processes import free_port
from tests.apis import USER, ApiProcess, events_in, running_api
from tests.modelservers import Gate, running_server, wait_until
from tests.savedmodels import tiny_probabilities


@contextmanager
def running(
    tmp_path: Path, models_dir: Path, gate: Gate | None = None, **settings: str
) -> Iterator[ApiProcess]:
    """The API before the embedded model server."""
    load = None if gate is None else gate.load
    with (
        running_server(models_dir, load) as server,
        running_api(tmp_path, models_dir, server.address, **settings) as api,
    ):
        yield api


def memory_of(pid: int) -> tuple[int, str]:
    """Resident megabytes, and what is mapped."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024, Path(f"/proc/{pid}/maps").read_text()


def test_the_api_answers_records_and_never_loads_tensorflow(
    tmp_path: Path, models_dir: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path, models_dir) as api:
        answer = api.analyze("hotel").json()
        _, positive = answer["probabilities"].values()
        assert positive == pytest.approx(float(tiny_probabilities(api_ids(models_dir, "hotel"))[1]), abs=1e-6)
        [event] = events_in(api.journal_dir)
        assert event.id == answer["request_id"]
        assert event.total_tokens == answer["usage"]["total_tokens"]
        for pid in (api.process.pid, *api.workers()):
            megabytes, mapped = memory_of(pid)
            assert "libtensorflow" not in mapped
            assert "_pywrap_tensorflow" not in mapped
            record_property("resident_megabytes", megabytes)
            with capsys.disabled():
                print(f"\n  resident memory of API process {pid}: {megabytes} MB")  # noqa: T201  a report
            assert megabytes < 300, "TensorFlow alone takes more"


def api_ids(models_dir: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    file = models_dir / "review-sentiment" / "1" / "assets.extra" / "tokenizer.json"
    ids: list[int] = Tokenizer.from_file(str(file)).encode(text).ids
    return ids


def test_a_request_under_way_is_answered_and_recorded_when_the_api_is_stopped(
    tmp_path: Path, models_dir: Path
) -> None:
    gate = Gate()
    with running(tmp_path, models_dir, gate) as api, ThreadPoolExecutor(1) as pool:
        request = pool.submit(api.analyze)
        gate.wait_for_run()
        api.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(api.port))
        assert not request.done()
        gate.open()
        answer = request.result(30)
        assert answer.status_code == 200
        assert api.process.wait(30) == 0
        assert [event.id for event in events_in(api.journal_dir)] == [answer.json()["request_id"]]


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_slow_model_is_a_timeout_within_the_deadline_and_costs_nothing(
    tmp_path: Path, models_dir: Path
) -> None:
    gate = Gate()
    with running(tmp_path, models_dir, gate, deadline_seconds="0.3") as api:
        response = api.analyze()
        gate.open()
        assert (response.status_code, response.json()["error"]["code"]) == (504, "model_timeout")
        assert events_in(api.journal_dir) == []


def test_a_model_server_that_is_down_is_unavailable_and_found_again(tmp_path: Path, models_dir: Path) -> None:
    with running_server(models_dir) as server:
        address = server.address
        api = ApiProcess(tmp_path, models_dir, address)
        api.wait_until_ready()
    try:
        response = api.analyze()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_unavailable")
        assert events_in(api.journal_dir) == []
        wait_until(lambda: httpx.get(f"{api.address}/readyz").status_code == 503)
        with running_server(models_dir, model_server_port=int(address.rpartition(":")[2])):
            wait_until(lambda: api.analyze().status_code == 200)
            wait_until(lambda: httpx.get(f"{api.address}/readyz").status_code == 200)
    finally:
        api.kill()


def test_a_new_version_is_followed_without_restart(
    tmp_path: Path, models_dir: Path, model_versions: Path
) -> None:
    with running(tmp_path, models_dir) as api, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def ask() -> set[tuple[int, str]]:
            seen = set()
            while not stop.is_set():
                response = api.analyze()
                seen.add((response.status_code, response.json().get("model_version")))
            return seen

        asking = [pool.submit(ask) for _ in range(4)]
        beside = shutil.copytree(model_versions / "2", models_dir / "review-sentiment" / ".2")
        beside.rename(models_dir / "review-sentiment" / "2")
        wait_until(lambda: api.analyze().json()["model_version"] == "2")
        stop.set()
        # No request fails over the change: one that loses its version is asked again of the next.
        assert set().union(*(one.result(30) for one in asking)) == {(200, "1"), (200, "2")}


def raw(port: int, request: bytes) -> bytes:
    """Send bytes, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_bodies_in_chunks_are_read_whole_and_bounded(tmp_path: Path, models_dir: Path) -> None:
    with running(tmp_path, models_dir) as api:
        answer = httpx.post(
            f"{api.address}/analyze", content=iter([b'{"te', b'xt": "ho', b'tel"}']), headers=USER, timeout=30
        )
        assert answer.status_code == 200
        head = b"POST /analyze HTTP/1.1\r\nHost: a\r\nX-User-ID: user-a\r\nConnection: close\r\n"
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        large = raw(api.port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17 + b"0\r\n\r\n")
        assert large.startswith(b"HTTP/1.1 413")
        assert b'"body_too_large"' in large
        announced = raw(api.port, head + b"Content-Length: 999999999\r\n\r\n")
        assert announced.startswith(b"HTTP/1.1 413")
        assert len(events_in(api.journal_dir)) == 1


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"X-User-ID: al\xc3\xa9", 400),
        (b"X-User-ID: \xe9", 400),
        (b"X-User-ID: user-a\r\nX-User-ID: user-b", 400),
        (b"X-User-ID: ", 400),
        (b"X-User-ID: a\x00b", 400),
        (b"", 401),
        (b"X-User-ID: " + b"a" * 200_000, 431),
    ],
    ids=["UTF-8", "Latin-1", "twice", "empty", "NUL", "none", "huge"],
)
def test_no_odd_header_gets_through_the_server(
    api_for_headers: ApiProcess, header: bytes, status: int
) -> None:
    body = b'{"text":"hotel"}'
    head = b"POST /analyze HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body)
    answer = raw(api_for_headers.port, head + header + b"\r\n" * bool(header) + b"\r\n" + body)
    assert answer.split(b" ", 2)[1] == str(status).encode()
    assert events_in(api_for_headers.journal_dir) == []


@pytest.fixture(scope="module")
def api_for_headers(tmp_path_factory: pytest.TempPathFactory, model_versions: Path) -> Iterator[ApiProcess]:
    with running(tmp_path_factory.mktemp("headers"), model_versions.parent) as api:
        yield api


def test_an_unknown_path_forges_no_log_line(api_for_headers: ApiProcess) -> None:
    raw(api_for_headers.port, b"GET /%0a%7b%22forged%22 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    def paths() -> list[str | None]:
        lines = api_for_headers.log.read_text().splitlines()
        return [orjson.loads(line).get("path") for line in lines]

    wait_until(lambda: '/\n{"forged"' in paths())  # lines are written a moment later


def test_peers_that_vanish_are_noticed(api_for_headers: ApiProcess) -> None:
    """The kernel probes idle connections: in /proc/net/tcp, timer 02 is the keepalive timer."""
    with socket.create_connection(("127.0.0.1", api_for_headers.port)) as connection:
        connection.sendall(
            b"POST /analyze HTTP/1.1\r\nHost: a\r\nX-User-ID: user-a\r\nContent-Length: 5\r\n\r\n{"
        )
        ours = f"{connection.getsockname()[1]:04X}"

        def timer() -> str | None:
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[2].endswith(f":{ours}"):
                    return fields[5].split(":")[0]
            return None

        wait_until(lambda: timer() == "02")


def test_who_takes_nothing_of_an_answer_loses_it() -> None:
    """Linux ends a connection whose peer has had no room for so long; accepted ones inherit that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server._probe_peers(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 90_000


def test_several_workers_count_together_and_each_has_its_journal(tmp_path: Path, models_dir: Path) -> None:
    with running(tmp_path, models_dir, workers="2", quotas="false") as api:
        assert len(api.workers()) == 2
        for _ in range(20):
            assert api.analyze().status_code == 200
        name = 'tallybook_requests_total{route="/analyze",status="200"} 20.0'
        for _ in range(4):
            assert name in httpx.get(f"{api.address}/metrics").text
        assert len(list(api.journal_dir.glob("*.jsonl"))) == 2
        assert len(events_in(api.journal_dir)) == 20


def test_a_worker_that_dies_is_followed_by_another(tmp_path: Path, models_dir: Path) -> None:
    with running(tmp_path, models_dir) as api:
        [worker] = api.workers()
        os.kill(worker, signal.SIGKILL)

        def answers() -> bool:
            try:
                return api.analyze().status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers)
        assert api.workers() != [worker]


def test_workers_do_not_outlive_their_parent(tmp_path: Path, models_dir: Path) -> None:
    with running(tmp_path, models_dir) as api:
        api.process.kill()
        api.process.wait()
        wait_until(lambda: refuses(api.port))


def test_a_taken_address_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        ran = subprocess.run(
            [sys.executable, "-m", "tallybook.cli", "serve", "--port", str(taken.getsockname()[1])],
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
        )  # fmt: skip
    assert ran.returncode == 1
    assert "Address already in use" in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks for files in /proc")
def test_a_worker_holds_its_segment_once(tmp_path: Path, models_dir: Path) -> None:
    """Else its lock would outlive it, and an event behind the last marker would wait for the worker's end."""
    with running(tmp_path, models_dir) as api:
        [worker] = api.workers()
        files = [file.readlink() for file in Path(f"/proc/{worker}/fd").iterdir()]
    assert len([file for file in files if file.suffix == ".jsonl"]) == 1


def test_a_full_disk_means_no_answer_and_no_bill(tmp_path: Path, models_dir: Path) -> None:
    """A real limit on the size of files: the write stops half-way through a line."""
    with running(tmp_path, models_dir) as api:
        assert api.analyze().status_code == 200
        [worker] = api.workers()
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))
        answered = 1
        while (response := api.analyze()).status_code == 200:
            answered += 1
            assert answered < 1000
        assert (response.status_code, response.json()["error"]["code"]) == (503, "journal_unavailable")
        assert httpx.get(f"{api.address}/readyz").status_code == 503
        assert len(events_in(api.journal_dir)) == answered
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_until(lambda: api.analyze().status_code == 200)
        assert len(events_in(api.journal_dir)) == answered + 1
