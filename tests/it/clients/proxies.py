"""Reads configurations of proxies: the name of a file in, the file as JSON out.

What Envoy is configured with is read into its published messages, and refused where it does not fit them."""

import json
import sys

import yaml
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as manager
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf import json_format

for line in sys.stdin:
    path = line.strip()
    with open(path) as file:
        config = yaml.safe_load(file)
    if path.endswith("envoy.yaml"):
        config = json_format.ParseDict(config, bootstrap_pb2.Bootstrap())
    elif path.endswith("envoy-http.yaml"):
        config = json_format.ParseDict(config, manager.HttpFilter())
    if not isinstance(config, dict):
        config = json_format.MessageToDict(config, preserving_proto_field_name=True)
    print(json.dumps(config))
