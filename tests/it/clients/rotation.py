"""A verifier that keeps the keys exactly as long as it was told it may, and looks for no key in between. Checks every token with
PyJWT as soon as it gets it, and once more just before it expires.

    rotation.py ISSUER AUDIENCE PATH     one token a line on standard input; at the end one object on standard output

PATH is `/jwks` or `/spiffe/bundle`.
"""

import heapq
import json
import re
import select
import sys
import time
import urllib.request

import jwt

issuer, audience, path = sys.argv[1:]
KEEP_AWAY = 0.5  # Seconds before `exp`: what comes later is a race with the clock, not with a rotation.


class Keys:
    fresh_until = 0.0

    def get(self, kid):
        if time.monotonic() >= self.fresh_until:
            asked = time.monotonic()
            with urllib.request.urlopen(issuer + path) as answer:
                age = re.search(r"max-age=(\d+)", answer.headers["cache-control"])
                self.keys = {key["kid"]: jwt.PyJWK(key, "ES256") for key in json.load(answer)["keys"] if "kid" in key}
            # From when the answer came: as late as a cache may think.
            self.fresh_until = max(asked, time.monotonic()) + int(age.group(1))
        return self.keys.get(kid)


keys, verified, kids, failed, waiting = Keys(), 0, set(), [], []


def check(token, when):
    global verified
    kid = jwt.get_unverified_header(token)["kid"]
    key = keys.get(kid)
    if key is None:
        failed.append(f"{when}: the key {kid} is unknown")
        return None
    try:
        claims = jwt.decode(token, key.key, algorithms=["ES256"], audience=audience, issuer=issuer)
    except jwt.PyJWTError as error:
        failed.append(f"{when}: {type(error).__name__}")
        return None
    kids.add(kid)
    verified += 1
    return claims["exp"]


more = True
while more or waiting:
    wait = max(0.0, waiting[0][0] - time.time()) if waiting else 1.0
    ready = select.select([sys.stdin.buffer], [], [], wait)[0] if more else time.sleep(wait)
    if ready:
        line = sys.stdin.buffer.raw.readline().decode().strip()
        if line:
            exp = check(line, "at once")
            if exp is not None:
                heapq.heappush(waiting, (exp - KEEP_AWAY, line))
        else:
            more = False
    while waiting and waiting[0][0] <= time.time():
        check(heapq.heappop(waiting)[1], "at the end")

print(json.dumps({"verified": verified, "kids": sorted(kids), "failed": failed}))
