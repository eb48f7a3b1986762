"""Answers for every token on standard input: accept, or why not.

    python example.py ISSUER AUDIENCE       REMIT_BEARER: how the service authenticates, if it does
"""

import os
import sys

import remit_verifier

verifier = remit_verifier.follow(*sys.argv[1:], bearer=os.environ.get("REMIT_BEARER"))
for line in sys.stdin:
    try:
        print("accept", verifier.check(line.strip()).claims["urn:remit:task"]["id"], flush=True)
    except remit_verifier.Denied as denied:
        print(denied.reason, flush=True)
