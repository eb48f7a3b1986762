//! Remit, a just-in-time credential broker.

pub mod attest;
pub mod audit;
pub mod clock;
pub mod error;
pub mod id;
pub mod jose;
pub mod lease;
pub mod policy;
pub mod task;
