import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.catalog import Catalog
from serving.errors import ModelUnavailableError
from tests.apis import MODEL, StandIn, alter_card, export
from tests.modelservers import wait_until

NEVER = 3600.0


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    for version in (1, 2, 3):
        export(tmp_path, version)
    return tmp_path


@pytest.fixture
def server() -> StandIn:
    return StandIn(1)


@pytest.fixture
def catalog(server: StandIn, models_dir: Path) -> Iterator[Catalog]:
    made = Catalog(server, models_dir, MODEL, 0.01)
    yield made
    made.close()


def test_the_newest_available_version_answers_as_soon_as_it_is_seen(
    server: StandIn, catalog: Catalog
) -> None:
    assert catalog.current().version == 1
    server.states = {1: "AVAILABLE", 2: "AVAILABLE", 3: "LOADING"}
    wait_until(lambda: catalog.current().version == 2)


def test_a_rollback_is_followed_too(server: StandIn, catalog: Catalog) -> None:
    server.states = {1: "AVAILABLE", 2: "AVAILABLE"}
    wait_until(lambda: catalog.current().version == 2)
    server.states = {1: "AVAILABLE", 2: "UNLOADING"}
    wait_until(lambda: catalog.current().version == 1)


def test_a_version_that_is_refused_answers_once_its_files_are_right(
    server: StandIn, catalog: Catalog, models_dir: Path
) -> None:
    folder = models_dir / MODEL / "2"
    card = (folder / "assets.extra" / "model_card.json").read_bytes()
    alter_card(folder, tokenizer_fingerprint="0" * 64)
    server.states = {1: "AVAILABLE", 2: "AVAILABLE"}
    wait_until(lambda: 2 in catalog.refused())
    assert catalog.current().version == 1
    assert catalog.problem() is None
    (folder / "assets.extra" / "model_card.json").write_bytes(card)
    wait_until(lambda: catalog.current().version == 2)
    assert catalog.refused() == {}


@pytest.mark.parametrize(
    ("states", "why"),
    [({}, "has no version"), ({2: "LOADING"}, "version 2 is LOADING"), ({9: "AVAILABLE"}, "version 9: ")],
)
def test_without_a_version_it_says_what_is_missing(
    models_dir: Path, states: dict[int, str], why: str
) -> None:
    server = StandIn()
    server.states = states
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    assert why in (catalog.problem() or "")
    with pytest.raises(ModelUnavailableError, match=why):
        catalog.current()
    catalog.close()


def test_a_server_that_is_away_leaves_the_version_to_be_tried(server: StandIn, catalog: Catalog) -> None:
    server.failure = ModelUnavailableError("away")
    wait_until(lambda: catalog.problem() == "away")
    assert catalog.current().version == 1
    server.failure = None
    wait_until(lambda: catalog.problem() is None)


def test_of_many_requests_that_lose_a_version_one_asks_for_all(models_dir: Path) -> None:
    server = StandIn(1)
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    gone = catalog.current()
    looks, go_on = threading.Semaphore(0), threading.Event()
    states = server.version_states

    def slow_states(model: str, timeout_seconds: float) -> dict[int, str]:
        looks.release()
        assert go_on.wait(30)
        return states(model, timeout_seconds)

    server.version_states = slow_states  # type: ignore[method-assign]  # the stand-in, slowed down
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(catalog.instead_of, gone) for _ in range(8)]
        assert looks.acquire(timeout=30)
        go_on.set()
        for request in requests:
            with pytest.raises(ModelUnavailableError):
                request.result(30)
    # One more look for those who came when the first was under way: it may have asked too early for them.
    assert sum(iter(lambda: looks.acquire(blocking=False), False)) <= 1
    catalog.close()


def test_requests_that_lose_a_version_go_on_with_its_successor(models_dir: Path) -> None:
    server = StandIn(1)
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    gone = catalog.current()
    server.states = {2: "AVAILABLE"}
    assert catalog.instead_of(gone).version == 2
    assert catalog.instead_of(gone).version == 2
    catalog.close()


def test_a_version_that_is_gone_and_has_no_successor_is_not_given_again(models_dir: Path) -> None:
    server = StandIn(1)
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    with pytest.raises(ModelUnavailableError, match="not served any more"):
        catalog.instead_of(catalog.current())
    catalog.close()
