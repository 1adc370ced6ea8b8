import pytest

from serving import metrics
from serving.metrics import OTHER_PROJECTS, Metrics
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
