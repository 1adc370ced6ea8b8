import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.errors import OverloadedError
from serving.observability import metrics
from serving.observability.metrics import OTHER_PROJECTS, Metrics
from serving.settings import METRICS_FOLDER_VARIABLE
from tallybook.usage import NAME


def test_projects_beyond_the_first_share_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MOST_PROJECTS", 2)
    counted = Metrics()
    for project in ("a", "b", "c", "d", "a"):
        counted.tokens("m", "1", project, 10, 1)
    text = counted.exposition().decode()
    labels = 'direction="prompt",model="m",model_version="1",project='
    assert f'{{{labels}"a"}} 20.0' in text
    assert f'{{{labels}"{OTHER_PROJECTS}"}} 20.0' in text
    assert '"c"' not in text


def test_no_project_can_have_the_name_of_the_others() -> None:
    assert not NAME.fullmatch(OTHER_PROJECTS)


def test_calls_that_a_killed_worker_had_under_way_are_not_under_way_any_more(tmp_path: Path) -> None:
    def worker(code: str) -> str:
        program = f"import os; from serving.observability.metrics import Metrics; counted = Metrics(); {code}"
        environment = {**os.environ, METRICS_FOLDER_VARIABLE: str(tmp_path)}
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        return ran.stdout

    worker("counted.request('/analyze', 200, 0.1); counted.model_in_flight.inc(); os.kill(os.getpid(), 9)")
    text = worker("counted.model_in_flight.inc(); print(counted.exposition().decode())")
    assert "tallybook_model_in_flight 1.0" in text
    assert 'tallybook_requests_total{route="/analyze",status="200"} 1.0' in text


def test_tokens_held_by_quotas_are_shown_while_their_counters_can_be_asked() -> None:
    counted = Metrics()
    answers: list[int] = [70]

    def held() -> int:
        if not answers:
            raise OverloadedError("Redis is away.")
        return answers.pop()

    counted.watch_reserved(held)
    assert "tallybook_reserved_tokens 70.0" in counted.exposition().decode()
    assert "tallybook_reserved_tokens" not in counted.exposition().decode()
