"""A receiver of Shared Signals, and a webhook: checks what it is told with PyJWT and the keys that the metadata name, and writes it
down. Usage: receiver.py DIRECTORY AUDIENCE; it writes its port into DIRECTORY/port, and answers as DIRECTORY/answer.json says; by TLS, where DIRECTORY/cert.pem is."""
import http.server
import json
import pathlib
import ssl
import sys
import threading
import time
import urllib.request

import jwt

directory, audience = pathlib.Path(sys.argv[1]), sys.argv[2]
lock = threading.Lock()


def verified(token):
    issuer = (directory / "issuer").read_text()
    with urllib.request.urlopen(issuer + "/.well-known/ssf-configuration") as answer:
        metadata = json.load(answer)
    assert metadata["issuer"] == issuer and metadata["spec_version"] == "1_0", metadata
    key = jwt.PyJWKClient(metadata["jwks_uri"]).get_signing_key_from_jwt(token)
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "secevent+jwt", header
    claims = jwt.decode(token, key.key, algorithms=[header["alg"]], audience=audience, issuer=issuer,
                        options={"require": ["iss", "aud", "iat", "jti"]})
    return header, claims


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        token = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        answer = json.loads((directory / "answer.json").read_text())
        said = {"path": self.path, "answered": answer["status"],
                "headers": {name.lower(): value for name, value in self.headers.items()}}
        try:
            said["header"], said["claims"] = verified(token)
        except Exception as why:
            said["invalid"] = repr(why)
        with lock, open(directory / "heard", "a") as heard:
            heard.write(json.dumps(said) + "\n")
        time.sleep(answer.get("delay", 0))
        body = json.dumps(answer.get("body", {})).encode() if answer["status"] == 400 else b""
        self.send_response(answer["status"])
        for name, value in answer.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


port = directory / "port"
# Again on the same port, if it was there before.
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port.read_text()) if port.exists() else 0), Handler)
server.daemon_threads = True
if (directory / "cert.pem").exists():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
(directory / "port.new").write_text(str(server.server_port))
(directory / "port.new").rename(directory / "port")
server.serve_forever()
