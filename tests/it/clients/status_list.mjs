// A service that reads status lists with @sd-jwt/jwt-status-list as its manual says: 0 for a token that stands, 1 for one that was
// revoked, or why that cannot be told. The library leaves the signature to its caller.
//
//     status_list.mjs LIBRARIES ISSUER    one token a line on standard input, one word a line on standard output

import { createPublicKey, verify } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [libraries, issuer] = process.argv.slice(2);
const { getListFromStatusListJWT, getStatusListFromJWT } = createRequire(libraries + "/")("@sd-jwt/jwt-status-list");
const { keys } = await (await fetch(`${issuer}/jwks`)).json();

function signed(list) {
  const [header, claims, signature] = list.split(".");
  const { alg, kid, typ } = JSON.parse(Buffer.from(header, "base64url"));
  const jwk = keys.find((key) => key.kid === kid);
  if (alg !== "ES256" || typ !== "statuslist+jwt" || !jwk) return false;
  const key = { key: createPublicKey({ key: jwk, format: "jwk" }), dsaEncoding: "ieee-p1363" };
  return verify("sha256", Buffer.from(`${header}.${claims}`), key, Buffer.from(signature, "base64url"));
}

async function check(token) {
  const { idx, uri } = getStatusListFromJWT(token);
  const answer = await fetch(uri, { headers: { accept: "application/statuslist+jwt" } });
  if (answer.headers.get("content-type") !== "application/statuslist+jwt") return `status ${answer.status}`;
  const list = await answer.text();
  if (!signed(list)) return "signature";
  const { sub, exp, ttl } = JSON.parse(Buffer.from(list.split(".")[1], "base64url"));
  if (sub !== uri || exp <= Date.now() / 1000 || !(ttl > 0)) return "claims";
  return getListFromStatusListJWT(list).getStatus(idx);
}

for await (const token of createInterface({ input: process.stdin })) {
  console.log(await check(token.trim()).catch((error) => error.message));
}
