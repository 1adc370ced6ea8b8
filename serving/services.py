"""The parts that a request meets, made once a process and closed together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serving.access.credit import Credit
from serving.access.idempotency import Idempotency
from serving.access.identity import Caller, Gatekeeper
from serving.access.known import Access
from serving.catalog import Catalog, ModelServer
from serving.engines.holding import Holding
from serving.engines.models import EngineModel, load_engine_models
from serving.inference import AskMany, AskOne, ModelClient
from serving.journal import Sink
from serving.kafka import sink_of
from serving.metering import Meter
from serving.observability.journal_lag import JournalLag
from serving.observability.logs import Later
from serving.observability.metrics import Metrics
from serving.observability.spans import Spans
from serving.observability.trace import Trace
from serving.queueing import Queue, Threads
from serving.quotas.contract import Quotas, Reservation
from serving.quotas.start import make_quotas
from serving.settings import ServingSettings
from serving.tokenization import Task

_TO_BE_TOLD_SECONDS = 1.0  # for the clients of streams, before the process ends


class Model(ModelServer, Protocol):
    """What answers: `serving.inference.ModelClient`, or a stand-in for measurements."""

    @property
    def predict(self) -> AskOne:
        """Probabilities, float32 [labels]."""
        ...

    @property
    def embed(self) -> AskMany:
        """Embeddings, float32 [inputs, dimension]."""
        ...

    @property
    def classify(self) -> AskMany:
        """Probabilities, float32 [inputs, labels]."""
        ...

    def close(self) -> None:
        """Let go of the model server."""
        ...


@dataclass(frozen=True)
class Services:
    """One process's parts."""

    settings: ServingSettings
    log: Later
    metrics: Metrics
    access: Access
    credit: Credit
    gatekeeper: Gatekeeper
    model: Model
    catalog: Catalog
    embedders: Mapping[str, Catalog]
    journal: Sink
    journal_lag: JournalLag
    meter: Meter
    quotas: Quotas
    idempotency: Idempotency
    engines: Mapping[str, EngineModel]
    holding: Holding
    threads: Threads
    queue: Queue
    spans: Spans | None
    under_way: set[Trace] = field(default_factory=set)  # requests that are not ended

    @property
    def catalogs(self) -> Mapping[str, Catalog]:
        """The models on the model server, by their names."""
        return {self.catalog.model: self.catalog, **self.embedders}

    def reserve(self, current: Trace, caller: Caller, model: str, most_tokens: int) -> Reservation:
        """Hold what the request may use; see `serving.quotas.contract.Quotas`, which counts it, too."""
        current.is_counted = True
        return self.quotas.reserve(caller, model, most_tokens)

    def cut_streams(self) -> None:
        """End the answers of engines that are under way, and account for them."""
        for engine in self.engines.values():
            engine.upstream.cut_all()
        time.sleep(_TO_BE_TOLD_SECONDS)
        for current in list(self.under_way):  # the server still waits for their clients to take something
            if current.stream is not None:
                current.stream.stop()

    def close(self) -> None:
        """Commit what waits, stop the threads, close the connections."""
        for catalog in self.catalogs.values():
            catalog.close()
        for engine in self.engines.values():
            engine.upstream.close()
        self.holding.close()
        self.quotas.close()
        self.idempotency.close()
        self.credit.close()
        self.access.close()
        self.journal.close()
        self.journal_lag.close()
        self.model.close()
        if self.spans is not None:
            self.spans.close()
        self.log.close()


def make_services(
    settings: ServingSettings, *, model: Model | None = None, journal: Sink | None = None
) -> Services:
    """The real parts, or those given. Starts threads: call it in the process that serves."""
    metrics = Metrics()
    if model is None:
        model = ModelClient(settings.model_server_address)
    if journal is None:
        journal = sink_of(settings, metrics)
    access = Access(settings.access_url, settings.access_poll_seconds, settings.access_stale_seconds)
    credit = Credit(settings)
    quotas = make_quotas(settings, access)
    metrics.watch(journal.waiting, journal.problem)
    metrics.watch_reserved(quotas.reserved_tokens)
    journal_lag = JournalLag(settings.ledger_url, settings.journal_dir)
    metrics.watch_lag(journal_lag.told)
    return Services(
        settings=settings,
        log=Later(),
        metrics=metrics,
        access=access,
        credit=credit,
        gatekeeper=Gatekeeper(settings, access.key, credit.check),
        model=model,
        catalog=_catalog(settings, model, settings.model, "classification"),
        embedders={name: _catalog(settings, model, name, "embedding") for name in settings.embedding_models},
        journal=journal,
        journal_lag=journal_lag,
        meter=Meter(settings, journal, metrics),
        quotas=quotas,
        idempotency=Idempotency(access, journal, settings.deadline_seconds),
        engines=load_engine_models(settings.engines_file, settings.own_models),
        holding=Holding(settings.quota_lease_seconds),
        threads=Threads(settings.threads),
        queue=Queue(settings, metrics),
        spans=None if settings.otlp_endpoint is None else Spans(settings.otlp_endpoint),
    )


def _catalog(settings: ServingSettings, server: ModelServer, model: str, task: Task) -> Catalog:
    return Catalog(
        server,
        settings.models_dir,
        model,
        settings.version_poll_seconds,
        settings.model_config_path,
        task,
    )
