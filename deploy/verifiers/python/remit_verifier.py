"""Checks credentials of a Remit broker in memory, and learns of every revoke through the broker's feed.

    verifier = remit_verifier.follow("https://broker.example.com", "https://git.example.com")
    try:
        claims = verifier.check(token).claims           # there is no other way to them
    except remit_verifier.Denied as denied:
        ...                                             # 503 for "stale" and "gap", else 401

One file to copy: Python 3.10 or newer and PyJWT[crypto]. `Verifier` is the rules, with time as a parameter; `Follower` brings it what
the broker says. Whatever goes wrong ends in a denial.
"""

import base64
import collections
import dataclasses
import hashlib
import json
import logging
import math
import random
import re
import secrets
import threading
import time
import urllib.parse
import urllib.request

import jwt

STATE = "remit-revocations+jwt"  # the types of what is signed, each with keys of its own
ACCESS_TOKEN, SVID = "at+jwt", "JWT"

JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
TASK = re.compile(r"task_[0-7][0-9a-hjkmnp-tv-z]{25}(-[0-9a-z]{10}){0,8}")
FORMS = {"task": TASK, "lease": re.compile(r"[0-9a-f]{32}|01[0-9a-f]{38}"), "key": re.compile(r".+")}
LOCK = re.compile(r"lock_[0-7][0-9a-hjkmnp-tv-z]{25}")
BROKER = re.compile(r"[0-9A-Za-z_-]{1,64}")
WORKLOADS = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*(/\*)?")
MEMBERS = {"iss", "broker", "iat", "exp", "generation", "sequence", "previous", "nonce", "entries"}
MATCHES = {"workload", "owner", "sandbox", "attestor", "issuer", "all"}

SKEW = 5_000  # milliseconds by which `nbf` and `iat` of a token may be ahead
OFFSET = 1_000  # by which the broker's clock may differ from ours
LINGER = 60_000  # for which an entry is kept after its end

Clocks = collections.namedtuple("Clocks", "wall mono")  # both in milliseconds; the second never jumps, and counts from anywhere


