"""An agent and the service that it calls, both with Authlib as its manual says: discovery, token exchange, a protected resource.

    oauth.py ISSUER AUDIENCE SERVICE_TOKEN    one JSON object a line on standard input, what came of it on standard output

An object with an `access_token` is used as the answer of a token endpoint, another is what a token exchange is asked for. The
service is called twice with every token: it goes by the broker's keys (RFC 9068), then by introspection (RFC 7662).
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2 import OAuth2Error, ResourceProtector
from authlib.oauth2.rfc7662 import IntrospectTokenValidator
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from joserfc.jwk import KeySet

issuer, audience, secret = sys.argv[1:]
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


def discover(session):
    metadata = {}
    for suffix in ("oauth-authorization-server", "openid-configuration"):
        answer = session.get(get_well_known_url(issuer, external=True, suffix=suffix), withhold_token=True)
        answer.raise_for_status()
        metadata = AuthorizationServerMetadata(answer.json())
        metadata.validate()
        assert metadata["issuer"] == issuer and EXCHANGE in metadata["grant_types_supported"]
    return metadata


agent = OAuth2Session(client_id="agent", default_timeout=10)
metadata = discover(agent)
agent.metadata.update(token_endpoint=metadata["token_endpoint"])
service = OAuth2Session(token={"access_token": secret, "token_type": "Bearer"}, default_timeout=10)


class ByKeys(JWTBearerTokenValidator):
    def get_jwks(self):
        return KeySet.import_key_set(service.get(metadata["jwks_uri"], withhold_token=True).json())


class ByAsking(IntrospectTokenValidator):
    def introspect_token(self, token_string):
        answer = service.introspect_token(
            metadata["introspection_endpoint"], token_string, "access_token", auth=service.token_auth
        )
        answer.raise_for_status()
        return answer.json()


protectors = {"/by-keys": ResourceProtector(), "/by-asking": ResourceProtector()}
protectors["/by-keys"].register_token_validator(ByKeys(issuer, audience))
protectors["/by-asking"].register_token_validator(ByAsking())


class Service(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            claims = protectors[self.path].validate_request(["read"], self)
            status, text = 200, claims["urn:remit:task"]["id"]
        except OAuth2Error as error:
            status, text = error.status_code, error.error
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()


def called(path):
    answer = agent.get(f"http://127.0.0.1:{server.server_port}{path}")
    return f"{answer.status_code} {answer.text}"


def run(line):
    asked = json.loads(line)
    try:
        if "access_token" in asked:
            agent.token = asked
        else:
            agent.fetch_token(grant_type=EXCHANGE, **asked)
        return {"answer": agent.token, "by_keys": called("/by-keys"), "by_asking": called("/by-asking")}
    except AuthlibBaseError as error:
        return {"class": type(error).__name__, "error": error.error, "description": error.description}


for line in sys.stdin:
    print(json.dumps(run(line)))
