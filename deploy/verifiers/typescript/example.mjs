// Answers for every token on standard input: accept, or why not.
//
//     node example.mjs ISSUER AUDIENCE       REMIT_BEARER: how the service authenticates, if it does

import { createInterface } from "node:readline";

import { Denied, follow } from "./dist/remit-verifier.js";

const [issuer, audience] = process.argv.slice(2);
const bearer = process.env.REMIT_BEARER;
const verifier = follow(issuer, audience, bearer === undefined ? {} : { bearer });
for await (const token of createInterface({ input: process.stdin })) {
  try {
    const { claims } = await verifier.check(token);
    console.log(`accept ${claims["urn:remit:task"].id}`);
  } catch (error) {
    if (!(error instanceof Denied)) throw error;
    console.log(error.reason);
  }
}
verifier.stop();
