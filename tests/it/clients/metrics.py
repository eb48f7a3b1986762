"""Parses the Prometheus text format as its own client library does: one line in (JSON text), all samples out as JSON."""

import json
import sys

from prometheus_client.parser import text_string_to_metric_families

for line in sys.stdin:
    families = list(text_string_to_metric_families(json.loads(line)))
    samples = [[s.name, s.labels, s.value, f.type] for f in families for s in f.samples]
    print(json.dumps({"samples": samples, "help": {f.name: f.documentation for f in families}}))
