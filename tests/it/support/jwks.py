"""Serves an issuer's keys over TLS, well and badly. Usage: jwks.py DIRECTORY; it writes its port into DIRECTORY/port."""
import http.server
import pathlib
import ssl
import sys
import time

directory = pathlib.Path(sys.argv[1])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(directory / "hits", "a") as hits:
            hits.write(self.path + "\n")
        if self.path == "/hang":
            time.sleep(60)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = (directory / "jwks.json").read_bytes()
        if self.path == "/large":
            body += b" " * (256 * 1024)
        if self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(1)
            return
        self.send_response(500 if self.path == "/error" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
port = directory / "port"
# Again on the same port, if it was there before.
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port.read_text()) if port.exists() else 0), Handler)
server.daemon_threads = True
server.socket = context.wrap_socket(server.socket, server_side=True)
(directory / "port.new").write_text(str(server.server_port))
(directory / "port.new").rename(directory / "port")
server.serve_forever()
