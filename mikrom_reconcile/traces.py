"""Spans from a run to its actions, for OpenTelemetry if the extra `otel` is there and OTEL_* asks. They end no run."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mikrom_reconcile.times_and_sizes import BROKER

log = logging.getLogger(__name__)

_ASKED_BY = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: Any = None
_provider: Any = None


@contextmanager
def span(
    name: str, parent: Mapping[str, str] | None = None, **about: str | int
) -> Iterator[Callable[[str, str | None], None]]:
    """A span inside the open one, or that of a message's headers, with `about` it; it is told how it ended."""
    if _tracer is None:
        yield lambda *_: None
        return
    from opentelemetry import propagate, trace  # noqa: PLC0415 - only where it is used

    context = propagate.extract(parent) if parent else None
    attributes = {f"mikrom.{key}": value for key, value in about.items()}
    with _tracer.start_as_current_span(name, context=context, attributes=attributes) as recorded:

        def ended(result: str, error: str | None) -> None:
            recorded.set_attribute("mikrom.result", result)
            if error:
                recorded.set_status(trace.StatusCode.ERROR, error)

        yield ended


def carried() -> dict[str, str]:
    """Headers by which another process can go on with the span that is open here."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry import propagate  # noqa: PLC0415 - only where it is used

        propagate.inject(headers)
    return headers


def set_up(role: str) -> None:
    """Begin to record, if that is asked for. What is missing for it is a warning, never an end."""
    global _tracer, _provider
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if not any(os.environ.get(variable) for variable in _ASKED_BY) or exporter == "none":
        return
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - only who asks pays
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        name = os.environ.get("OTEL_SERVICE_NAME") or f"mikrom-{role}"
        # at its end it would wait for a silent collector longer than a supervisor waits for the worker
        provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    except (ImportError, ValueError) as error:
        remedy = "is the extra installed (mikrom-reconcile[otel])?"
        log.warning("no traces, though OTEL_* asks for them: %s; %s", error, remedy)
        return
    _tracer, _provider = provider.get_tracer("mikrom_reconcile"), provider


def flush() -> None:
    """Send what is left, for `BROKER.trace_flush_s` at most."""
    if _provider is not None:
        flushing = threading.Thread(target=_provider.force_flush, name="flush spans", daemon=True)
        flushing.start()
        flushing.join(BROKER.trace_flush_s)


def _exporter(name: str) -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415 - as above

    if name == "console":
        return ConsoleSpanExporter(formatter=lambda told: told.to_json(indent=None) + "\n")
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER={name} is not otlp, console or none")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OTLPSpanExporter()