class Denied(Exception):
    """No. `reason` is one of invalid, gap, stale, generation, revoked, locked. For logs: tell a caller no more than yes or no."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


class Malformed(Exception):
    """It is the broker's, and can't be read whole: what it says may be a revoke."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """A credential that was checked, and is good now. Check it again at the next request."""

    claims: dict


@dataclasses.dataclass
class Entry:
    until: int
    gone: int  # by the monotonic clock
    lock: dict | None = None


# Reading. Nothing is skipped that is not understood.


def need(condition):
    if not condition:
        raise Malformed


def text(value, form=None):
    need(isinstance(value, str) and (form is None or form.fullmatch(value)))
    return value


def count(value):
    need(type(value) is int and 0 <= value < 2**53)
    return value


def milliseconds(value):
    need(type(value) in (int, float) and 0 <= value < 2**53 / 1000)  # neither infinite nor not a number
    return round(value * 1000)


def parsed(octets):
    def refuse(_):
        raise ValueError

    try:
        value = json.loads(octets, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Malformed from None
    need(isinstance(value, dict))
    return value


def read_lock(lock, at, until):
    need(isinstance(lock, dict) and not lock.keys() - {"id", "match", "declared_after", "declared_before", "released"})
    text(lock.get("id"), LOCK)
    match = lock.get("match")
    need(isinstance(match, dict) and match and not match.keys() - MATCHES and lock.get("released", True) is True)
    for name, value in match.items():
        need(value is True if name == "all" else text(value, WORKLOADS if name == "workload" else None) is not None)
    return lock["id"], {
        "told": (at, until),
        "match": match,
        "after": milliseconds(lock.get("declared_after", 0)),
        "before": milliseconds(lock["declared_before"]) if "declared_before" in lock else None,
        "released": "released" in lock,
    }


def read_entry(entry, mono):
    need(isinstance(entry, dict))
    kinds = entry.keys() - {"at", "until"}
    need(len(kinds) == 1)
    (kind,) = kinds
    at, until = milliseconds(entry.get("at")), milliseconds(entry.get("until"))
    held = Entry(until, mono + until - at)
    if kind == "lock":
        name, held.lock = read_lock(entry["lock"], at, until)
    else:
        need(kind in FORMS)
        name = text(entry[kind], FORMS[kind])
    return (kind, name), held


class Verifier:
    """The rules. It denies everything until it has keys and a state, and does nothing by itself."""

    def __init__(self, issuer, audience):
        self.issuer, self.audience = issuer, audience
        self.keys, self.unknown_key = {}, False
        self.entries, self.locks = {}, {}  # by kind and id
        self.generation, self.broker, self.sequence = -1, None, -1  # of the state that is held
        self.highest = {}  # the highest sequence of each broker in this generation
        self.anchor = None  # (monotonic instant of a request, `iat` of the snapshot that answered it: no earlier instant)
        self.fresh_until = -math.inf  # by the monotonic clock
        self.window = 5_000  # for how long the last state is good
        self.gap, self.due = False, True  # something was missed; a snapshot is to be asked for
        self.witness = None  # shows a broker that has forgotten that it has
        self.mutex = threading.RLock()

    def set_keys(self, jwks, revocation_jwks, spiffe_bundle):
        """The answers of /jwks, /v1/revocations/jwks and /spiffe/bundle. One kind of key never serves for another."""
        keys = {}
        for typ, document, use, purpose in [
            (ACCESS_TOKEN, jwks, "sig", "access_token"),
            (STATE, revocation_jwks, "sig", "revocations"),
            (SVID, spiffe_bundle, "jwt-svid", None),
        ]:
            for jwk in document["keys"]:
                if jwk.get("use") == use and jwk.get("remit_purpose") == purpose:
                    algorithm = "RS256" if typ == ACCESS_TOKEN and jwk.get("kty") == "RSA" else "ES256"
                    keys[typ, jwk["kid"]] = jwt.PyJWK(jwk, algorithm)
        with self.mutex:
            self.keys = keys

    def _signed(self, jws, types):
        """Header and payload of what the broker signed, or None."""
        if not JWS.fullmatch(jws):
            return None
        try:
            header = jwt.get_unverified_header(jws)
            if header.keys() != {"alg", "kid", "typ"} or header["typ"] not in types:
                return None
            key = self.keys.get((header["typ"], header["kid"]))
            if key is None:
                self.unknown_key = True
                return None
            return header, jwt.PyJWS().decode(jws, key, algorithms=[key.algorithm_name])
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None

    # States

    def snapshot(self, jws, nonce, sent, now):
        """The answer to a request that was sent with this nonce at `sent`. False: ask again."""
        with self.mutex:
            self.due = True
            state = self._state(jws, now)
            if state is None or state["previous"] is not None or state["nonce"] != nonce:
                return False
            if not sent.wall - OFFSET <= state["iat"] <= now.wall + OFFSET:
                return False
            if state["generation"] < self.generation or state["sequence"] < self._highest(state):
                self.fresh_until = -math.inf  # it has forgotten what it told us
                return False
            self.anchor, self.fresh_until = (sent.mono, state["iat"]), -math.inf
            self.gap = self.due = False
            return self._take(jws, state, now)

    def push(self, jws, now):
        """What came in the stream. False: leave it and ask for a snapshot."""
        with self.mutex:
            state = None if self.due else self._state(jws, now)
            if state is None or state["iat"] > self._reckoned(now) + OFFSET:
                self.due = True
                return False
            if state["generation"] < self.generation:
                self.fresh_until, self.due = -math.inf, True
                return False
            if state["broker"] == self.broker and state["sequence"] < self._highest(state):
                return True  # old
            if state["broker"] != self.broker or not self._goes_on(state):
                self.gap = self.due = True
                return False
            return self._take(jws, state, now)

    def lost(self):
        """The stream ended. What is held is good for as long as it is fresh."""
        with self.mutex:
            self.due = True

    def _state(self, jws, now):
        """A state that the broker signed, or None. Notes a gap."""
        signed = self._signed(jws, [STATE])
        if signed is None or ("key", signed[0]["kid"]) in self.entries:
            return None
        try:
            claims = parsed(signed[1])
            if claims.get("iss") != self.issuer:
                return None
            state = {name: count(claims.get(name)) for name in ("generation", "sequence")}
            state |= {name: milliseconds(claims.get(name)) for name in ("iat", "exp")}
            state["broker"] = text(claims.get("broker"), BROKER)
            state["nonce"] = text(claims["nonce"]) if "nonce" in claims else None
            state["previous"] = count(claims["previous"]) if "previous" in claims else None
            need(isinstance(claims.get("entries"), list) and claims.keys() <= MEMBERS)
            state["entries"] = [read_entry(entry, now.mono) for entry in claims["entries"]]
            need(1_000 <= state["exp"] - state["iat"] <= 60_000)
            need(state["previous"] is None or state["previous"] <= state["sequence"])
        except Malformed:
            self.gap = True
            return None
        return state

    def _highest(self, state):
        """How far its broker had counted. With a new generation it may count anew."""
        return self.highest.get(state["broker"], 0) if state["generation"] == self.generation else 0

    def _goes_on(self, state):
        """Whether nothing is missing between what is held and a state. What it tells again does no harm."""
        previous, is_new = state["previous"], state["generation"] > self.generation
        return previous is None or previous == self.sequence or previous < self.sequence and not is_new

    def _take(self, jws, state, now):
        for name, new in state["entries"]:
            entries = self.locks if new.lock else self.entries
            held = entries.get(name)
            if held:  # kept for as long as either; a released lock stays released, and one is what was told of it last
                new.until, new.gone = max(new.until, held.until), max(new.gone, held.gone)
                if new.lock:
                    new.lock = max(new.lock, held.lock, key=lambda lock: (lock["released"], lock["told"]))
            entries[name] = new
        for entries in (self.entries, self.locks):
            for name in [n for n, e in entries.items() if now.wall > e.until + LINGER and now.mono >= e.gone]:
                del entries[name]
        if state["generation"] > self.generation:
            self.highest = {}
        self.generation, self.broker, self.sequence = (state[name] for name in ("generation", "broker", "sequence"))
        self.highest[self.broker] = self.sequence
        sent, iat = self.anchor
        self.window = state["exp"] - state["iat"]
        self.fresh_until = max(self.fresh_until, sent + state["exp"] - iat)
        if len(jws) <= 8192:
            self.witness = jws
        return True

    def _reckoned(self, now):
        """What the broker's clock says, or a little more; never less."""
        return self.anchor[1] + now.mono - self.anchor[0]

    # Credentials

    def check(self, token, now, certificate=None):
        """The claims of a token that is good now, which came as a bearer token or, where it is bound to a certificate, over a TLS
        connection whose client proved to have it; `certificate` is base64url(SHA-256(DER)). Raises Denied."""
        try:
            need(isinstance(token, str) and len(token) <= 16_384)
            signed = self._signed(token, [ACCESS_TOKEN, SVID])
            need(signed)
            with self.mutex:
                claims = self._claims(*signed, now, certificate)
                return self._accepted(claims, signed[0]["kid"], now)
        except Malformed:
            raise Denied("invalid") from None

    def _claims(self, header, payload, now, certificate):
        claims = parsed(payload)
        latest = max(now.wall, self._reckoned(now)) if self.anchor else now.wall
        need(claims.get("iss") == self.issuer and claims.get("aud") == self.audience)  # one string: a list is not equal to it
        need(latest < milliseconds(claims.get("exp")))
        need(max(milliseconds(claims.get("nbf")), milliseconds(claims.get("iat"))) <= latest + SKEW)
        for name in ("sub", "client_id", "jti", "scope"):
            text(claims.get(name))
        task = claims.get("urn:remit:task")
        need(isinstance(task, dict))
        text(task.get("id"), TASK), text(task.get("owner")), text(task.get("attestor"))
        count(task.get("generation")), milliseconds(task.get("declared_at"))
        need(header["typ"] == ACCESS_TOKEN or claims["sub"].endswith("/task/" + task["id"]))
        if "cnf" in claims:  # bound to a key (`jkt`): this verifier checks no proofs, and refuses it
            need(certificate is not None and claims["cnf"] == {"x5t#S256": certificate})
        return claims

    def _accepted(self, claims, kid, now):
        workloads = [claims["client_id"], claims["sub"].partition("/task/")[0]]
        actor = claims
        while "act" in actor:
            actor = actor["act"]
            need(isinstance(actor, dict) and len(workloads) < 32)
            workloads.append(text(actor.get("sub")))
        if self.gap:
            raise Denied("gap")
        if now.mono >= self.fresh_until:
            raise Denied("stale")
        task = claims["urn:remit:task"]
        if task["generation"] != self.generation:
            raise Denied("generation")
        hops = task["id"].split("-")
        lineage = [("task", "-".join(hops[:length])) for length in range(1, len(hops) + 1)]
        if any(name in self.entries for name in [*lineage, ("lease", claims["jti"]), ("key", kid)]):
            raise Denied("revoked")
        earliest = min(now.wall, self._reckoned(now))  # a clock that jumps ends no lock
        for entry in self.locks.values():
            if earliest < entry.lock["told"][1] and locks(entry.lock, task, workloads):
                raise Denied("locked")
        return Verified(claims)


