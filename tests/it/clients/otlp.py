"""Reads OTLP as the published messages have it: the name of a signal and a request in base64 in, the request as JSON out."""

import base64
import json
import sys

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS = {
    "logs": ExportLogsServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "traces": ExportTraceServiceRequest,
}


def unknown(message):
    """Whether anything in it is in no published message."""
    if len(UnknownFieldSet(message)):
        return True
    for field, value in message.ListFields():
        if field.message_type:
            values = [value] if isinstance(value, Message) else value
            if any(unknown(one) for one in values):
                return True
    return False


for line in sys.stdin:
    signal, body = line.split()
    request = REQUESTS[signal].FromString(base64.b64decode(body))
    assert not unknown(request), "a field that nobody knows"
    print(json.dumps(MessageToDict(request, preserving_proto_field_name=True)))
