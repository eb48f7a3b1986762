"""Runs the vectors: `python -m unittest` in this directory."""

import json
import pathlib
import unittest

from remit_verifier import Clocks, Denied, Verifier

VECTORS = pathlib.Path(__file__).parents[2] / "vectors"


def answer(verifier, check, now):
    try:
        verifier.check(check["token"], now, certificate=check.get("certificate"))
    except Denied as denied:
        return denied.reason
    return "accept"


class Vectors(unittest.TestCase):
    def run_vector(self, document, vector):
        verifier = Verifier(document["issuer"], document["audience"])
        verifier.set_keys(document["jwks"], document["revocation_jwks"], document["spiffe_bundle"])
        for at, step in enumerate(vector["steps"]):
            now = Clocks(step["at_wall_ms"], step["at_mono_ms"])
            if "snapshot" in step:
                sent = Clocks(step["sent_wall_ms"], step["sent_mono_ms"])
                follows = verifier.snapshot(step["snapshot"], step["nonce"], sent, now)
                self.assertEqual("follow" if follows else "snapshot", step["then"], f"step {at}")
            elif "push" in step:
                follows = verifier.push(step["push"], now)
                self.assertEqual("follow" if follows else "snapshot", step["then"], f"step {at}")
            elif "disconnect" in step:
                verifier.lost()
            else:
                self.assertEqual(answer(verifier, step["check"], now), step["check"]["expect"], f"step {at}")

    def test_vectors(self):
        files = sorted(VECTORS.glob("*.json"))
        self.assertGreaterEqual(len(files), 11)
        for file in files:
            document = json.loads(file.read_text(encoding="utf-8"))
            for vector in document["vectors"]:
                with self.subTest(file=file.name, vector=vector["name"]):
                    self.run_vector(document, vector)
