//! What a proxy is told of a request that may go on: whose it is, in headers that the service behind it can go by.

use axum::http::{HeaderName, HeaderValue};
use std::fmt::Write as _;

use crate::{claims::Claims, verify::Verified};

/// Every header that is written, with its value. All of them are there at every time, so that what a client sent by the same name is
/// always overwritten; one that says nothing is empty.
pub(super) fn identity(verified: &Verified) -> [(HeaderName, HeaderValue); 10] {
    let Claims { sub, client_id, act, scope, jti, exp, task, .. } = verified.claims();
    let hops = std::iter::successors(act.as_ref(), |actor| actor.act.as_deref());
    let hops: Vec<_> = hops.map(|actor| plain(actor.sub.as_str())).collect();
    let say =
        |name, value: String| (HeaderName::from_static(name), value.try_into().unwrap_or(HeaderValue::from_static("")));
    [
        say("remit-task", plain(task.id.as_str())),
        say("remit-workload", plain(client_id.as_str())),
        say("remit-subject", plain(sub.workload())),
        // SPIFFE IDs have no comma.
        say("remit-actor", hops.join(",")),
        say("remit-owner", plain(&task.owner)),
        say("remit-kind", plain(task.kind.as_str())),
        say("remit-sandbox", plain(task.sandbox.as_deref().unwrap_or_default())),
        say("remit-privilege", plain(scope.as_str())),
        say("remit-lease", plain(jti.as_str())),
        say("remit-expires", exp.to_string()),
    ]
}

/// Text that means the same in every header, log and shell: what is no letter, digit or one of `-._~@:/+` of ASCII is written with percent
/// signs, octet by octet of UTF-8 (RFC 3986 section 2.1).
fn plain(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut plain, octet| {
        if octet.is_ascii_alphanumeric() || b"-._~@:/+".contains(&octet) {
            plain.push(char::from(octet));
        } else {
            let _ = write!(plain, "%{octet:02X}");
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_value_breaks_out_of_no_header() {
        assert_eq!(plain("team-payments@example.com"), "team-payments@example.com");
        assert_eq!(plain("spiffe://example.com/ci/a_b"), "spiffe://example.com/ci/a_b");
        assert_eq!(
            plain("a\r\nRemit-Task: b, \"c\" %41 é\0"),
            "a%0D%0ARemit-Task:%20b%2C%20%22c%22%20%2541%20%C3%A9%00"
        );
    }
}
