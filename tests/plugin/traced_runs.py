"""A fit; prints its spans if it is traced, else what it imported of OpenTelemetry."""

from __future__ import annotations

import json
import sys

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from bt_lightning import BTLightning


def fit(steps):
    saves = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BTLightning(sys.argv[1], store=sys.argv[2], job="j"), saves],
    ).fit(BoringModel())


if sys.argv[3] == "untraced":
    fit(2)
    print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]))
    sys.exit()

from opentelemetry import trace  # noqa: E402 - only where it is traced
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trace.get_tracer("script").start_as_current_span("training"):
    fit(4)
print(
    json.dumps(
        [
            {
                "name": span.name,
                "id": span.context.span_id,
                "parent": span.parent and span.parent.span_id,
                "began": span.start_time / 1e9,
                "ended": span.end_time / 1e9,
                "status": span.status.status_code.name,
                **span.attributes,
            }
            for span in exporter.get_finished_spans()
        ]
    )
)
