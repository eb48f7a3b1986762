//! People: whom an issuer of the operators' own vouches for, and what its claims make of them. An issuer of workloads is never one of
//! people, so nothing that proves the one can pass for the other.

use serde::Deserialize;
use std::path::{Path, PathBuf};

use super::{Member, Operator, Role, owner::Owners};
use crate::{
    attest::{Believed, Issuer, IssuerTerms, Rejected},
    clock::Time,
    jose::Unverified,
};

/// What kinds of token people have: ID tokens, and access tokens (RFC 9068). Others of the same issuer, such as logout tokens, are none.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];
/// In seconds.
const DAY: u32 = 86_400;

/// An `[[operator_issuer]]`: an `OpenID` Connect issuer that vouches for people.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorIssuerConfig {
    /// What it is called in messages.
    pub name: String,
    /// The `iss` of its tokens, byte for byte.
    pub issuer: String,
    /// What must be in the `aud` of its tokens.
    pub audience: String,
    /// A file with its JWK set, or
    pub keys_file: Option<PathBuf>,
    /// the HTTPS address of its JWK set.
    pub jwks_url: Option<String>,
    /// The certificate authorities (PEM) that may vouch for `jwks_url`, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// The algorithms its tokens may be signed with; default `RS256` and `ES256`.
    pub algorithms: Option<Vec<String>>,
    /// The claim that names a person; default `sub`.
    #[serde(default = "subject")]
    pub name_claim: String,
    /// The claim that lists the groups by which owners know their members; left out, there are none.
    pub groups_claim: Option<String>,
    /// Which claims bring which roles.
    #[serde(default, rename = "grant")]
    pub grants: Vec<GrantConfig>,
    /// The oldest token that is accepted, in seconds; default 3600.
    #[serde(default = "hour")]
    pub max_age: u32,
    /// How far the issuer's clock may be ahead, in seconds; default 5, at most 60.
    #[serde(default = "five")]
    pub leeway: u32,
    /// The shortest time between two fetches of `jwks_url`, in seconds; default 30.
    #[serde(default = "thirty")]
    pub refetch_interval: u32,
}

/// An `[[operator_issuer.grant]]`: what a claim brings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantConfig {
    /// The claim: its name, or a JSON pointer to it.
    pub claim: String,
    /// What it says, or what is in its list.
    pub value: String,
    /// The roles.
    pub roles: Vec<Role>,
}

impl OperatorIssuerConfig {
    /// Takes relative paths as relative to `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        for path in self.keys_file.iter_mut().chain(&mut self.ca_file) {
            *path = base.join(&path);
        }
    }

    /// The files that it names.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.keys_file.iter().chain(&self.ca_file).map(PathBuf::as_path)
    }

    fn terms(&self) -> IssuerTerms<'_> {
        IssuerTerms {
            section: "operator_issuer",
            name: &self.name,
            issuer: Some(&self.issuer),
            audience: &self.audience,
            keys_file: self.keys_file.as_deref(),
            jwks_url: self.jwks_url.as_deref(),
            ca_file: self.ca_file.as_deref(),
            algorithms: self.algorithms.as_deref(),
            max_age: self.max_age,
            leeway: self.leeway,
            refetch_interval: self.refetch_interval,
        }
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut wrong = |what: &str| mistakes.push(format!("operator_issuer `{}`: {what}", self.name));
        let mut claims = [&self.name_claim].into_iter().chain(&self.groups_claim);
        if !claims.all(|claim| Issuer::can_name(claim)) {
            wrong("`name_claim` and `groups_claim` are names of claims, or JSON pointers to them");
        }
        if self.grants.is_empty() && self.groups_claim.is_none() {
            wrong("it makes nobody an operator or an owner: add an [[operator_issuer.grant]], or set `groups_claim`");
        }
        for (at, grant) in self.grants.iter().enumerate() {
            let GrantConfig { claim, value, roles } = grant;
            if !Issuer::can_name(claim) || value.is_empty() {
                wrong("a grant has a `claim` (its name, or a JSON pointer to it) and a `value` that it says");
            }
            if roles.is_empty() {
                wrong(&format!("the grant for `{value}`: `roles` lists viewer, responder, approver or admin"));
            }
            if self.grants[..at].iter().any(|other| (&other.claim, &other.value) == (claim, value)) {
                wrong(&format!("there are two grants for `{value}` in the same claim; make one of them"));
            }
        }
        mistakes
    }
}

/// An issuer that vouches for people.
pub(super) struct OperatorIssuer {
    config: OperatorIssuerConfig,
    issuer: Issuer,
}

/// Somebody whom an issuer of the operators' own vouches for.
#[derive(Debug)]
pub enum Person {
    /// An operator.
    Operator(Operator),
    /// No operator, and one of those who act for an owner.
    Owner(Member),
    /// Neither. What they are called.
    Stranger(String),
}

impl OperatorIssuer {
    fn build(config: OperatorIssuerConfig) -> Result<Self, Vec<String>> {
        let mut mistakes = config.mistakes();
        let issuer = Issuer::build(&config.terms()).map_err(|more| mistakes.extend(more)).ok();
        match issuer {
            Some(issuer) if mistakes.is_empty() => Ok(Self { config, issuer }),
            _ => Err(mistakes),
        }
    }

