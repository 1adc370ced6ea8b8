"""Which version of a model is in service, by the model config that `tallybook release` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]  # ships no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from training.errors import TrainingError

STABLE = "stable"


def stable_version(config_file: Path, model: str) -> int | None:
    """The version that carries the label `stable`; None: no file, or it has no such model or label.

    Raises: TrainingError: `config_invalid`.
    """
    config = _message()
    try:
        text_format.Parse(config_file.read_text("utf-8"), config, allow_unknown_field=True)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise TrainingError("config_invalid", f"{config_file} is not a model config: {error}") from error
    entries = (entry for entry in config.model_config_list.config if entry.name == model)
    labels = (label for entry in entries for label in entry.version_labels if label.key == STABLE)
    return next((int(label.value) for label in labels), None)


def _message() -> Any:
    """An empty ModelServerConfig of what is read of it: the image lacks TensorFlow Serving's own."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="released.proto", package="tallybook.released")

    def message(title: str, **fields: Any) -> None:
        made = file.message_type.add(name=title)
        for number, (field, (label, type_)) in enumerate(fields.items(), 1):
            of = {"type_name": type_} if isinstance(type_, str) else {"type": type_}
            made.field.add(name=field, number=number, label=label, **of)

    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    message("Label", key=(one, kind.TYPE_STRING), value=(one, kind.TYPE_INT64))
    message("Model", name=(one, kind.TYPE_STRING), version_labels=(many, "Label"))
    message("Models", config=(many, "Model"))
    message("Config", model_config_list=(one, "Models"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = pool.FindMessageTypeByName("tallybook.released.Config")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(config)()
    return message_factory.MessageFactory(pool).GetPrototype(config)()  # of TensorFlow 2.9
