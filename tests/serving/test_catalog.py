import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.catalog import Catalog
from serving.errors import ModelUnavailableError
from serving.protos import model_server_config_pb2
from serving.release.files import write_config, write_shares
from serving.release.share import falls_to_canary
from tallybook.files import write_whole
from tests.apis import MODEL, StandIn, alter_card, export
from tests.modelservers import wait_until

NEVER = 3600.0
USER = "user-a"


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
        requests = [pool.submit(catalog.instead_of, gone, USER) for _ in range(8)]
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
    assert catalog.instead_of(gone, USER).version.version == 2
    assert catalog.instead_of(gone, USER).version.version == 2
    catalog.close()


def test_a_version_that_is_gone_and_has_no_successor_is_not_given_again(models_dir: Path) -> None:
    server = StandIn(1)
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    with pytest.raises(ModelUnavailableError, match="not served any more"):
        catalog.instead_of(catalog.current(), USER)
    catalog.close()


def release(models_dir: Path, share: int = 0, **labels: int) -> None:
    """Write what `tallybook release` would; the canary's share in hundredths of a percent."""
    config = model_server_config_pb2.ModelServerConfig()
    entry = config.model_config_list.config.add(name=MODEL, base_path=str(models_dir / MODEL))
    for label, version in labels.items():
        entry.version_labels[label] = version
    write_shares(models_dir / "models.config", {MODEL: share})
    write_config(models_dir / "models.config", config)


def test_the_labels_of_the_release_say_who_answers_whom(server: StandIn, models_dir: Path) -> None:
    server.states = {1: "AVAILABLE", 2: "AVAILABLE", 3: "AVAILABLE"}
    release(models_dir, 5_000, stable=1, canary=2)
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    users = [f"user-{number}" for number in range(200)]
    chosen = {user: catalog.choose(user) for user in users}
    for user, choice in chosen.items():
        canary = falls_to_canary(MODEL, user, 5_000)
        assert (choice.version.version, choice.label) == ((2, "canary") if canary else (1, "stable"))
        assert catalog.choose(user) is choice
    assert {choice.label for choice in chosen.values()} == {"stable", "canary"}
    assert catalog.current().version == 1
    catalog.close()


def test_a_share_is_changed_without_a_restart(server: StandIn, catalog: Catalog, models_dir: Path) -> None:
    server.states = {1: "AVAILABLE", 2: "AVAILABLE"}
    release(models_dir, 0, stable=1, canary=2)
    wait_until(lambda: catalog.choose(USER).label == "stable")
    release(models_dir, 10_000, stable=1, canary=2)
    wait_until(lambda: catalog.choose(USER).label == "canary")
    release(models_dir, 10_000, stable=2)
    wait_until(lambda: catalog.choose(USER) == (catalog.current(), "stable"))
    assert catalog.current().version == 2


@pytest.mark.parametrize(
    ("available", "labels", "expected"),
    [
        ([1, 2, 3], {"stable": 2}, (2, "stable")),
        ([1, 3], {"stable": 2}, (3, None)),
        ([1, 3], {"stable": 2, "previous": 1}, (1, None)),
        ([1, 3], {"stable": 2, "canary": 3}, (1, None)),
        ([3], {"stable": 2, "canary": 3}, (3, "canary")),
        ([1, 2], {}, (2, None)),
    ],
)
def test_a_labelled_version_that_is_not_available_is_stood_in_for(
    models_dir: Path, available: list[int], labels: dict[str, int], expected: tuple[int, str | None]
) -> None:
    release(models_dir, 0, **labels)
    catalog = Catalog(StandIn(*available), models_dir, MODEL, NEVER)
    choice = catalog.choose(USER)
    assert (choice.version.version, choice.label) == expected
    catalog.close()


def test_a_canary_that_left_is_followed_by_the_stable_version(server: StandIn, models_dir: Path) -> None:
    server.states = {1: "AVAILABLE", 2: "AVAILABLE"}
    release(models_dir, 10_000, stable=1, canary=2)
    catalog = Catalog(server, models_dir, MODEL, NEVER)
    gone = catalog.choose(USER)
    assert gone.label == "canary"
    # The server has dropped it, but says so late.
    assert catalog.instead_of(gone.version, USER).label == "stable"
    server.states = {1: "AVAILABLE"}
    assert catalog.instead_of(gone.version, USER).label == "stable"
    catalog.close()


def test_a_broken_release_file_leaves_the_release_as_it_was(
    server: StandIn, catalog: Catalog, models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.states = {1: "AVAILABLE", 2: "AVAILABLE"}
    release(models_dir, 0, stable=1)
    wait_until(lambda: catalog.choose(USER).label == "stable")
    write_whole(
        models_dir / "models.config", b"model_config_list {"
    )  # an empty file would be a release without labels
    wait_until(lambda: "going on with the release as it was" in caplog.text)
    assert catalog.choose(USER) == (catalog.current(), "stable")
    assert catalog.current().version == 1
