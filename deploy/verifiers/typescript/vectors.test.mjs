// Runs the vectors: npm test

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";

import { Denied, Verifier } from "./dist/remit-verifier.js";

const vectors = new URL("../../vectors/", import.meta.url);
const files = readdirSync(vectors).filter((name) => name.endsWith(".json"));
assert(files.length >= 11);

async function answer(verifier, { token, certificate }, now) {
  try {
    await verifier.check(token, now, certificate);
    return "accept";
  } catch (error) {
    if (!(error instanceof Denied)) throw error;
    return error.reason;
  }
}

async function run(document, { steps }) {
  const verifier = new Verifier(document.issuer, document.audience);
  await verifier.setKeys(document.jwks, document.revocation_jwks, document.spiffe_bundle);
  const then = (follows) => (follows ? "follow" : "snapshot");
  for (const [at, step] of steps.entries()) {
    const now = { wall: step.at_wall_ms, mono: step.at_mono_ms };
    if ("snapshot" in step) {
      const sent = { wall: step.sent_wall_ms, mono: step.sent_mono_ms };
      assert.equal(then(await verifier.snapshot(step.snapshot, step.nonce, sent, now)), step.then, `step ${at}`);
    } else if ("push" in step) {
      assert.equal(then(await verifier.push(step.push, now)), step.then, `step ${at}`);
    } else if ("disconnect" in step) {
      verifier.lost();
    } else {
      assert.equal(await answer(verifier, step.check, now), step.check.expect, `step ${at}`);
    }
  }
}

for (const file of files) {
  const document = JSON.parse(readFileSync(new URL(file, vectors), "utf8"));
  for (const vector of document.vectors) test(`${file}: ${vector.name}`, () => run(document, vector));
}
