"""Several inputs for a model on the model server: counted with its own tokenizer, billed as one event."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from serving.catalog import Catalog, Choice
from serving.errors import (
    ContextTooLongError,
    InvalidValueError,
    ModelRejectedError,
    ModelTimeoutError,
    ModelVersionNotFoundError,
)
from serving.inference import AskMany, Rows
from serving.metering import Served
from serving.observability.trace import Trace
from serving.quotas.contract import Reservation
from serving.services import Services
from serving.tokenization import ModelVersion

_ROWS = 32  # of one call to the model server, whatever length they have

Inputs = Sequence[str | Sequence[int]]


class Operation(NamedTuple):
    """What is asked of the model server, and how it is told.

    `columns`: of a row, as the version's card has it; ApiError: the version can't do what was asked for.
    `body`: the answer, of the version, the rows and the tokens of all inputs.
    """

    name: str
    ask: AskMany
    columns: Callable[[ModelVersion], int]
    body: Callable[[ModelVersion, Rows, int], bytes]


def answer(
    services: Services, current: Trace, catalog: Catalog, operation: Operation, inputs: Inputs
) -> bytes:
    """The operation's answer, once its usage is recorded. Raises: ApiError: it costs nothing."""
    deadline = current.started + services.settings.deadline_seconds
    (version, label), tokens, rows, reservation = _ask(
        services, current, catalog, operation, inputs, deadline
    )
    try:
        body = operation.body(version, rows, tokens)
        services.meter.record(
            Served(
                request_id=current.request_id,
                caller=current.known_caller,
                operation=operation.name,
                version=version,
                model_label=label,
                text="\n".join(one if isinstance(one, str) else str(list(one)) for one in inputs),
                prompt_tokens=tokens,
                completion_tokens=0,
                started=current.started,
                trace_id=current.client_trace_id,
                deadline=deadline,
                attempt=current.attempt,
                answer=body,
            )
        )
    except BaseException:
        reservation.release()
        raise
    reservation.settle(tokens)
    current.operation, current.model = operation.name, version.model
    current.model_version = version.version_name
    current.prompt_tokens, current.completion_tokens = tokens, 0
    return body


def _ask(
    services: Services,
    current: Trace,
    catalog: Catalog,
    operation: Operation,
    inputs: Inputs,
    deadline: float,
) -> tuple[Choice, int, Rows, Reservation]:
    """Count with the tokenizer of the version that answers this user, and have it answer.

    A version that left in the meantime is followed by the one that answers now; all is counted anew.
    """
    caller = current.known_caller
    choice = catalog.choose(caller.user)
    while True:
        version = choice.version
        columns = operation.columns(version)
        ids = [_ids(version, one) for one in inputs]
        tokens = sum(map(len, ids))
        reservation = services.reserve(current, caller, version.model, tokens)
        try:
            with services.queue.place(caller, version.model, deadline):
                rows = _rows(services, current, version, operation, ids, columns, deadline)
                return choice, tokens, rows, reservation
        except ModelVersionNotFoundError:
            reservation.release()
            choice = catalog.instead_of(version, caller.user)
        except BaseException:
            reservation.release()
            raise


def _ids(version: ModelVersion, given: str | Sequence[int]) -> Sequence[int]:
    """What the model reads of an input; token ids are taken as they are."""
    ids = version.ids(given) if isinstance(given, str) else given
    if len(ids) > version.max_length_tokens:
        raise ContextTooLongError(
            f"An input has {len(ids)} tokens; {version.model} takes {version.max_length_tokens}."
        )
    if not ids or (version.task == "classification" and isinstance(given, str) and version.is_empty(ids)):
        raise InvalidValueError("input", "An input has nothing that the model can read.")
    if max(ids) >= version.vocabulary_size:
        raise InvalidValueError(
            "input", f"The model {version.model} has tokens up to {version.vocabulary_size - 1}."
        )
    return ids


def _rows(
    services: Services,
    current: Trace,
    version: ModelVersion,
    operation: Operation,
    ids: Sequence[Sequence[int]],
    columns: int,
    deadline: float,
) -> Rows:
    """One row for each input, in their order; those of about one length are asked together."""
    metadata = () if current.parent is None else tuple(current.passed_on().items())
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    rows = np.empty((len(ids), columns), np.float32)
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        started = time.monotonic()
        if started >= deadline:
            raise ModelTimeoutError("The request's time was up before the model had answered all of it.")
        services.metrics.model_in_flight.inc()
        try:
            found = operation.ask(
                version.model, version.version, [ids[one] for one in places], deadline - started, metadata
            )
        finally:
            services.metrics.model_in_flight.dec()
        services.metrics.model_seconds.observe(time.monotonic() - started)
        if found.shape[1] != columns:
            raise ModelRejectedError(f"The model's answer has not the {columns} columns of its card.")
        rows[places] = found
    return rows
