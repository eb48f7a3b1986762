//! Everything that is tested from outside, in one binary: through the front door, on real Redis and on the embedded store.

// `cfg(test)` tells clippy that helpers are test code too, which may unwrap.
#[cfg(test)]
mod architecture;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod client_assertion;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod config_check;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod declare;
#[cfg(test)]
mod dpop;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod evaluation;
#[cfg(test)]
mod evidence;
#[cfg(test)]
mod feed;
#[cfg(test)]
mod find;
#[cfg(test)]
mod followers;
#[cfg(test)]
mod generation;
#[cfg(test)]
mod health;
#[cfg(test)]
mod introspect;
#[cfg(test)]
mod inventory;
#[cfg(test)]
mod journal;
#[cfg(test)]
mod jwks;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod locks;
#[cfg(test)]
mod members;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod mint;
#[cfg(test)]
mod mtls;
#[cfg(test)]
mod nginx;
#[cfg(test)]
mod oauth;
#[cfg(test)]
mod oauth_clients;
#[cfg(test)]
mod oidc;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod operators;
#[cfg(test)]
mod output;
#[cfg(test)]
mod owners;
#[cfg(test)]
mod party_certificates;
#[cfg(test)]
mod people;
#[cfg(test)]
mod placed;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod policy_check;
#[cfg(test)]
mod presence;
#[cfg(test)]
mod presets;
#[cfg(test)]
mod reach;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod renew;
#[cfg(test)]
mod reports;
#[cfg(test)]
mod revoke;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod rs256;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod server_certificate;
#[cfg(test)]
mod sidecar;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod start;
#[cfg(test)]
mod status_list;
#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
#[cfg(test)]
mod taint;
#[cfg(test)]
mod task_token;
#[cfg(feature = "otlp")]
#[cfg(test)]
mod telemetry;
#[cfg(test)]
mod timeline;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod trail;
#[cfg(test)]
mod trees;
#[cfg(test)]
mod unused;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod verifiers;
#[cfg(test)]
mod watch;
#[cfg(test)]
mod x509;
