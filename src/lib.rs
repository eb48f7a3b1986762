//! Remit, a just-in-time credential broker.
//!
//! A workload proves what it is, declares the one task it is about to do, and gets credentials that are good for that task and
//! nothing else. When the task ends, or an operator says so, every credential of the task is dead.
//!
//! # The whole, in one chain
//!
//! What is not verified has another type than what is, and every step consumes the one before:
//!
//! ```text
//! Evidence ─attest→ Attested ─policy→ Permit ─credential→ Draft ─lease written, audit durable→ Credential
//! ```
//!
//! - [`attest`]: a JWT of a configured issuer or a registered client, a certificate of another SPIFFE trust domain, or what the kernel
//!   says of the peer of a Unix socket. Only this module makes an `Attested`: workload, instance, kind.
//! - [`proof`]: that whoever calls holds a key (DPoP). What such a caller gets is bound to the key, and worth nothing without it; so is a
//!   task token, which stands for the evidence on one task.
//! - [`task`]: what the workload declares. Its words are kept apart from what was attested, everywhere.
//! - [`policy`]: Cedar decides, on every (location, privilege) on its own; only this module makes a `Permit`.
//! - [`credential`]: a `Permit` becomes a `Draft` with an id and an expiry; only a `Draft` can be signed. A certificate takes permits for
//!   all of its task.
//! - [`lease`]: the record of every credential, task and end, in Redis or in an embedded file. The store is not trusted: records
//!   carry a MAC, and what a script relied on is checked before anything is signed.
//! - [`audit`]: one line for every decision and act, durable before the answer leaves.
//! - [`metrics`]: what is counted and timed; nothing is decided by it.
//! - [`failpoint`]: where a test can make a broker die.
//! - [`telemetry`]: what of that is sent on to a collector; nothing waits for it.
//! - [`queue`]: where what is told besides waits, and no more of it than there is room for.
//! - [`notice`]: what is dead or locked out, as brokers keep it and tell each other.
//! - [`revocation`]: what has ended, and the journal of it. An end is one record for a task id, and a task id names all its ancestors, so a revoke
//!   costs the same for one credential and for a hundred thousand.
//! - [`signal`]: who else is told of ends: receivers of Shared Signals, and those who run sandboxes.
//!
//! [`broker`] is the only place that knows the order of these steps: read it next. [`http`] and [`cli`] are edges that parse, call the
//! broker and map the [`error`]. [`serve`] puts the parts together. [`verify`] is what a service embeds; it knows nothing of the
//! server and builds alone (`--no-default-features --features verify`; with `follow` it fetches keys and follows the revocation feed by
//! itself, with `tower` it stands in front of an axum or tonic service). [`sidecar`] is that verifier with a door of its own, for proxies and
//! for services in other languages; [`evaluation`] is what both it and the broker answer in the form of `AuthZEN`.
//!
//! # How a credential is accepted
//!
//! *Online* (introspection): its lease is there and not revoked by itself, nothing in its task's lineage has ended, no lock matches, the generation is the current one, and
//! all records are genuine. So losing a lease or a task denies, and so does losing everything. The record of an *end* is also in the
//! journal of every broker that knows of it, which denies by that, and tells a store that lost it before any broker vouches for that again. *By the feed* (`/v1/revocations`):
//! it names neither the task nor one above it, nor the credential or its key, and the last state of it is a few seconds old at most. *By status list*
//! (`/status-lists/{id}`): the bit that the token names is not set, in a list that is ten seconds old at most. *By revocation list*
//! (`/pki/crl/{id}`): the certificate's serial is not on the list that it names, which is ten seconds old at most. *By keys alone*
//! (`/jwks`): until its `exp`, which no revoke can shorten.
//!
//! # Direction
//!
//! Edges → broker → leaves. The only sideways edge is the chain above: `credential → policy → attest → id`. A test fails when
//! an import goes another way.

#[cfg(feature = "broker")]
pub mod attest;
#[cfg(feature = "broker")]
pub mod audit;
#[cfg(feature = "broker")]
pub mod broker;
pub mod claims;
#[cfg(feature = "broker")]
pub mod cli;
pub mod clock;
#[cfg(feature = "broker")]
pub mod config;
#[cfg(feature = "broker")]
pub mod credential;
pub mod error;
#[cfg(feature = "broker")]
pub mod evaluation;
#[cfg(feature = "broker")]
pub mod failpoint;
#[cfg(feature = "broker")]
pub mod http;
pub mod id;
pub mod jose;
#[cfg(feature = "broker")]
pub mod key_file;
#[cfg(feature = "broker")]
pub mod lease;
#[cfg(feature = "broker")]
pub mod metrics;
#[cfg(feature = "broker")]
pub mod notice;
#[cfg(feature = "broker")]
pub mod own_dir;
#[cfg(feature = "broker")]
pub mod party;
#[cfg(feature = "broker")]
pub mod pem;
#[cfg(feature = "broker")]
pub mod policy;
pub mod proof;
#[cfg(feature = "broker")]
pub mod queue;
#[cfg(feature = "broker")]
pub mod revocation;
#[cfg(feature = "broker")]
mod rsa;
#[cfg(feature = "broker")]
pub mod secret_file;
#[cfg(feature = "broker")]
pub mod serve;
#[cfg(feature = "broker")]
pub mod sidecar;
#[cfg(feature = "broker")]
pub mod signal;
pub mod task;
#[cfg(feature = "broker")]
pub mod telemetry;
#[cfg(feature = "verify")]
pub mod verify;
