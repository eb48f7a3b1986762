// An agent that shows its key to the broker and to the service that it calls, with openid-client as its manual says (RFC 9449); the
// service with jose: it goes by the broker's keys, or by introspection, and checks the proof either way.
//
//     dpop.mjs LIBRARIES ISSUER AUDIENCE SERVICE_TOKEN    one JSON object a line on standard input, what came of it on standard output
//
// An object holds the `algorithm` of the agent's key, and what a token exchange is asked for.

import { createHash, webcrypto } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [libraries, issuer, audience, secret] = process.argv.slice(2);
const library = (name) => import(pathToFileURL(createRequire(libraries + "/").resolve(name)));
const { EmbeddedJWK, calculateJwkThumbprint, createRemoteJWKSet, generateKeyPair, jwtVerify } = await library("jose");
const openid = await library("openid-client");
const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";

const discover = (id, authentication) =>
  openid.discovery(new URL(issuer), id, undefined, authentication, {
    algorithm: "oauth2",
    execute: [openid.allowInsecureRequests],
  });
const agent = await discover("agent", openid.None());
const service = await discover("service", (_as, _client, _body, headers) => headers.set("authorization", `Bearer ${secret}`));

const keys = createRemoteJWKSet(new URL(agent.serverMetadata().jwks_uri));
const checks = {
  "/by-keys": async (token) => (await jwtVerify(token, keys, { issuer, audience, typ: "at+jwt", algorithms: ["ES256"] })).payload,
  "/by-asking": async (token) => {
    const claims = await openid.tokenIntrospection(service, token, { token_type_hint: "access_token" });
    if (!claims.active || claims.token_type !== "DPoP") throw new Error("inactive");
    return claims;
  },
};

const seen = new Set();
const server = createServer(async (request, response) => {
  try {
    const [scheme, token] = (request.headers.authorization ?? "").split(" ");
    const claims = await checks[request.url](token);
    if (scheme.toLowerCase() !== "dpop") throw new Error("a bound token is no bearer token");
    const { payload: proof, protectedHeader } = await jwtVerify(request.headers.dpop, EmbeddedJWK, {
      typ: "dpop+jwt",
      maxTokenAge: "60s",
      requiredClaims: ["jti", "htm", "htu", "ath"],
    });
    const ath = createHash("sha256").update(token).digest("base64url");
    const here = `http://127.0.0.1:${server.address().port}${request.url}`;
    const jkt = await calculateJwkThumbprint(protectedHeader.jwk);
    if (proof.ath !== ath || proof.htm !== request.method || proof.htu !== here || seen.has(proof.jti)) throw new Error("proof");
    if (jkt !== claims.cnf?.jkt) throw new Error("another key");
    seen.add(proof.jti);
    response.end(claims["urn:remit:task"].id);
  } catch {
    response.writeHead(401, { "www-authenticate": 'DPoP error="invalid_token"' }).end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

async function called(path, token, options) {
  const url = new URL(`http://127.0.0.1:${server.address().port}${path}`);
  try {
    const answer = await openid.fetchProtectedResource(agent, token, url, "GET", undefined, undefined, options);
    return `${answer.status} ${await answer.text()}`;
  } catch (error) {
    if (!(error instanceof openid.WWWAuthenticateChallengeError)) throw error;
    return `${error.status}`;
  }
}

async function handle(algorithm) {
  const pair = await generateKeyPair(algorithm === "EdDSA" ? "Ed25519" : algorithm, { extractable: true });
  return openid.getDPoPHandle(agent, pair);
}

async function run({ algorithm, ...asked }) {
  const [own, foreign] = [await handle(algorithm), await handle(algorithm)];
  const answer = await openid.genericGrantRequest(agent, EXCHANGE, asked, { DPoP: own });
  const token = answer.access_token;
  return {
    token_type: answer.token_type,
    holder: await called("/by-keys", token, { DPoP: own }),
    asking: await called("/by-asking", token, { DPoP: own }),
    thief: await called("/by-keys", token, { DPoP: foreign }),
    bearer: await called("/by-keys", token, {}),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  let said;
  try {
    said = await run(JSON.parse(line));
  } catch (error) {
    said = { class: error.constructor.name, error: error.error, description: error.error_description ?? error.message };
  }
  console.log(JSON.stringify(said));
}
server.close();
