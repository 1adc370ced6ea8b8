"""NVML is stood in for: no machine here has a GPU."""

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serving.observability import gpus
from serving.observability.gpus import Gpus


class LostError(Exception):
    pass


class Nvml(SimpleNamespace):
    """Two GPUs, of which the second has fallen off the bus."""

    NVMLError = LostError

    def nvmlInit(self) -> None:  # noqa: N802  NVML's name
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA A100"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        if handle == 1:
            raise LostError
        return SimpleNamespace(gpu=75)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=1024, total=4096)


def shown() -> str:
    registry = CollectorRegistry()
    registry.register(Gpus())
    return generate_latest(registry).decode()


def test_a_gpu_tells_how_busy_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "pynvml", Nvml())
    text = shown()
    assert 'tallybook_gpu_utilization_ratio{gpu="0",name="NVIDIA A100"} 0.75' in text
    assert 'tallybook_gpu_memory_used_bytes{gpu="0",name="NVIDIA A100"} 1024.0' in text
    assert 'gpu="1"' not in text


def test_a_machine_without_gpus_has_no_metrics_of_them() -> None:
    assert shown() == ""
