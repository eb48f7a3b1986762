"""A service that reads status lists with PyJWT and Python's zlib, by the draft alone: valid, ended, or why that cannot be told.

    status_list.py ISSUER    one token a line on standard input, one word a line on standard output
"""

import base64
import sys
import urllib.error
import urllib.request
import zlib

import jwt

issuer = sys.argv[1]
keys = jwt.PyJWKClient(f"{issuer}/jwks", cache_keys=True)


def check(token):
    key = keys.get_signing_key_from_jwt(token)
    status = jwt.decode(token, key, algorithms=["ES256"], options={"verify_aud": False})["status"]["status_list"]
    request = urllib.request.Request(status["uri"], headers={"accept": "application/statuslist+jwt"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        if answer.headers["content-type"] != "application/statuslist+jwt":
            return "content-type"
        text = answer.read().decode("ascii")
    key = keys.get_signing_key_from_jwt(text)
    options = {"require": ["sub", "iat", "exp", "ttl", "status_list"]}
    decoded = jwt.decode_complete(text, key, algorithms=["ES256"], subject=status["uri"], options=options)
    if decoded["header"]["typ"] != "statuslist+jwt":
        return "typ"
    held = decoded["payload"]["status_list"]
    octets = zlib.decompress(base64.urlsafe_b64decode(held["lst"] + "=" * (-len(held["lst"]) % 4)))
    entry = octets[status["idx"] // 8] >> status["idx"] % 8 & 1
    return "ended" if entry else "valid"


for line in sys.stdin:
    try:
        print(check(line.strip()))
    except (jwt.PyJWTError, urllib.error.HTTPError) as error:
        print(type(error).__name__)
