"""TensorFlow Serving's gRPC services: PredictionService and ModelService."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from serving.model_server.config import read_configs
from serving.model_server.counters import Counters
from serving.model_server.errors import InvalidRequestError, ModelServerError, one_line
from serving.model_server.inference import Client, Inference
from serving.model_server.manager import ModelManager
from serving.protos import (
    Message,
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

log = logging.getLogger(__name__)

_LONGEST_RELOAD_SECONDS = 600.0  # of a client that sets no deadline

Method = Callable[[Any, grpc.ServicerContext], Any]


class Services:
    """The methods of both services."""

    def __init__(self, inference: Inference, manager: ModelManager, counters: Counters) -> None:
        self._inference = inference
        self._manager = manager
        self._counters = counters

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """What a gRPC server needs to route to these methods; it answers UNIMPLEMENTED to all others."""
        core = self._inference
        return (
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.PredictionService",
                {
                    "Predict": self._counted("Predict", core.predict, predict_pb2.PredictRequest),
                    "Classify": self._counted(
                        "Classify", core.classify, classification_pb2.ClassificationRequest
                    ),
                    "Regress": self._counted("Regress", core.regress, regression_pb2.RegressionRequest),
                    "MultiInference": self._counted(
                        "MultiInference", core.multi_inference, inference_pb2.MultiInferenceRequest
                    ),
                    "GetModelMetadata": _handler(
                        lambda request, _: core.metadata(request),
                        get_model_metadata_pb2.GetModelMetadataRequest,
                    ),
                },
            ),
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.ModelService",
                {
                    "GetModelStatus": _handler(
                        lambda request, _: core.status(request), get_model_status_pb2.GetModelStatusRequest
                    ),
                    "HandleReloadConfigRequest": _handler(
                        self.reload_config, model_management_pb2.ReloadConfigRequest
                    ),
                },
            ),
        )

    def reload_config(self, request: Message, context: grpc.ServicerContext) -> Message:
        """Serve what this config lists, and nothing else; returns when models that are new can answer."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidRequestError(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        remaining = context.time_remaining()
        seconds = _LONGEST_RELOAD_SECONDS if remaining is None else remaining
        self._manager.reload(read_configs(request.config), seconds)
        log.info(
            "serving a new config: %s", ", ".join(e.name for e in request.config.model_config_list.config)
        )
        answer = model_management_pb2.ReloadConfigResponse()
        answer.status.SetInParent()
        return answer

    def _counted(
        self, api: str, method: Callable[[Message, Client], Message], request_type: Any
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def answer(request: Message, context: grpc.ServicerContext) -> Message:
            with self._counters.counting(api, "GRPC", model_of(request), self._inference.knows):
                return method(request, _client(context))

        return _handler(answer, request_type)


def model_of(request: Message) -> str:
    """The name of the model that a request is for."""
    tasks = getattr(request, "tasks", None)
    spec = tasks[0].model_spec if tasks else getattr(request, "model_spec", None)
    return str(spec.name) if spec is not None else ""


def _client(context: grpc.ServicerContext) -> Client:
    remaining = context.time_remaining()
    deadline = float("inf") if remaining is None else time.monotonic() + remaining
    return Client(deadline, context.add_callback)


def _handler(method: Method, request_type: Any) -> grpc.RpcMethodHandler[Any, Any]:
    def answer(request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return method(request, context)
        except ModelServerError as error:
            context.abort(error.status, str(error))
        except Exception as error:
            log.exception("a request failed")
            context.abort(grpc.StatusCode.INTERNAL, one_line(f"{type(error).__name__}: {error}"))

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_type.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
