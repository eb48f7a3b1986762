//! `remit openapi`

use super::show::say;
use crate::http::document;

pub(super) const EXAMPLES: &str = "Example:
  remit openapi > openapi.json";

/// Prints what a broker of this version serves at `/openapi.json`.
pub(super) fn run() {
    say(document().trim_end());
}
