// A registered client that authenticates with a key of its own (private_key_jwt), with openid-client as its manual says.
//
//     client.mjs LIBRARIES ISSUER CLIENT_ID ALGORITHM    a private JWK on the first line of standard input, and on each other what a
//                                                        client_credentials grant is asked for; what came of each on standard output

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [libraries, issuer, clientId, algorithm] = process.argv.slice(2);
const library = (name) => import(pathToFileURL(createRequire(libraries + "/").resolve(name)));
const { generateKeyPair, importJWK } = await library("jose");
const openid = await library("openid-client");

let client;
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let said = {};
  try {
    if (!client) {
      const key = await importJWK(asked, algorithm);
      const authentication = openid.PrivateKeyJwt({ key, kid: asked.kid });
      const options = { algorithm: "oauth2", execute: [openid.allowInsecureRequests] };
      client = await openid.discovery(new URL(issuer), clientId, undefined, authentication, options);
      said = client.serverMetadata().token_endpoint_auth_methods_supported;
    } else {
      const { dpop, ...parameters } = asked;
      const DPoP = dpop && openid.getDPoPHandle(client, await generateKeyPair("ES256"));
      said = await openid.clientCredentialsGrant(client, parameters, { DPoP });
    }
  } catch (error) {
    said = { class: error.constructor.name, error: error.error, description: error.error_description ?? error.message };
  }
  console.log(JSON.stringify(said));
}
