//! People: an issuer that vouches for operators and owners, as a company's single sign-on does.

use serde_json::{Value, json};

use super::{
    Stand,
    issuer::{Issuer, now, overlaid},
};

pub(crate) const SSO: &str = "https://sso.example.com";
/// What its tokens for the broker have as `aud`.
pub(crate) const SSO_AUDIENCE: &str = "remit";

/// The end of a configuration with the operator that the usual ones lack.
pub(crate) fn approver() -> String {
    let digest = remit::id::sha256_hex(super::APPROVER.as_bytes());
    format!("[[operator]]\nname = \"otto\"\nroles = [\"approver\"]\ntoken_sha256 = \"{digest}\"")
}

/// The end of a configuration with that issuer, an operator for every role that the usual ones lack, and two owners.
pub(crate) fn people() -> String {
    let grants = ["viewer", "responder", "approver", "admin"].map(|role| {
        format!("[[operator_issuer.grant]]\nclaim = \"groups\"\nvalue = \"sec-{role}s\"\nroles = [\"{role}\"]\n")
    });
    format!(
        r##"
{approver}
[[operator_issuer]]
name = "sso"
issuer = "{SSO}"
audience = "{SSO_AUDIENCE}"
keys_file = "sso-keys.json"
algorithms = ["ES256"]
name_claim = "email"
groups_claim = "groups"
{grants}
[[owner]]
id = "{payments}"
contacts = ["#payments", "payments-oncall@example.com"]
workloads = ["/ci/acme/*"]
groups = ["payments"]
[[owner]]
id = "other@example.com"
workloads = ["/ci/acme/other", "/ci/acme/payments"]
groups = ["others"]
[[owner]]
id = "nobody@example.com"
workloads = ["/nobody/*"]
"##,
        approver = approver(),
        grants = grants.concat(),
        payments = super::OWNER,
    )
}

impl Issuer {
    /// A token for a person, with these claims laid over the usual ones; `null` removes one.
    #[expect(clippy::needless_pass_by_value, reason = "callers write the JSON in place")]
    pub(crate) fn person(&self, typ: &str, over: Value) -> String {
        let now = now();
        let claims = json!({
            "iss": SSO, "aud": SSO_AUDIENCE, "sub": "248289761001", "email": "ann@example.com", "email_verified": true,
            "iat": now, "exp": now + 300, "groups": [],
        });
        self.key.sign(typ, &overlaid(claims, &over)).expect("signed")
    }
}

impl Stand {
    /// A token of a person in these groups.
    pub(crate) fn person(&self, groups: &[&str]) -> String {
        self.people.person("JWT", json!({ "groups": groups }))
    }
}
