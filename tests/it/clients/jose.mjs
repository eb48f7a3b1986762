// A service that checks tokens with jose as its manual says: whom and what it accepts, or the library's code for why not.
//
//     jose.mjs LIBRARIES ISSUER AUDIENCE TYPE [ALGORITHM]    one token a line on standard input, one word a line on standard output
//
// The type is at+jwt for access tokens, or JWT for JWT-SVIDs, whose keys are those of the SPIFFE bundle that are for them.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [libraries, issuer, audience, typ, algorithm = "ES256"] = process.argv.slice(2);
const { createLocalJWKSet, createRemoteJWKSet, errors, jwtVerify } = await import(
  pathToFileURL(createRequire(libraries + "/").resolve("jose"))
);

// jose takes keys for signatures alone, and in a SPIFFE bundle `use` says for which kind of SVID a key is: whoever has chosen drops it.
async function bundle(uri) {
  const { keys } = await (await fetch(uri)).json();
  return { keys: keys.filter(({ use }) => use === "jwt-svid").map(({ use, ...key }) => key) };
}

const keys =
  typ === "JWT" ? createLocalJWKSet(await bundle(`${issuer}/spiffe/bundle`)) : createRemoteJWKSet(new URL(`${issuer}/jwks`));
const requiredClaims = ["exp", "iat", "nbf", "sub", "jti"];

for await (const token of createInterface({ input: process.stdin })) {
  try {
    const { payload } = await jwtVerify(token, keys, { issuer, audience, typ, algorithms: [algorithm], requiredClaims });
    console.log(`${payload.scope} for ${payload.sub}`);
  } catch (error) {
    if (!(error instanceof errors.JOSEError)) throw error;
    console.log(error.claim ? `${error.code} ${error.claim}` : error.code);
  }
}
