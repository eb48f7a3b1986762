"""Writes the vectors beside it: what a verifier that follows the feed sees, and what it must answer. README.md says how to read them.

    python deploy/vectors/generate.py [DIRECTORY]       needs `cryptography` 44 or newer

The same files come out every time. The keys are made from words, so everybody has them: they sign nothing but this.
"""

import base64
import copy
import hashlib
import hmac
import json
import pathlib
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

ISSUER, AUDIENCE = "https://broker.example.com", "https://git.example.com"
START = 1_800_000_000_000  # the wall clock when a story begins, in milliseconds
MONOTONIC = 7_000_000  # the monotonic clock at that instant: it counts from elsewhere
DAY = 86_400_000


# Keys, and what is signed with them


def b64(octets):
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def thumbprint(jwk):
    text = json.dumps({name: jwk[name] for name in sorted(jwk)}, separators=(",", ":"))
    return b64(hashlib.sha256(text.encode()).digest())


class P256:
    alg = "ES256"

    def __init__(self, words, kid=None, **members):
        self.private = ec.derive_private_key(int.from_bytes(hashlib.sha256(words.encode()).digest(), "big"), ec.SECP256R1())
        point = self.private.public_key().public_numbers()
        x, y = (b64(value.to_bytes(32, "big")) for value in (point.x, point.y))
        jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        self.kid = kid or thumbprint(jwk)
        self.jwk = {**jwk, "kid": self.kid, **members}

    def sign(self, octets):
        der = self.private.sign(octets, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        return b"".join(half.to_bytes(32, "big") for half in utils.decode_dss_signature(der))


class Rsa2048:
    alg = "RS256"

    def __init__(self, words, **members):
        p, q, e = prime(words + " p"), prime(words + " q"), 65537
        d = pow(e, -1, (p - 1) * (q - 1))
        public = rsa.RSAPublicNumbers(e, p * q)
        self.private = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()
        jwk = {"kty": "RSA", "n": number(p * q), "e": number(e)}
        self.kid = thumbprint(jwk)
        self.jwk = {**jwk, "kid": self.kid, **members}

    def sign(self, octets):
        return self.private.sign(octets, padding.PKCS1v15(), hashes.SHA256())


def prime(words):
    digests = b"".join(hashlib.sha256(f"{words} {at}".encode()).digest() for at in range(4))
    candidate = int.from_bytes(digests, "big") | 3 << 1022 | 1
    while any(candidate % small == 0 for small in (3, 5, 7, 11, 13)) or pow(2, candidate - 1, candidate) != 1:
        candidate += 2
    return candidate


class Secret:
    """What a forger has who takes a public key for a shared secret."""

    alg = "HS256"

    def __init__(self, secret, kid):
        self.secret, self.kid = secret, kid

    def sign(self, octets):
        return hmac.digest(self.secret, octets, "sha256")


class Nothing:
    alg = "none"

    def __init__(self, kid):
        self.kid = kid

    def sign(self, octets):
        return b""


def jws(key, typ, payload, **header):
    """`payload` is a dictionary, or JSON text where Python would not write it."""
    text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
    header = {name: value for name, value in {"alg": key.alg, "kid": key.kid, "typ": typ, **header}.items() if value is not None}
    signed = f"{b64(json.dumps(header, separators=(',', ':')).encode())}.{b64(text.encode())}"
    return f"{signed}.{b64(key.sign(signed.encode()))}"


ACCESS = P256("access", use="sig", alg="ES256", remit_purpose="access_token")
ACCESS_OLD = P256("access, of another broker", use="sig", alg="ES256", remit_purpose="access_token")
ACCESS_RSA = Rsa2048("access with RSA", use="sig", alg="RS256", remit_purpose="access_token")
STATUS_LIST = P256("status lists", use="sig", alg="ES256", remit_purpose="status_list")
SVID = P256("svid", use="jwt-svid")
STATES = P256("states of broker a", use="sig", alg="ES256", remit_purpose="revocations")
STATES_B = P256("states of broker b", use="sig", alg="ES256", remit_purpose="revocations")
FOREIGN = P256("somebody else")
FOREIGN_SAME_KID = P256("somebody else", kid=STATES.kid)
AUTHORITY = P256("authority of certificates", use="x509-svid")
KEYS = {
    "issuer": ISSUER,
    "audience": AUDIENCE,
    "jwks": {"keys": [key.jwk for key in (ACCESS, ACCESS_OLD, ACCESS_RSA, STATUS_LIST)]},
    "revocation_jwks": {"keys": [STATES.jwk, STATES_B.jwk]},
    "spiffe_bundle": {"spiffe_sequence": 1, "spiffe_refresh_hint": 300, "keys": [SVID.jwk, AUTHORITY.jwk]},
}


# Tokens

ROOT = "task_01k9zv8m4n6p2q3r5s7t9vwxyz"
CHILD = ROOT + "-0a1b2c3d4e"
GRANDCHILD = CHILD + "-zzzzzzzzz0"
SIBLING = ROOT + "-0a1b2c3d4f"  # differs from the child in the last character
OTHER = "task_01k9zv8m4n6p2q3r5s7t9vwxy0"
DEEPEST = ROOT + "".join(f"-{at:010}" for at in range(8))
WORKLOAD = "spiffe://example.com/ci/acme/payments"
OTHER_WORKLOAD = "spiffe://example.com/ci/acme/search"
THUMBPRINT, OTHER_THUMBPRINT = (b64(hashlib.sha256(name).digest()) for name in (b"a certificate", b"another one"))
GENERATION = 3
DECLARED = START // 1000 - 7200


def claims(task=ROOT, **changed):
    """The claims of an access token. What is None is left out; what is in `task_` goes into the task's own."""
    inner = {
        "id": task,
        "owner": "team-payments@example.com",
        "sandbox": "sb-7f3",
        "kind": "ci",
        "attestor": "ci",
        "evidence_issuer": "https://ci.example.com",
        "declared_at": DECLARED,
        "generation": GENERATION,
        "authority_hash": "sha-256:" + b64(hashlib.sha256(b"authority").digest()),
        "expires_at": (START + DAY) // 1000,
        **changed.pop("task_", {}),
    }
    outer = {
        "iss": ISSUER,
        "sub": WORKLOAD,
        "client_id": WORKLOAD,
        "aud": AUDIENCE,
        "exp": (START + DAY) // 1000,
        "iat": DECLARED + 1,
        "nbf": DECLARED + 1,
        "jti": "0123456789abcdef0123456789abcdef",
        "scope": "read",
        "authorization_details": [{"type": "remit:access", "locations": [AUDIENCE], "privileges": ["read"]}],
        "urn:remit:task": {name: value for name, value in inner.items() if value is not None},
        "status": {"status_list": {"idx": 7, "uri": ISSUER + "/status-lists/1"}},
        **changed,
    }
    return {name: value for name, value in outer.items() if value is not None}


def token(task=ROOT, *, key=ACCESS, typ="at+jwt", header=None, **changed):
    return jws(key, typ, claims(task, **changed), **(header or {}))


def svid(task=ROOT, *, workload=WORKLOAD, key=SVID, typ="JWT", **changed):
    return jws(key, typ, claims(task, sub=f"{workload}/task/{task}", client_id=workload, **changed))


# States


def seconds(milliseconds):
    return milliseconds // 1000 if milliseconds % 1000 == 0 else milliseconds / 1000


def entry(at=START - 1000, until=START + DAY, **what):
    return {**what, "at": seconds(at), "until": seconds(until)}


LOCK = "lock_01k9zv8m4n6p2q3r5s7t9vwxyz"
OTHER_LOCK = "lock_01k9zv8m4n6p2q3r5s7t9vwxy0"


def lock(until=START + DAY, id=LOCK, window=None, released=False, at=START - 1000, **match):
    what = {"id": id, "match": match, **(window or {}), **({"released": True} if released else {})}
    return entry(lock=what, at=at, until=until)


class Broker:
    """One that signs states: what it holds, and how far it has counted."""

    def __init__(self, name="a", key=STATES, sequence=40, generation=GENERATION, window=5000, entries=()):
        self.name, self.key, self.sequence, self.generation, self.window = name, key, sequence, generation, window
        self.entries = list(entries)

    def state(self, now, entries, **more):
        return {
            "iss": ISSUER,
            "broker": self.name,
            "iat": seconds(now),
            "exp": seconds(now + self.window),
            "generation": self.generation,
            "sequence": self.sequence,
            **more,
            "entries": entries,
        }


class Story:
    """One vector. `true` is how long it has lasted; the verifier's wall clock may be `off` by something else."""

    def __init__(self, name, window=5000, off=0, entries=()):
        self.name, self.true, self.off, self.steps = name, 0, off, []
        self.broker = Broker(window=window, entries=entries)
        self.asked = 0

    @property
    def now(self):
        """The broker's clock, which is right."""
        return START + self.true

    def step(self, **members):
        self.steps.append({"at_wall_ms": self.now + self.off, "at_mono_ms": MONOTONIC + self.true, **members})
        return self

    def wait(self, milliseconds):
        self.true += milliseconds
        return self

    def jump(self, milliseconds):
        """The verifier's wall clock alone."""
        self.off += milliseconds
        return self

    def signed(self, state, key=None, typ="remit-revocations+jwt", header=None):
        key = key or self.broker.key
        try:
            says = json.loads(state) if isinstance(state, str) else copy.deepcopy(state)
            json.dumps(says, allow_nan=False)
        except ValueError:
            says = state
        return jws(key, typ, state, **(header or {})), says

    def snapshot(self, then="follow", broker=None, took=40, nonce=None, said=None, age=None, change=None, **signing):
        """A snapshot that was asked for, and came `took` milliseconds later; its `iat` is halfway, or `age` before the request."""
        broker = broker or self.broker
        self.asked += 1
        asked = nonce or b64(hashlib.sha256(f"{self.name} {self.asked}".encode()).digest()[:16])
        sent = {"sent_wall_ms": self.now + self.off, "sent_mono_ms": MONOTONIC + self.true}
        made = self.now + took // 2 if age is None else self.now - age
        state = broker.state(made, broker.entries, **({} if said is False else {"nonce": said or asked}))
        state = change(state) if change else state
        signing.setdefault("key", broker.key)
        text, says = self.signed(state, **signing)
        return self.wait(took).step(snapshot=text, nonce=asked, **sent, then=then, says=says)

    def push(self, *entries, then="follow", broker=None, change=None, counts=None, **signing):
        """What changed; nothing is a heartbeat."""
        broker = broker or self.broker
        previous = broker.sequence
        broker.entries += entries
        broker.sequence += len(entries) if counts is None else counts
        state = broker.state(self.now, list(entries), previous=previous)
        state = change(state) if change else state
        signing.setdefault("key", broker.key)
        text, says = self.signed(state, **signing)
        return self.step(push=text, then=then, says=says)

    def unasked(self, then="follow", broker=None, **more):
        """A snapshot in the stream."""
        broker = broker or self.broker
        text, says = self.signed(broker.state(self.now, broker.entries, **more), key=broker.key)
        return self.step(push=text, then=then, says=says)

    def again(self, index, then="follow"):
        """The state of an earlier step, pushed once more."""
        earlier = self.steps[index]
        return self.step(push=earlier.get("push") or earlier["snapshot"], then=then, says=earlier["says"])

    def disconnect(self):
        return self.step(disconnect=True)

    def check(self, expect, presented=None, certificate=None):
        shown = {} if certificate is None else {"certificate": certificate}
        return self.step(check={"token": presented or token(), **shown, "expect": expect})


def changed(**members):
    """What alters a state; None takes a member away."""

    def change(state):
        return {name: value for name, value in {**state, **members}.items() if value is not None}

    return change


FILES = {}


def story(file, name, **arguments):
    made = Story(name, **arguments)
    FILES.setdefault(file, []).append(made)
    return made


# stale: how long a state is good for

s = story("stale", "nothing is accepted before the first state")
s.check("stale").snapshot().check("accept")

s = story("stale", "a state is good for its window, counted from the request, and not one millisecond longer")
s.snapshot().wait(4_959).check("accept").wait(1).check("stale").wait(60_000).check("stale")

s = story("stale", "the monotonic clock decides, and a wall clock that stands still does not help")
s.snapshot().wait(4_959).jump(-4_959).check("accept").wait(1).jump(-1).check("stale")

s = story("stale", "every heartbeat is good for another window")
s.snapshot()
for _ in range(4):
    s.wait(2_500).push().check("accept")
s.wait(4_900).check("accept").wait(200).check("stale")

s = story("stale", "a heartbeat that is late ends staleness, since nothing was missed")
s.snapshot().wait(9_000).check("stale").push().check("accept")

s = story("stale", "a window of a minute", window=60_000)
s.snapshot().wait(59_900).check("accept").wait(100).check("stale")

s = story("stale", "a slow answer is counted from when it was asked for")
s.snapshot(took=3_000).check("accept").wait(1_999).check("accept").wait(1).check("stale")

s = story("stale", "a broker in doubt tells what it knows and makes nothing fresh by it")
s.snapshot()
then = s.now - 20
s.wait(3_000).push(entry(task=OTHER), change=changed(iat=seconds(then), exp=seconds(then + 5_000)))
s.check("accept").check("revoked", token(OTHER)).wait(1_960).check("stale").check("stale", token(OTHER))

s = story("stale", "an older heartbeat does not shorten what a newer one gave")
s.snapshot().wait(2_000).push().wait(2_000).push()
s.push(change=changed(iat=seconds(s.now - 3_000), exp=seconds(s.now + 2_000)))
s.wait(4_900).check("accept").wait(100).check("stale")

s = story("stale", "who lost the connection accepts while its state is fresh, and then no more")
s.snapshot().wait(1_000).disconnect().check("accept").wait(3_900).check("accept").wait(100).check("stale")
s.snapshot().check("accept")

s = story("stale", "a snapshot that was asked for ends staleness")
s.snapshot().wait(20_000).check("stale").snapshot().check("accept").wait(4_959).check("accept").wait(1).check("stale")

# gap: nothing may be missed

s = story("gap", "a state that continues what is held is taken")
s.snapshot().wait(100).push(entry(task=OTHER), entry(task=SIBLING)).check("accept").check("revoked", token(OTHER))
s.wait(100).push().check("accept").check("revoked", token(SIBLING))

s = story("gap", "what was missed denies until a snapshot has brought it")
s.snapshot()
s.broker.entries.append(entry(task=OTHER))
s.broker.sequence += 1
s.wait(100).push(entry(task=SIBLING), then="snapshot").check("gap").check("gap", token(OTHER))
s.wait(100).snapshot().check("accept").check("revoked", token(OTHER)).check("revoked", token(SIBLING))

s = story("gap", "a heartbeat shows a gap too")
s.snapshot()
s.broker.sequence += 1
s.wait(100).push(then="snapshot").check("gap")

s = story("gap", "a state that continues what is still to come is a gap")
s.snapshot()
s.broker.sequence += 7
s.wait(100).push(entry(task=OTHER), then="snapshot").check("gap")

s = story("gap", "a state that tells again of what is held goes on from there")
s.snapshot().push(entry(task=OTHER)).push(entry(task=SIBLING), change=changed(previous=40)).check("accept")
s.check("revoked", token(OTHER)).check("revoked", token(SIBLING)).wait(100).push(entry(lease="0" * 32)).check("accept")

s = story("gap", "a state that tells again of all that is held, and of nothing else, makes it fresh")
s.snapshot().wait(100).push(entry(task=OTHER)).wait(4_000).push(change=changed(previous=40)).wait(4_000).check("accept").check("revoked", token(OTHER))

s = story("gap", "in a new generation brokers count anew, and what is told again is nothing that is held")
s.snapshot().push(entry(task=OTHER)).wait(100)
s.push(entry(task=SIBLING), change=changed(previous=39, generation=GENERATION + 1), then="snapshot").check("gap")

s = story("gap", "in a gap no stream heals, only a snapshot that was asked for")
s.snapshot()
s.broker.sequence += 1
s.wait(100).push(then="snapshot").wait(100).push(then="snapshot").check("gap")
s.unasked(then="snapshot").check("gap").snapshot().check("accept")

s = story("gap", "a gap does not go over into staleness")
s.snapshot()
s.broker.sequence += 1
s.wait(100).push(then="snapshot").wait(10_000).check("gap")

s = story("gap", "an answer for another request does not heal a gap")
s.snapshot()
s.broker.sequence += 1
s.wait(100).push(then="snapshot").snapshot(said="AAAAAAAAAAAAAAAAAAAAAA", then="snapshot").check("gap").snapshot().check("accept")

s = story("gap", "after the snapshot the stream begins with what changed since")
s.snapshot().disconnect().wait(50).snapshot().push(entry(task=OTHER), entry(lease="0" * 32), counts=2)
s.check("accept").check("revoked", token(OTHER))

s = story("gap", "after a loss of the connection the snapshot brings what was missed")
s.snapshot().disconnect()
s.broker.entries.append(entry(task=ROOT))
s.broker.sequence += 1
s.wait(1_000).check("accept").snapshot().check("revoked").check("accept", token(OTHER))

s = story("gap", "a snapshot in the stream is united with what is held")
s.snapshot().wait(100).push(entry(task=OTHER))
s.broker.entries = [entry(task=SIBLING)]
s.broker.sequence += 1
s.wait(3_000).unasked().check("revoked", token(OTHER)).check("revoked", token(SIBLING)).wait(4_000).check("accept")
s.push().check("accept")

s = story("gap", "another broker in the stream is a gap, and its snapshot is united with what is held")
b = Broker("b", STATES_B, sequence=7, entries=[entry(task=SIBLING)])
s.snapshot().wait(100).push(entry(task=OTHER)).push(broker=b, then="snapshot").check("gap")
s.snapshot(broker=b).check("accept").check("revoked", token(OTHER)).check("revoked", token(SIBLING))
s.wait(100).push(broker=b).check("accept").push(then="snapshot").check("gap")

s = story("gap", "a snapshot of another broker in the stream is a gap")
s.snapshot().unasked(broker=Broker("b", STATES_B, sequence=90), then="snapshot").check("gap")

s = story("gap", "an old state that comes again is passed over, and makes nothing fresh")
s.snapshot().wait(100).push(entry(task=OTHER)).wait(100).push(entry(task=SIBLING)).again(1).check("accept")
s.again(0).check("accept").check("revoked", token(OTHER)).check("revoked", token(SIBLING))
s.wait(2_000).push().wait(4_900).again(1).again(0).check("accept").wait(100).check("stale").again(1).check("stale")

# rollback: a broker never forgets

s = story("rollback", "a broker that counts from lower than before has forgotten, and its snapshot is refused")
s.snapshot().push(entry(task=OTHER))
s.broker.sequence, s.broker.entries = 40, []
s.wait(100).disconnect().snapshot(then="snapshot").check("stale").check("stale", token(OTHER))
s.snapshot(then="snapshot").check("stale")

s = story("rollback", "a broker that counts as far as before has not")
s.snapshot().push(entry(task=OTHER)).disconnect().snapshot().check("accept").check("revoked", token(OTHER))

s = story("rollback", "another broker is believed where one has forgotten")
s.snapshot().push(entry(task=OTHER))
s.broker.sequence, s.broker.entries = 40, []
s.disconnect().snapshot(then="snapshot").check("stale")
s.snapshot(broker=Broker("b", STATES_B, sequence=2)).check("accept").check("revoked", token(OTHER))

s = story("rollback", "how far a broker had counted is remembered while another one is followed")
s.snapshot().push(entry(task=OTHER)).disconnect().snapshot(broker=Broker("b", STATES_B, sequence=2)).check("accept")
s.broker.sequence = 40
s.disconnect().snapshot(then="snapshot").check("stale")

s = story("rollback", "with a new generation a broker may count anew, and what is held stays")
s.snapshot().push(entry(task=OTHER)).disconnect()
s.broker.sequence, s.broker.entries, s.broker.generation = 0, [], GENERATION + 1
s.snapshot().check("generation").check("accept", token(task_={"generation": GENERATION + 1}))
s.check("revoked", token(OTHER, task_={"generation": GENERATION + 1})).push().check("generation")

s = story("rollback", "with a new generation all brokers may count anew, whoever told of it")
s.snapshot().disconnect().snapshot(broker=Broker("b", STATES_B, sequence=2, generation=GENERATION + 1)).check("generation")
s.broker.sequence, s.broker.generation = 5, GENERATION + 1
s.disconnect().snapshot().check("generation").check("accept", token(task_={"generation": GENERATION + 1}))

s = story("rollback", "a lower generation in the stream denies at once")
s.snapshot().wait(100).push(then="snapshot", change=changed(generation=GENERATION - 1)).check("stale")
s.check("stale", token(task_={"generation": GENERATION - 1})).snapshot().check("accept")

s = story("rollback", "a lower generation in a snapshot denies at once, another broker's too")
old = Broker("b", STATES_B, sequence=90, generation=GENERATION - 1)
s.snapshot().disconnect().snapshot(broker=old, then="snapshot").check("stale")
s.snapshot(broker=old, then="snapshot").check("stale")
old.generation = GENERATION
s.snapshot(broker=old).check("accept")

# generation: when it goes up, everything older is dead

s = story("generation", "a token of an older or of a newer generation than the feed's is refused")
s.snapshot().check("accept").check("generation", token(task_={"generation": GENERATION - 1}))
s.check("generation", token(task_={"generation": GENERATION + 1}))

s = story("generation", "a new generation in the stream kills what is older")
s.snapshot().push(entry(task=OTHER)).check("accept")
s.broker.generation += 1
s.wait(100).push().check("generation").check("generation", token(OTHER))
s.check("accept", token(task_={"generation": GENERATION + 1})).check("revoked", token(OTHER, task_={"generation": GENERATION + 1}))

s = story("generation", "a new generation in a snapshot kills what is older")
s.snapshot().check("accept").disconnect()
s.broker.generation += 2
s.snapshot().check("generation").check("accept", token(task_={"generation": GENERATION + 2}))

s = story("generation", "a certificate's kin: a JWT-SVID carries it as well")
s.snapshot().check("accept", svid()).check("generation", svid(task_={"generation": GENERATION - 1}))

# signer: whom a state is believed from. A state that nobody proved to be the broker's changes nothing but the connection.

FORGED = [
    ("of somebody else with a key id of his own", {"key": FOREIGN}),
    ("of somebody else under the key id of the broker", {"key": FOREIGN_SAME_KID}),
    ("signed with a key of access tokens", {"key": ACCESS}),
    ("signed with the key of status lists", {"key": STATUS_LIST}),
    ("signed with the key of JWT-SVIDs", {"key": SVID}),
    ("with the type of an access token", {"typ": "at+jwt"}),
    ("with the type of an access token and signed as one", {"key": ACCESS, "typ": "at+jwt"}),
    ("with the type of a status list", {"typ": "statuslist+jwt"}),
    ("with the plain type of a JWT", {"typ": "JWT"}),
    ("with its type in capitals", {"typ": "REMIT-REVOCATIONS+JWT"}),
    ("with the long form of its type", {"typ": "application/remit-revocations+jwt"}),
    ("without a type", {"typ": None}),
    ("without a key id", {"header": {"kid": None}}),
    ("that is not signed", {"key": Nothing(STATES.kid)}),
    ("signed with the public key as a secret", {"key": Secret(base64.urlsafe_b64decode(STATES.jwk["x"] + "="), STATES.kid)}),
    ("that says RS256 with the broker's key", {"header": {"alg": "RS256"}}),
    ("with an extension in its header", {"header": {"crit": ["exp"]}}),
    ("with a member in its header that the broker's have not", {"header": {"cty": "JWT"}}),
    ("with a key in its header", {"key": FOREIGN, "header": {"jwk": FOREIGN.jwk}}),
    ("of another issuer", {"change": changed(iss="https://other.example.com")}),
    ("of an issuer that differs in a slash", {"change": changed(iss=ISSUER + "/")}),
    ("without an issuer", {"change": changed(iss=None)}),
]
for name, how in FORGED:
    s = story("signer", f"a state {name} is not believed")
    s.snapshot(then="snapshot", **how).check("stale").snapshot().check("accept")
    s.wait(4_000).push(then="snapshot", counts=0, **how).check("accept").wait(960).check("stale")
    s.snapshot().check("accept").disconnect().wait(1_000).snapshot(then="snapshot", **how).check("accept")

s = story("signer", "a broker's state is believed, and another's of the same key set")
s.snapshot().check("accept").disconnect().snapshot(broker=Broker("b", STATES_B)).check("accept")

s = story("signer", "a state that is signed with a key that is dead is not believed")
s.snapshot().push(entry(key=STATES.kid), key=STATES_B).check("accept").wait(100).push(then="snapshot").check("accept")
s.wait(100).snapshot(then="snapshot").wait(5_000).check("stale").snapshot(key=STATES_B).check("accept")

s = story("signer", "a snapshot answers the nonce of its request")
s.snapshot(said="AAAAAAAAAAAAAAAAAAAAAA", then="snapshot").check("stale").snapshot(said=False, then="snapshot").check("stale")
s.snapshot().check("accept")

s = story("signer", "a pushed state is no snapshot, whatever nonce it has")
s.snapshot(change=lambda state: {**state, "previous": state["sequence"]}, then="snapshot").check("stale")

s = story("signer", "an altered state is not believed")
s.snapshot()
s.push(entry(task=ROOT))
text = s.steps[-1]["push"]
header, payload, signature = text.split(".")
other = json.dumps({**s.steps[-1]["says"], "entries": []}, separators=(",", ":"))
s.steps[-1].update(push=f"{header}.{b64(other.encode())}.{signature}", then="snapshot", says={**s.steps[-1]["says"], "entries": []})
s.check("accept").snapshot().check("revoked")

s = story("signer", "after a state that is not believed nothing of the stream is taken")
s.snapshot().push(key=FOREIGN, then="snapshot").push(entry(task=OTHER), then="snapshot").check("accept", token(OTHER))
s.snapshot().check("revoked", token(OTHER))

for name, text in [("nothing", ""), ("no JWS", "state"), ("a JWS of two parts", "e30.e30"), ("one of four", "e30.e30.e30.e30")]:
    s = story("signer", f"{name} is no state")
    s.snapshot().step(push=text, then="snapshot").check("accept")

# form: a state of the broker's that cannot be read whole is a gap. What it says may be a revoke.

WELL_FORMED = [
    ("no entries", {}),
    ("a window of one second", {"exp": seconds(START + 140 + 1_000)}),
    ("a window of a minute", {"exp": seconds(START + 140 + 60_000)}),
    ("the largest sequence", {"sequence": 2**53 - 1}),
    ("every kind of entry", {"entries": [entry(task=OTHER), entry(lease="0" * 32), entry(lease="01" + "0" * 38), entry(key="k"), lock(owner="o")]}),
    ("every member of a lock", {"entries": [lock(
        workload="spiffe://example.com/x/*", owner="o", sandbox="s", attestor="a", issuer="i", all=True,
        window={"declared_after": 1, "declared_before": 2.5}, released=True,
    )]}),
    ("a task of the greatest depth", {"entries": [entry(task=DEEPEST)]}),
]
for name, members in WELL_FORMED:
    story("form", f"what is well-formed is taken: {name}").snapshot().wait(100).push(counts=int("entries" in members), change=changed(**members)).check("accept")

MALFORMED = [
    ("a window of less than a second", {"exp": seconds(START + 140 + 999)}),
    ("a window of more than a minute", {"exp": seconds(START + 140 + 60_001)}),
    ("an end before its beginning", {"exp": seconds(START)}),
    ("no end", {"exp": None}),
    ("no beginning", {"iat": None}),
    ("an end in words", {"exp": "1800000005"}),
    ("a time before 1970", {"iat": -1, "exp": 4}),
    ("no sequence", {"sequence": None}),
    ("a sequence below zero", {"sequence": -1, "previous": -1}),
    ("half a sequence", {"sequence": 40.5}),
    ("a sequence in words", {"sequence": "40"}),
    ("a sequence that is a truth", {"sequence": True}),
    ("a sequence that some readers round", {"sequence": 2**53 + 1}),
    ("a previous state that is later", {"previous": 41}),
    ("a sequence that is before its previous one", {"sequence": 39}),
    ("no generation", {"generation": None}),
    ("a generation that is a truth", {"generation": True}),
    ("a generation below zero", {"generation": -3}),
    ("a generation that some readers round", {"generation": 2**53}),
    ("no broker", {"broker": None}),
    ("a broker without a name", {"broker": ""}),
    ("a broker with a long name", {"broker": "a" * 65}),
    ("a broker with a name that is none", {"broker": "a:b"}),
    ("a member that is unknown", {"except": [OTHER]}),
    ("no entries", {"entries": None}),
    ("entries that are no array", {"entries": {}}),
    ("an entry that is no object", {"entries": ["task"]}),
    ("an entry of an unknown kind", {"entries": [entry(workload=WORKLOAD)]}),
    ("an entry of no kind", {"entries": [entry()]}),
    ("an entry of two kinds", {"entries": [entry(task=OTHER, lease="0" * 32)]}),
    ("an entry with an unknown member", {"entries": [entry(task=OTHER, unless="friday")]}),
    ("an unknown kind among known ones", {"entries": [entry(task=OTHER), entry(sandbox="sb-7f3")]}),
    ("an entry without a beginning", {"entries": [{"task": OTHER, "until": seconds(START + DAY)}]}),
    ("an entry without an end", {"entries": [{"task": OTHER, "at": seconds(START)}]}),
    ("an entry whose end is in words", {"entries": [{**entry(task=OTHER), "until": "tomorrow"}]}),
    ("a task that is none", {"entries": [entry(task="task_01")]}),
    ("a task that is cut short", {"entries": [entry(task=CHILD[:-1])]}),
    ("a task in capitals", {"entries": [entry(task=ROOT.upper())]}),
    ("a task that is too deep", {"entries": [entry(task=DEEPEST + "-0000000008")]}),
    ("a task that is a number", {"entries": [entry(task=7)]}),
    ("a lease that is none", {"entries": [entry(lease="0123")]}),
    ("a lease in capitals", {"entries": [entry(lease="A" * 32)]}),
    ("a key without a name", {"entries": [entry(key="")]}),
    ("a lock that is none", {"entries": [entry(lock=LOCK)]}),
    ("a lock without an id", {"entries": [entry(lock={"match": {"owner": "o"}})]}),
    ("a lock with an id that is none", {"entries": [lock(id="lock_1", owner="o")]}),
    ("a lock that matches nothing", {"entries": [lock()]}),
    ("a lock that matches a window alone", {"entries": [lock(window={"declared_after": 1})]}),
    ("a lock without a match", {"entries": [entry(lock={"id": LOCK})]}),
    ("a lock by an unknown member", {"entries": [lock(owner="o", purpose="p")]}),
    ("a lock with an unknown member", {"entries": [lock(window={"reason": "r"}, owner="o")]}),
    ("a lock that is for all, and is not", {"entries": [lock(all=False)]}),
    ("a lock by a workload that is none", {"entries": [lock(workload="payments")]}),
    ("a lock by all workloads of all domains", {"entries": [lock(workload="*")]}),
    ("a lock by what a workload begins with", {"entries": [lock(workload=WORKLOAD + "*")]}),
    ("a lock by an owner who is a list", {"entries": [lock(owner=["o"])]}),
    ("a lock from a day in words", {"entries": [lock(owner="o", window={"declared_after": "monday"})]}),
]
for name, members in MALFORMED:
    s = story("form", f"what is malformed is a gap: {name}")
    s.snapshot().wait(100).push(then="snapshot", counts=int("entries" in members), change=changed(**members)).check("gap").snapshot().check("accept")

for name, text in [("an infinite end", '"exp":1e400'), ("an infinite sequence", '"sequence":1e400'), ("a text that is no JSON", '"why":NaN')]:
    s = story("form", f"what is malformed is a gap: {name}")
    s.snapshot().wait(100)
    member = text.split(":")[0].strip('"')
    infinite = lambda state: json.dumps(changed(**{member: None})(state), separators=(",", ":"))[:-1] + f",{text}}}"
    s.push(then="snapshot", change=infinite).check("gap")

s = story("form", "a snapshot that is malformed is a gap as well")
s.snapshot(change=changed(entries=[entry(workload=WORKLOAD)]), then="snapshot").check("gap").snapshot().check("accept")
for members in ({"exp": None}, {"broker": ""}, {"broker": "a:b"}, {"broker": "a" * 65}, {"sequence": None}, {"entries": None}):
    s.snapshot(change=changed(**members), then="snapshot").check("gap").snapshot().check("accept")

# prefix: a task ends with everything below it

TREE = [("the root", ROOT), ("the child", CHILD), ("the grandchild", GRANDCHILD), ("the sibling", SIBLING), ("another root", OTHER)]
for name, dead in [*TREE[:3], ("a task of the greatest depth", DEEPEST)]:
    s = story("prefix", f"the end of {name} is the end of what is below it, and of nothing else")
    s.snapshot().wait(10).push(entry(task=dead))
    for _, task in [*TREE, ("", DEEPEST)]:
        expect = "revoked" if task.startswith(dead) else "accept"
        s.check(expect, token(task)).check(expect, svid(task))

s = story("prefix", "an id that only begins with the same characters is another task's, and one that is none is nobody's")
s.snapshot().wait(10).push(entry(task=CHILD)).check("revoked", token(CHILD)).check("accept", token(SIBLING))
s.check("accept", token(ROOT)).check("invalid", token(CHILD + "0")).check("invalid", token(CHILD[:-1])).check("invalid", token(CHILD + "-"))

s = story("prefix", "the task that counts is that of the claim, whose SPIFFE ID says the same")
s.snapshot().wait(10).push(entry(task=CHILD)).check("revoked", svid(CHILD))
s.check("invalid", jws(SVID, "JWT", claims(OTHER, sub=f"{WORKLOAD}/task/{CHILD}")))
s.check("invalid", jws(SVID, "JWT", claims(OTHER, sub=WORKLOAD)))

# entry: one credential, one key, and how long an entry is kept

s = story("entry", "a lease is one credential")
dead, alive = "fedcba9876543210fedcba9876543210", "fedcba9876543210fedcba9876543211"
s.snapshot().check("accept", token(jti=dead)).push(entry(lease=dead)).check("revoked", token(jti=dead))
s.check("accept", token(jti=alive)).check("revoked", svid(jti=dead)).push(entry(lease="01" + "0" * 38)).check("accept", token(jti=alive))

s = story("entry", "a key is everything signed with it")
s.snapshot().check("accept", token(key=ACCESS_OLD)).push(entry(key=ACCESS_OLD.kid)).check("revoked", token(key=ACCESS_OLD))
s.check("accept").check("accept", svid()).push(entry(key=SVID.kid)).check("revoked", svid()).check("accept")

s = story("entry", "the kind of an entry counts: an id of one kind is no id of another")
s.snapshot().push(entry(key="0123456789abcdef0123456789abcdef")).check("accept")

KEPT = {"at": START - 5_000, "until": START + 20_000}  # 25 s of lifetime, 20 s from here
s = story("entry", "an entry goes when both clocks have passed its end", window=60_000)
s.snapshot().push(entry(task=ROOT, **KEPT)).wait(25_000).push().check("revoked").wait(50_000).push().check("revoked")
s.wait(4_959).check("revoked").wait(2).push().check("accept")

s = story("entry", "a wall clock that jumps ahead removes no entry", window=60_000)
s.snapshot().push(entry(task=ROOT, **KEPT)).jump(600_000).push().check("revoked").wait(24_900).check("revoked")
s.wait(200).push().check("accept")

s = story("entry", "a wall clock that jumps back keeps an entry longer", window=60_000)
s.snapshot().push(entry(task=ROOT, **KEPT)).jump(-600_000).wait(50_000).push().check("revoked").wait(50_000).push().check("revoked")
s.jump(600_000).push().check("accept")

s = story("entry", "an entry that comes again with an earlier end is kept as long as before", window=60_000)
s.snapshot().push(entry(task=ROOT, at=START, until=START + 30_000)).push(entry(task=ROOT, at=START, until=START + 1_000))
s.wait(59_000).push().check("revoked").wait(30_000).push().check("revoked").wait(2_000).push().check("accept")

s = story("entry", "a snapshot without an entry does not take it away")
s.snapshot().push(entry(task=ROOT), entry(lease="0" * 32), entry(key="k"), lock(owner="nobody@example.com"))
s.broker.entries = []
s.disconnect().snapshot().check("revoked").check("revoked", token(OTHER, jti="0" * 32)).check("accept", token(OTHER))

s = story("entry", "times have fractions", window=60_000)
s.snapshot().push(entry(task=ROOT, at=START + 1, until=START + 1_002)).wait(60_961).push().check("revoked")
s.wait(2).push().check("accept")

# lock: what was stopped does not come back

CHAIN = {"sub": "spiffe://example.com/agents/planner", "act": {"sub": "spiffe://example.com/agents/tools/browser"}}
DELEGATED = {"sub": "spiffe://example.com/people/ada", "client_id": CHAIN["sub"], "act": CHAIN}
OUTER = {"task_": {"owner": "team-search@example.com", "sandbox": "sb-000", "attestor": "kernel", "evidence_issuer": "https://other.example.com"}}
BARE = {"task_": {"sandbox": None, "evidence_issuer": None}}
LOCKS = [
    ("its workload", {"workload": WORKLOAD}, token(), token(sub=OTHER_WORKLOAD, client_id=OTHER_WORKLOAD)),
    ("its owner", {"owner": "team-payments@example.com"}, token(), token(**OUTER)),
    ("its sandbox", {"sandbox": "sb-7f3"}, token(), token(**OUTER)),
    ("its attestor", {"attestor": "ci"}, token(), token(**OUTER)),
    ("the issuer of its evidence", {"issuer": "https://ci.example.com"}, token(), token(**OUTER)),
    ("its sandbox, which not every task has", {"sandbox": "sb-7f3"}, token(), token(**BARE)),
    ("the issuer of its evidence, which not all evidence has", {"issuer": "https://ci.example.com"}, token(), token(**BARE)),
    ("what it is and whose, both", {"workload": WORKLOAD, "owner": "team-payments@example.com"}, token(), token(**OUTER)),
    ("whose it is and where, both", {"owner": "team-payments@example.com", "sandbox": "sb-7f3"}, token(), token(task_={"sandbox": "sb-000"})),
    ("five things at once", {"workload": WORKLOAD, "owner": "team-payments@example.com", "sandbox": "sb-7f3", "attestor": "ci",
        "issuer": "https://ci.example.com"}, token(), token(task_={"attestor": "kernel"})),
    ("a subtree of workloads", {"workload": "spiffe://example.com/ci/*"}, token(), token(**DELEGATED)),
    ("a subtree of workloads, and not one that only begins alike", {"workload": "spiffe://example.com/ci/acme/*"}, token(),
        token(sub="spiffe://example.com/ci/acme-two/x", client_id="spiffe://example.com/ci/acme-two/x")),
    ("a subtree of workloads, and not its root", {"workload": "spiffe://example.com/ci/acme/payments/*"},
        token(sub=WORKLOAD + "/x", client_id=WORKLOAD + "/x"), token()),
    ("a workload, and not one below it", {"workload": "spiffe://example.com/ci/acme"},
        token(sub="spiffe://example.com/ci/acme", client_id="spiffe://example.com/ci/acme"), token()),
    ("who holds it, where that is another than whom it is for", {"workload": OTHER_WORKLOAD}, token(client_id=OTHER_WORKLOAD), token()),
    ("the first of a delegation", {"workload": DELEGATED["sub"]}, token(CHILD, **DELEGATED), token()),
    ("the last of a delegation", {"workload": DELEGATED["client_id"]}, token(CHILD, **DELEGATED), token()),
    ("one in the middle of a delegation", {"workload": CHAIN["act"]["sub"]}, token(GRANDCHILD, **DELEGATED), token()),
    ("a subtree in the middle of a delegation", {"workload": "spiffe://example.com/agents/tools/*"}, token(GRANDCHILD, **DELEGATED), token()),
    ("the workload of a JWT-SVID", {"workload": WORKLOAD}, svid(), svid(workload=OTHER_WORKLOAD)),
    ("a subtree that the workload of a JWT-SVID is in", {"workload": "spiffe://example.com/ci/acme/*"}, svid(), svid(workload="spiffe://example.com/ci/acme-two/x")),
    ("the owner of a JWT-SVID", {"owner": "team-payments@example.com"}, svid(), svid(**OUTER)),
    ("everything, declared at or after", {"all": True, "window": {"declared_after": DECLARED}}, token(), token(task_={"declared_at": DECLARED - 1})),
    ("everything, declared before", {"all": True, "window": {"declared_before": DECLARED + 1}}, token(), token(task_={"declared_at": DECLARED + 1})),
    ("everything, declared between", {"all": True, "window": {"declared_after": DECLARED - 0.5, "declared_before": DECLARED + 0.001}}, token(),
        token(task_={"declared_at": DECLARED + 1})),
    ("one owner's, declared since", {"owner": "team-payments@example.com", "window": {"declared_after": DECLARED}}, token(),
        token(task_={"declared_at": DECLARED - 1})),
]
for name, match, hit, missed in LOCKS:
    s = story("lock", f"a lock by {name}")
    s.snapshot().check("accept", hit).check("accept", missed).push(lock(**match)).check("locked", hit).check("accept", missed)

s = story("lock", "a JWT-SVID is of its workload, and a subtree of that workload's is not it")
s.snapshot().push(lock(workload=WORKLOAD + "/*")).check("accept", svid()).check("accept")

s = story("lock", "a lock of everything")
s.snapshot().push(lock(all=True)).check("locked").check("locked", svid(OTHER)).check("locked", token(CHILD, **DELEGATED))

s = story("lock", "a lock that was released matches no more, for good")
s.snapshot().push(lock(owner="team-payments@example.com")).check("locked").push(lock(owner="team-payments@example.com", released=True))
s.check("accept").disconnect()
s.snapshot(broker=Broker("b", STATES_B, entries=[lock(owner="team-payments@example.com")])).check("accept")

s = story("lock", "the release of one lock is not that of another")
s.snapshot().push(lock(owner="team-payments@example.com"), lock(sandbox="sb-7f3", id=OTHER_LOCK))
s.push(lock(owner="team-payments@example.com", released=True)).check("locked").check("accept", token(**OUTER))

s = story("lock", "a lock that was extended lasts as long as it says last", window=60_000)
s.snapshot().push(lock(all=True, until=START + 2_000)).push(lock(all=True, until=START + 10_000))
s.wait(5_000).check("locked").wait(4_959).check("locked").wait(2).check("accept")

s = story("lock", "a lock that is told of anew is as it was told last", window=60_000)
s.snapshot().push(lock(owner="team-payments@example.com", at=START)).push(lock(sandbox="sb-000", at=START + 1)).check("accept")
s.check("locked", token(**OUTER)).push(lock(sandbox="sb-000", at=START + 2, until=START + 10_000)).wait(9_900).check("locked", token(**OUTER))
s.wait(61).check("accept", token(**OUTER))

s = story("lock", "a broker that has not heard of the last change of a lock does not undo it", window=60_000)
s.snapshot().push(lock(all=True, at=START, until=START + 10_000)).disconnect()
s.snapshot(broker=Broker("b", STATES_B, window=60_000, entries=[lock(all=True, at=START - 5_000, until=START + 2_000)]))
s.wait(9_800).check("locked").wait(200).check("accept")

s = story("lock", "a lock ends with its `until`", window=60_000)
s.snapshot().push(lock(all=True, until=START + 10_000)).wait(9_959).check("locked").wait(2).check("accept")

s = story("lock", "a wall clock that jumps ahead ends no lock", window=60_000)
s.snapshot().push(lock(all=True, until=START + 10_000)).jump(600_000).check("locked").wait(9_900).check("locked").wait(100).check("accept")

s = story("lock", "a wall clock that jumps back lets no lock end early", window=60_000)
s.snapshot().push(lock(all=True, until=START + 10_000)).jump(-600_000).wait(9_900).check("locked")

# clock: the verifier's own may be off

for name, off, then in [
    ("one second behind is taken", -1_000, "follow"),
    ("one second ahead is taken", 1_000, "follow"),
    ("one and a half seconds behind is refused", -1_500, "snapshot"),
    ("one and a half seconds ahead is refused", 1_500, "snapshot"),
    ("an hour behind is refused", -3_600_000, "snapshot"),
    ("an hour ahead is refused", 3_600_000, "snapshot"),
]:
    s = story("clock", f"at the start, a wall clock {name}", off=off)
    s.snapshot(took=0, then=then).check("accept" if then == "follow" else "stale")

s = story("clock", "a snapshot that is older than its request by more than a second is refused")
s.snapshot(age=1_000).check("accept").disconnect().snapshot(age=1_001, then="snapshot").wait(4_990).check("stale")

s = story("clock", "a slow answer may have been made at any instant of it", window=60_000)
s.snapshot(took=30_000, age=-15_000).check("accept")

for name, by in [("ahead", 600_000), ("back", -600_000)]:
    s = story("clock", f"a wall clock that jumps {name} makes nothing stale, and nothing fresh")
    s.snapshot().jump(by).check("accept").wait(4_959).check("accept").wait(1).check("stale")
    s = story("clock", f"a wall clock that jumps {name} takes the states of the stream as before")
    s.snapshot().jump(by).wait(2_000).push(entry(task=OTHER)).check("accept").check("revoked", token(OTHER)).wait(4_000).check("accept")
    s = story("clock", f"a wall clock that jumped {name} is found out at the next start")
    s.snapshot().jump(by).disconnect().snapshot(then="snapshot").check("accept").wait(5_000).check("stale").jump(-by).snapshot().check("accept")

s = story("clock", "a stale verifier whose wall clock jumps back is as stale")
s.snapshot().wait(6_000).check("stale").jump(-6_000).check("stale").jump(-600_000).check("stale")

s = story("clock", "a state from a second ahead is believed")
s.snapshot().wait(2_000).push(change=changed(iat=seconds(s.now + 1_000), exp=seconds(s.now + 6_000))).wait(5_900).check("accept")
s = story("clock", "a state from more than a second ahead is not believed")
s.snapshot().wait(2_000).push(then="snapshot", change=changed(iat=seconds(s.now + 1_100), exp=seconds(s.now + 6_100))).check("accept").wait(2_960).check("stale")

EXP = START // 1000 + 10
s = story("clock", "a token ends by the wall clock", window=60_000)
s.snapshot().check("accept", token(exp=EXP)).wait(9_900).check("accept", token(exp=EXP)).wait(100).check("invalid", token(exp=EXP))
s = story("clock", "a token ends when the wall clock has jumped past its end", window=60_000)
s.snapshot().jump(9_900).check("accept", token(exp=EXP)).jump(100).check("invalid", token(exp=EXP))
s = story("clock", "a token ends by the monotonic clock where the wall clock has jumped back", window=60_000)
s.snapshot().jump(-600_000).wait(9_900).check("accept", token(exp=EXP)).wait(100).check("invalid", token(exp=EXP))

# token: what is a credential at all

s = story("token", "what is well-formed is accepted")
s.snapshot().check("accept").check("accept", svid()).check("accept", token(key=ACCESS_RSA)).check("accept", token(CHILD, **DELEGATED))
s.check("accept", token(DEEPEST)).check("accept", token(task_={"sandbox": None, "evidence_issuer": None}))

for name, presented in [
    ("that is not signed", token(key=Nothing(ACCESS.kid))),
    ("signed with a public key as a secret", token(key=Secret(base64.urlsafe_b64decode(ACCESS.jwk["x"] + "="), ACCESS.kid))),
    ("signed with an RSA key as a secret", token(key=Secret(base64.urlsafe_b64decode(ACCESS_RSA.jwk["n"] + "=="), ACCESS_RSA.kid))),
    ("of somebody else", token(key=FOREIGN)),
    ("of somebody else under a key id of the broker", token(key=P256("somebody else", kid=ACCESS.kid))),
    ("signed with the key of status lists", token(key=STATUS_LIST)),
    ("signed with the key of states", token(key=STATES)),
    ("signed with the key of JWT-SVIDs", token(key=SVID)),
    ("that is a JWT-SVID signed with a key of access tokens", svid(key=ACCESS)),
    ("that is a JWT-SVID signed with the authority of certificates", svid(key=AUTHORITY)),
    ("that is a JWT-SVID with the type of an access token", svid(typ="at+jwt")),
    ("with the plain type", token(typ="JWT")),
    ("with the long form of its type", token(typ="application/at+jwt")),
    ("with the type of a state", token(typ="remit-revocations+jwt")),
    ("with the type of a state and signed as one", token(key=STATES, typ="remit-revocations+jwt")),
    ("without a type", token(typ=None)),
    ("without a key id", token(header={"kid": None})),
    ("with another algorithm than its key's", token(header={"alg": "RS256"})),
    ("with an extension in its header", token(header={"crit": ["exp"]})),
    ("with a member in its header that the broker's have not", token(header={"cty": "JWT"})),
    ("with a key in its header", token(key=FOREIGN, header={"jwk": FOREIGN.jwk})),
    ("of another issuer", token(iss="https://other.example.com")),
    ("of an issuer that differs in a slash", token(iss=ISSUER + "/")),
    ("for another audience", token(aud="https://registry.example.com")),
    ("for an audience that differs in a slash", token(aud=AUDIENCE + "/")),
    ("for a list of audiences", token(aud=[AUDIENCE])),
    ("for nobody", token(aud=None)),
    ("that has ended", token(exp=START // 1000)),
    ("without an end", token(exp=None)),
    ("with an end in words", token(exp=str(START // 1000 + 60))),
    ("with a beginning far ahead", token(nbf=START // 1000 + 60)),
    ("without a beginning", token(nbf=None)),
    ("from far ahead", token(iat=START // 1000 + 60)),
    ("without a subject", token(sub=None)),
    ("without a client", token(client_id=None)),
    ("without an id", token(jti=None)),
    ("without a scope", token(scope=None)),
    ("without a task", token(**{"urn:remit:task": None})),
    ("with a task that is a name", token(**{"urn:remit:task": ROOT})),
    ("without the id of its task", token(task_={"id": None})),
    ("of a task in capitals", token(ROOT.upper())),
    ("of a task that is too deep", token(DEEPEST + "-0000000008")),
    ("without a generation", token(task_={"generation": None})),
    ("with a generation in words", token(task_={"generation": str(GENERATION)})),
    ("without an owner", token(task_={"owner": None})),
    ("without an attestor", token(task_={"attestor": None})),
    ("without the instant of its declaration", token(task_={"declared_at": None})),
    ("with a delegation that is a name", token(act=WORKLOAD)),
    ("with a delegation by nobody", token(act={"act": {"sub": WORKLOAD}})),
    ("bound to a key, as a bearer token", token(cnf={"jkt": THUMBPRINT})),
    ("bound in a way that is unknown", token(cnf={"jwk": FOREIGN.jwk})),
    ("bound in no way, and saying that it is", token(cnf={})),
    ("that is cut short", token()[:-4]),
    ("with padding", token() + "="),
]:
    s = story("token", f"a token {name} is refused")
    s.snapshot().check("invalid", presented).check("accept")

for name, text in [("nothing", " "), ("no token", "token"), ("a token of two parts", "e30.e30")]:
    story("token", f"{name} is refused").snapshot().check("invalid", text)

s = story("token", "what is bound to a certificate comes with that certificate")
bound = token(cnf={"x5t#S256": THUMBPRINT})
s.snapshot().check("accept", bound, certificate=THUMBPRINT).check("invalid", bound, certificate=OTHER_THUMBPRINT).check("invalid", bound)
s.check("invalid", token(cnf={"x5t#S256": THUMBPRINT, "jkt": THUMBPRINT}), certificate=THUMBPRINT)
s.check("invalid", token(cnf={"jkt": THUMBPRINT}), certificate=THUMBPRINT)

s = story("token", "what is refused for itself is refused for itself, whatever the feed says")
s.check("invalid", token(key=FOREIGN)).check("stale").snapshot().push(entry(task=ROOT)).check("revoked")
s.check("invalid", token(key=FOREIGN)).wait(6_000).check("invalid", token(key=FOREIGN)).check("stale")

s = story("token", "a clock that is five seconds behind the broker's, and no more")
s.snapshot(took=0).check("accept", token(iat=START // 1000 + 5, nbf=START // 1000 + 5)).check("invalid", token(nbf=START // 1000 + 6))


def written(document):
    """JSON with a line for every step and every key."""
    compact = lambda value: json.dumps(value, separators=(", ", ": "))
    lines = [f' {compact(name)}: {compact(value)},' for name, value in document.items() if name != "vectors"]
    vectors = []
    for vector in document["vectors"]:
        steps = ",\n".join("   " + compact(step) for step in vector["steps"])
        vectors.append(f'  {{"name": {compact(vector["name"])}, "steps": [\n{steps}\n  ]}}')
    return "\n".join(["{", *lines, ' "vectors": [', ",\n".join(vectors), " ]", "}", ""])


def main(directory):
    names = set()
    for file, stories in FILES.items():
        vectors = []
        for told in stories:
            assert told.name not in names, told.name
            names.add(told.name)
            vectors.append({"name": told.name, "steps": told.steps})
        (directory / f"{file}.json").write_text(written({**KEYS, "vectors": vectors}), encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
