"""A broker that can lie, forget and fall silent, and a verifier that follows it: what the vectors cannot show, because it is HTTP.

    live_verifier.py COMMAND…       the command is given an issuer and an audience; it reads tokens and answers `accept …` or why not
"""

import http.server
import importlib.util
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True
path = pathlib.Path(__file__).parents[3] / "deploy/vectors/generate.py"
spec = importlib.util.spec_from_file_location("vectors", path)
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)

WINDOW, BEARER = 3_000, "of-the-service"
NEW_KEY = made.P256("a key that comes later", use="sig", alg="ES256", remit_purpose="access_token")
DEAD = [f"task_01k9zv8m4n6p2q3r5s7t9vwx{at:02}" for at in range(8)]


def now():
    return time.time_ns() // 1_000_000


class Broker(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server_address[1]}"
        self.held = made.Broker(window=WINDOW)
        self.jwks = list(made.KEYS["jwks"]["keys"])
        self.up, self.signs_with = True, made.STATES
        self.streams, self.nonces, self.resumed, self.witnesses, self.acknowledged, self.callers = [], [], [], [], [], set()
        self.mutex = threading.RLock()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        threading.Thread(target=self.beat, daemon=True).start()

    def sign(self, entries, **more):
        state = {**self.held.state(now(), entries, **more), "iss": self.issuer}
        return made.jws(self.signs_with, "remit-revocations+jwt", state)

    def beat(self):
        while True:
            time.sleep(WINDOW / 3_000)
            self.push()

    def push(self, *entries, told=True):
        with self.mutex:
            previous = self.held.sequence
            self.held.sequence += len(entries)
            self.held.entries += entries
            event = f"event: state\nid: a:{self.held.sequence}\ndata: {self.sign(list(entries), previous=previous)}\n\n"
            for stream in self.streams if told else []:
                stream.put(event)

    def revoke(self, task, **how):
        self.push(made.entry(task=task, at=now(), until=now() + 60_000), **how)

    def drop(self):
        with self.mutex:
            for stream in self.streams:
                stream.put(None)
            self.streams = []


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body=b"", content_type="application/json", **headers):
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        broker, url = self.server, urllib.parse.urlsplit(self.path)
        documents = {"/jwks": {"keys": broker.jwks}, "/v1/revocations/jwks": made.KEYS["revocation_jwks"], "/spiffe/bundle": made.KEYS["spiffe_bundle"]}
        broker.callers.add(self.headers["authorization"])
        if not broker.up:
            self.answer(503)
        elif url.path in documents:
            self.answer(200, json.dumps(documents[url.path]).encode())
        elif url.path != "/v1/revocations":
            self.answer(404)
        elif "text/event-stream" in self.headers.get("accept", ""):
            self.stream()
        else:
            with broker.mutex:
                (nonce,) = urllib.parse.parse_qs(url.query)["nonce"]
                broker.nonces.append(nonce)
                broker.witnesses.append(self.headers["remit-last-state"])
                state = broker.sign(broker.held.entries, nonce=nonce)
            self.answer(200, state.encode(), "application/remit-revocations+jwt")

    def stream(self):
        broker, events = self.server, queue.Queue()
        with broker.mutex:
            resumed = self.headers["last-event-id"]
            broker.resumed.append(resumed)
            previous = int(resumed.removeprefix("a:"))
            changed = broker.held.entries[len(broker.held.entries) - (broker.held.sequence - previous) :] if previous < broker.held.sequence else []
            events.put(f": hello\n\nevent: state\nid: a:{broker.held.sequence}\ndata: {broker.sign(changed, previous=previous)}\n\n")
            broker.streams.append(events)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        try:
            while (event := events.get()) is not None:
                self.wfile.write(event.encode())
                self.wfile.flush()
        except OSError:
            pass

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/revocations/ack" and self.headers["authorization"] == f"Bearer {BEARER}":
            self.server.acknowledged.append((said["broker"], said["sequence"]))
        self.answer(204)

    def log_message(self, *_):
        pass


broker = Broker()
verifier = subprocess.Popen(
    [*sys.argv[1:], broker.issuer, made.AUDIENCE],
    env={**os.environ, "REMIT_BEARER": BEARER, "no_proxy": "*"},
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)


