"""Asks like Envoy, with code that was made from its published .proto files: requests in (JSON), what becomes of them out.

A request is the JSON form of `CheckRequest`; what comes out is that of `CheckResponse`, or the status of a call that failed."""

import json
import sys

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.protobuf import json_format

# Over TCP, as it is asked in this test; Envoy keeps one connection too.
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
stub = external_auth_pb2_grpc.AuthorizationStub(channel)
for line in sys.stdin:
    request = json_format.Parse(line, external_auth_pb2.CheckRequest())
    try:
        response = stub.Check(request, timeout=10, wait_for_ready=True)
        said = json_format.MessageToDict(response, preserving_proto_field_name=True)
    except grpc.RpcError as error:
        said = {"failed": error.code().name}
    print(json.dumps(said))