def locks(lock, task, workloads):
    declared = milliseconds(task["declared_at"])
    if lock["released"] or declared < lock["after"] or (lock["before"] is not None and declared >= lock["before"]):
        return False
    for name, wanted in lock["match"].items():
        if name == "workload" and wanted.endswith("/*"):
            matches = any(workload.startswith(wanted[:-1]) for workload in workloads)
        elif name == "workload":
            matches = wanted in workloads
        else:
            matches = name == "all" or task.get("evidence_issuer" if name == "issuer" else name) == wanted
        if not matches:
            return False
    return True


# What the broker says, over HTTP

LIMIT = 1 << 26  # octets of an answer
LOG = logging.getLogger("remit")


class Follower:
    """A verifier that keeps up with the broker, in a thread of its own. It denies until the first snapshot, and whenever it lags."""

    def __init__(self, issuer, audience, bearer=None, context=None):
        """`bearer` is how the service authenticates, for whoever waits until all have heard of a revoke; `context` an
        `ssl.SSLContext`, where the broker's certificate is none that the system trusts."""
        url = urllib.parse.urlsplit(issuer)
        if url.scheme != "https" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("the issuer is no https URL: whoever is in between could say who signs")
        self.issuer, self.bearer = issuer, bearer
        self.opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), NoRedirects)
        self.verifier = Verifier(issuer, audience)
        self.stopped = threading.Event()
        threading.Thread(target=self._follow, name="remit-verifier", daemon=True).start()

    def check(self, token, certificate=None):
        """As Verifier.check, now."""
        return self.verifier.check(token, clocks(), certificate)

    def stop(self):
        """It learns of nothing any more, and so denies within the window."""
        self.stopped.set()

    def _follow(self):
        pause = 0.1
        while not self.stopped.is_set():
            begun = time.monotonic()
            try:
                self._fetch_keys()
                self._snapshot()
                self._stream()
            except Exception as error:  # whatever it is: until the next snapshot it denies, and it goes on
                LOG.warning("the feed of %s: %r", self.issuer, error)
            self.verifier.lost()
            # Not all verifiers at once after a restart of the broker, and none in a tight loop.
            pause = 0.1 if time.monotonic() - begun > 10 else min(2 * pause, 5)
            self.stopped.wait(random.uniform(0, pause))

    def _snapshot(self):
        verifier, nonce = self.verifier, secrets.token_urlsafe(16)
        witness = {"Remit-Last-State": verifier.witness} if verifier.witness else {}
        sent = clocks()
        state = self._get(f"/v1/revocations?nonce={nonce}", **witness).decode("ascii")
        if not verifier.snapshot(state, nonce, sent, clocks()):
            raise ValueError("a snapshot was refused")
        self._acknowledge()

    def _stream(self):
        """What follows the snapshot, until the stream ends or something is missed."""
        verifier = self.verifier
        held, event, data = (verifier.broker, verifier.sequence), "", ""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "%s:%d" % held}
        # A stream that was silent for a whole window has made us stale already.
        with self._open("/v1/revocations", timeout=verifier.window / 1000, **headers) as stream:
            while not self.stopped.is_set() and (line := stream.readline(LIMIT)):
                name, _, value = line.decode("ascii").rstrip("\r\n").partition(":")
                if name == "event":
                    event = value.strip()
                elif name == "data":
                    data = value.strip()
                elif not name and not value:
                    if event == "state" and not verifier.push(data, clocks()):
                        raise ValueError("a state was missed or refused")
                    if held != (held := (verifier.broker, verifier.sequence)):
                        self._acknowledge()
                    self._refresh_keys()
                    event, data = "", ""

    def _fetch_keys(self):
        self.keys_at, self.verifier.unknown_key = time.monotonic(), False
        self.verifier.set_keys(*(json.loads(self._get(path)) for path in ("/jwks", "/v1/revocations/jwks", "/spiffe/bundle")))

    def _refresh_keys(self):
        """Every minute, and soon after something came with a key that is unknown. Without an answer the old ones serve."""
        if time.monotonic() - self.keys_at > (5 if self.verifier.unknown_key else 60):
            try:
                self._fetch_keys()
            except Exception as error:
                LOG.warning("the keys of %s: %s", self.issuer, error)

    def _acknowledge(self):
        if self.bearer is not None:
            body = json.dumps({"broker": self.verifier.broker, "sequence": self.verifier.sequence}).encode()
            try:
                self._open("/v1/revocations/ack", body, **{"Content-Type": "application/json"}).close()
            except Exception as error:
                LOG.warning("not acknowledged at %s: %s", self.issuer, error)

    def _get(self, path, **headers):
        with self._open(path, **headers) as answer:
            octets = answer.read(LIMIT + 1)
        if len(octets) > LIMIT:
            raise ValueError("an answer is too long")
        return octets

    def _open(self, path, body=None, timeout=2, **headers):
        if self.bearer is not None:
            headers["Authorization"] = f"Bearer {self.bearer}"
        return self.opener.open(urllib.request.Request(self.issuer + path, body, headers), timeout=timeout)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Who else would say which keys sign, and be shown the bearer token?"""

    def redirect_request(self, *_):
        return None


def follow(issuer, audience, **more):
    """A verifier that keeps up with the broker `issuer`, for the service that is `audience`."""
    return Follower(issuer, audience, **more)


def clocks():
    if hasattr(time, "CLOCK_BOOTTIME"):  # goes on while the machine sleeps
        return Clocks(time.time_ns() // 1_000_000, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)
    return Clocks(time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000)


def thumbprint(certificate):
    """What a token that is bound to a certificate (DER) says of it."""
    return base64.urlsafe_b64encode(hashlib.sha256(certificate).digest()).rstrip(b"=").decode()