def token(task=made.ROOT, **changed):
    begun = now() // 1000
    return made.token(task, iss=broker.issuer, iat=begun, nbf=begun, exp=begun + 600, **changed)


def ask(presented):
    verifier.stdin.write(presented + "\n")
    verifier.stdin.flush()
    answer = verifier.stdout.readline().split()
    assert answer, "the verifier ended"
    return answer[0]


def becomes(expected, presented, over, within=20.0):
    """The answer becomes what is expected, and is nothing before but what is in `over`. Seconds it took."""
    begun = time.monotonic()
    while (answer := ask(presented)) != expected:
        assert answer in over, f"{answer}, where {expected} or {over} was expected"
        assert time.monotonic() - begun < within, f"{answer} and not {expected}"
        time.sleep(0.02)
    return time.monotonic() - begun


def stays(expected, presented, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert (answer := ask(presented)) == expected, f"{answer} and not {expected}"
        time.sleep(0.05)


def told(what):
    print(what, flush=True)


alive = token()
becomes("accept", alive, ["invalid", "stale"])
stays("accept", alive, 2 * WINDOW / 1000)
assert len(broker.nonces) == 1 and broker.resumed == ["a:40"] and broker.witnesses == [None], "one snapshot, then the stream"
told("it follows, and stays fresh by the stream alone")

dead = token(DEAD[0])
broker.revoke(DEAD[0])
told(f"a revoke arrives in {becomes('revoked', dead, ['accept'], WINDOW / 1000) * 1000:.0f} ms")
stays("accept", alive, 0.1)
assert ("a", 41) in broker.acknowledged and broker.callers == {f"Bearer {BEARER}"}, broker.acknowledged
told("and is acknowledged by who it says")

broker.revoke(DEAD[1], told=False)
becomes("revoked", token(DEAD[1]), ["accept", "gap"])
assert ask(alive) == "accept"
assert len(broker.nonces) == 2 and broker.witnesses[-1], "a new snapshot, and the last state was shown"
told("what was not told is found missing, and fetched")

broker.drop()
broker.revoke(DEAD[2])
becomes("revoked", token(DEAD[2]), ["accept"])
stays("accept", alive, 0.5)
told("a lost connection is made again")

snapshots = len(broker.nonces)
broker.signs_with = made.FOREIGN_SAME_KID
broker.revoke(DEAD[3])
becomes("stale", alive, ["accept"], 2 * WINDOW / 1000)
broker.signs_with = made.STATES
becomes("accept", alive, ["stale"])
assert ask(token(DEAD[3])) == "revoked"
assert len(broker.nonces) > snapshots + 1, "it asked again"
told("nobody else is believed")

broker.up = False
broker.drop()
becomes("stale", alive, ["accept"], 2 * WINDOW / 1000)
broker.revoke(DEAD[4])
broker.up = True
becomes("accept", alive, ["stale"])
assert ask(token(DEAD[4])) == "revoked"
told("a broker that is away makes it stale, and it comes back")

late = token(key=NEW_KEY)
assert ask(late) == "invalid"
broker.jwks.append(NEW_KEY.jwk)
becomes("accept", late, ["invalid"])
told("a new key is found")

with broker.mutex:
    broker.held.sequence, broker.held.entries = 3, []
    broker.drop()
becomes("stale", alive, ["accept"], 2 * WINDOW / 1000)
stays("stale", alive, 1)
assert broker.witnesses[-1], "the broker is shown what it has forgotten"
with broker.mutex:
    broker.held.generation += 1
newer = {"task_": {"generation": broker.held.generation}}
becomes("generation", alive, ["stale"])
assert ask(token(**newer)) == "accept"
assert ask(token(DEAD[0], **newer)) == "revoked"
told("a broker that has forgotten is not believed before a new generation, and what is dead stays dead")

assert len(set(broker.nonces)) == len(broker.nonces) and all(len(nonce) >= 22 for nonce in broker.nonces)
verifier.stdin.close()
assert verifier.wait(10) == 0, "it ends well"
