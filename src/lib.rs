//! Remit, a just-in-time credential broker.

pub mod attest;
pub mod audit;
pub mod claims;
pub mod clock;
pub mod credential;
pub mod error;
pub mod id;
pub mod jose;
pub mod lease;
pub mod policy;
pub mod revocation;
pub mod secret_file;
pub mod task;
pub mod verify;
