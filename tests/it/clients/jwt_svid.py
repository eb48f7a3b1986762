"""A service that checks JWT-SVIDs with py-spiffe: the subject, or why it is not accepted.

    jwt_svid.py ISSUER TRUST_DOMAIN AUDIENCE    one token a line on standard input, one word a line on standard output
"""

import json
import sys
import urllib.request

from spiffe import JwtBundle, JwtSvid, TrustDomain
from spiffe.errors import PySpiffeError

issuer, domain, audience = sys.argv[1:]
with urllib.request.urlopen(f"{issuer}/spiffe/bundle", timeout=10) as answer:
    # A JWT bundle is the keys that are for JWT-SVIDs: authorities have no key id, and the library wants one of every key.
    keys = [key for key in json.load(answer)["keys"] if key["use"] == "jwt-svid"]
    bundle = JwtBundle.parse(TrustDomain(domain), json.dumps({"keys": keys}).encode())


def check(token):
    try:
        return str(JwtSvid.parse_and_validate(token, bundle, {audience}).spiffe_id)
    except PySpiffeError as error:
        return type(error).__name__


for line in sys.stdin:
    print(check(line.strip()))