    /// What its claims make of whoever a token is about.
    fn describe(&self, said: &Believed, owners: &Owners) -> Result<Person, Rejected> {
        let refused = |why: &str| Err(Rejected::Refused(why.to_owned()));
        if said.has("cnf") {
            return refused("the token is bound to a key, which operators have no way to show");
        }
        let claim = &*self.config.name_claim;
        if claim == "email" && said.has("email_verified") && !said.is_true("email_verified") {
            return refused("the issuer did not verify the address that would be the name");
        }
        let Some(name) = said.text(claim) else {
            return refused("the claim that names the operator is absent or no text");
        };
        // An issuer has no fragment, so no two pairs are written alike.
        let name = format!("{}#{name}", self.issuer.id());
        let groups = self.config.groups_claim.as_deref();
        let owners = groups.map(|claim| owners.of_groups(|group| said.says(claim, group))).unwrap_or_default();
        let until = said.until();
        let member = (!owners.is_empty()).then(|| Member { name: name.clone(), owners, until });
        let granted = self.config.grants.iter().filter(|grant| said.says(&grant.claim, &grant.value));
        let roles: Vec<Role> = granted.flat_map(|grant| grant.roles.iter().copied()).collect();
        Ok(match member {
            member if !roles.is_empty() => Person::Operator(Operator { name, roles, member, until: Some(until) }),
            Some(member) => Person::Owner(member),
            None => Person::Stranger(name),
        })
    }
}

/// The issuers that vouch for people.
#[derive(Default)]
pub(super) struct OperatorIssuers(Vec<OperatorIssuer>);

impl OperatorIssuers {
    pub(super) fn build(configs: Vec<OperatorIssuerConfig>, owners: &Owners, mistakes: &mut Vec<String>) -> Self {
        let mut issuers = Vec::new();
        let grouped = configs.iter().filter(|config| config.groups_claim.is_some()).count();
        if grouped > 1 {
            mistakes.push(
                "`groups_claim` is set in more than one [[operator_issuer]]: who is in the groups of owners is for one of them to say"
                    .to_owned(),
            );
        }
        if grouped == 0
            && let Some(owner) = owners.with_groups().next()
        {
            mistakes.push(format!("owner `{owner}`: `groups` need an [[operator_issuer]] with a `groups_claim`"));
        }
        let mut known: Vec<(String, String)> = Vec::new();
        for config in configs {
            let (name, issuer) = (config.name.clone(), config.issuer.clone());
            if name.is_empty() || known.iter().any(|(other, _)| *other == name) {
                mistakes.push(format!("operator_issuer `{name}`: every one needs a name of its own"));
            }
            if let Some((other, _)) = known.iter().find(|(_, other)| *other == issuer) {
                mistakes.push(format!("operator_issuer `{name}`: operator_issuer `{other}` has the same `issuer`"));
            }
            known.push((name, issuer));
            match OperatorIssuer::build(config) {
                Ok(issuer) => issuers.push(issuer),
                Err(more) => mistakes.extend(more),
            }
        }
        Self(issuers)
    }

    /// Who presents a token, where it names one of these issuers.
    pub(super) async fn recognise(
        &self,
        token: &Unverified<'_>,
        owners: &Owners,
        now: Time,
    ) -> Option<Result<Person, Rejected>> {
        let issuer = self.find(token.issuer()?)?;
        let believed = issuer.issuer.believe(token, &TYPES, now).await;
        Some(believed.and_then(|said| issuer.describe(&said, owners)))
    }

    /// What the one with this `iss` is called.
    pub(super) fn name_of(&self, issuer: &str) -> Option<&str> {
        self.find(issuer).map(|issuer| &*issuer.config.name)
    }

    /// Whether a name could be that of a person.
    pub(super) fn could_name(&self, name: &str) -> bool {
        name.split_once('#').is_some_and(|(issuer, _)| self.find(issuer).is_some())
    }

    /// Whether a role can be had by somebody.
    pub(super) fn grant(&self, role: Role) -> bool {
        self.0.iter().flat_map(|issuer| &issuer.config.grants).any(|grant| grant.roles.contains(&role))
    }

    /// What is allowed and weak about them, each a sentence.
    pub(super) fn weaknesses(&self) -> impl Iterator<Item = String> {
        let configs = self.0.iter().map(|issuer| &issuer.config);
        configs.filter(|config| config.max_age > DAY).map(|config| {
            format!(
                "operator_issuer `{}`: with this `max_age`, whoever loses a role keeps it for up to {} hours; lower it",
                config.name,
                config.max_age / 3600
            )
        })
    }

    pub(super) fn inherit(&self, before: &Self) {
        for issuer in &self.0 {
            if let Some(before) = before.find(issuer.issuer.id()) {
                issuer.issuer.inherit(&before.issuer);
            }
        }
    }

    fn find(&self, issuer: &str) -> Option<&OperatorIssuer> {
        self.0.iter().find(|one| one.issuer.id() == issuer)
    }
}

fn subject() -> String {
    "sub".into()
}
fn hour() -> u32 {
    3600
}
fn five() -> u32 {
    5
}
fn thirty() -> u32 {
    30
}
