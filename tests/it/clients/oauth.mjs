// An agent and the service that it calls: the agent with openid-client as its manual says, by discovery and token exchange; the service
// with jose, and openid-client for introspection.
//
//     oauth.mjs LIBRARIES ISSUER AUDIENCE SERVICE_TOKEN    one JSON object a line on standard input, what came of it on standard output
//
// An object with an `access_token` is used as the answer of a token endpoint, another is what a token exchange is asked for. The
// service is called twice with every token: it goes by the broker's keys (RFC 9068), then by introspection (RFC 7662).

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [libraries, issuer, audience, secret] = process.argv.slice(2);
const library = (name) => import(pathToFileURL(createRequire(libraries + "/").resolve(name)));
const { createRemoteJWKSet, jwtVerify } = await library("jose");
const openid = await library("openid-client");
const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";

// The development issuer is plain HTTP on loopback; everything else is as in production.
const discover = (id, authentication, algorithm) =>
  openid.discovery(new URL(issuer), id, undefined, authentication, { algorithm, execute: [openid.allowInsecureRequests] });
const agent = await discover("agent", openid.None(), "oauth2");
// A service is known by its bearer token: an authentication method that a caller of the library brings along.
const service = await discover("service", (_as, _client, _body, headers) => headers.set("authorization", `Bearer ${secret}`), "oidc");

const keys = createRemoteJWKSet(new URL(agent.serverMetadata().jwks_uri));
const requiredClaims = ["exp", "iat", "jti", "sub", "client_id"]; // RFC 9068 section 2.2
const expected = { issuer, audience, typ: "at+jwt", algorithms: ["ES256"], requiredClaims };
const checks = {
  "/by-keys": async (token) => (await jwtVerify(token, keys, expected)).payload,
  "/by-asking": async (token) => {
    const claims = await openid.tokenIntrospection(service, token, { token_type_hint: "access_token" });
    if (!claims.active) throw new Error("inactive");
    return claims;
  },
};

const server = createServer(async (request, response) => {
  const token = (request.headers.authorization ?? "").replace(/^Bearer /i, "");
  try {
    const claims = await checks[request.url](token);
    response.end(claims.scope === "read" ? claims["urn:remit:task"].id : response.writeHead(403) && "insufficient_scope");
  } catch {
    response.writeHead(401, { "www-authenticate": 'Bearer error="invalid_token"' }).end("invalid_token");
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

async function called(path, token) {
  const url = new URL(`http://127.0.0.1:${server.address().port}${path}`);
  try {
    const answer = await openid.fetchProtectedResource(agent, token, url, "GET");
    return `${answer.status} ${await answer.text()}`;
  } catch (error) {
    if (!(error instanceof openid.WWWAuthenticateChallengeError)) throw error;
    return `${error.status} ${error.cause[0].parameters.error}`;
  }
}

async function run(asked) {
  try {
    const answer = asked.access_token ? asked : await openid.genericGrantRequest(agent, EXCHANGE, asked);
    const token = answer.access_token;
    return { answer, by_keys: await called("/by-keys", token), by_asking: await called("/by-asking", token) };
  } catch (error) {
    return { class: error.constructor.name, error: error.error, description: error.error_description };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await run(JSON.parse(line))));
}
server.close();
