"""A service that checks access tokens with PyJWT as its manual says: issuer, audience, accepted or why not.

    access_token.py ISSUER AUDIENCE [ALGORITHM]     one token a line on standard input, one word a line on standard output
"""

import sys

import jwt

issuer, audience, *algorithms = sys.argv[1:]
keys = jwt.PyJWKClient(f"{issuer}/jwks", cache_keys=True)


def check(token):
    try:
        if jwt.get_unverified_header(token)["typ"] != "at+jwt":  # RFC 9068 section 4
            return "typ"
        key = keys.get_signing_key_from_jwt(token)
        claims = jwt.decode(
            token,
            key.key,
            algorithms=algorithms or ["ES256"],
            audience=audience,
            issuer=issuer,
            options={"require": ["exp", "iat", "nbf", "aud", "iss", "sub", "jti"], "strict_aud": True},
        )
    except jwt.PyJWTError as error:
        return type(error).__name__
    return f"{claims['scope']} for {claims['urn:remit:task']['id']}"


for line in sys.stdin:
    print(check(line.strip()))
