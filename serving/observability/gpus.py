"""How busy the GPUs of this machine are, by NVIDIA's NVML: metrics where there are GPUs, and none elsewhere.

Each worker sees the same GPUs, so these are no tallies: whoever is asked tells what it sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import pynvml  # type: ignore[import-untyped]  # ships no types
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

_LABELS = ("gpu", "name")


class Gpus:
    """A collector of prometheus-client."""

    def __init__(self) -> None:
        """Look for GPUs once."""
        try:
            pynvml.nvmlInit()
            self._handles = [
                pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
            ]
        except pynvml.NVMLError:  # no driver, no GPU, or no right to ask
            self._handles = []

    def collect(self) -> Iterator[Metric]:
        """Utilisation and memory of each GPU that answers."""
        if not self._handles:
            return
        busy = GaugeMetricFamily(
            "tallybook_gpu_utilization_ratio", "Share of the time a kernel ran.", labels=_LABELS
        )
        used = GaugeMetricFamily("tallybook_gpu_memory_used_bytes", "Memory in use.", labels=_LABELS)
        total = GaugeMetricFamily("tallybook_gpu_memory_total_bytes", "Memory there is.", labels=_LABELS)
        for index, handle in enumerate(self._handles):
            try:
                name = pynvml.nvmlDeviceGetName(handle)
                utilization = pynvml.nvmlDeviceGetUtilizationRates(handle)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            except pynvml.NVMLError:  # a GPU that has fallen off the bus
                continue
            labels = (str(index), name)
            busy.add_metric(labels, utilization.gpu / 100)
            used.add_metric(labels, memory.used)
            total.add_metric(labels, memory.total)
        yield from (busy, used, total)
