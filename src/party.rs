//! Services, operators and owners: the callers that are known by configuration rather than by attestation. Only the SHA-256 of
//! a bearer token is ever configured; people may have an issuer of their own instead.

mod owner;
mod person;

pub use owner::OwnerConfig;
pub use person::{GrantConfig, OperatorIssuerConfig, Person};

use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt, sync::Arc};

use crate::{
    attest::Rejected,
    claims::Confirmation,
    clock::Time,
    error::Error,
    id::{Location, SpiffeId, sha256_hex},
    jose::{SigningAlgorithm, Unverified},
    task::CredentialType,
};
use owner::Owners;
use person::OperatorIssuers;

/// How old what a service has heard of the revocation feed may be, in seconds, where it does not say so.
const FRESHNESS: u32 = 5;

/// A `[[service]]`: who is called, and verifies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Its name, in the audit.
    pub name: String,
    /// What tokens for it have as `aud`, byte for byte.
    pub audiences: Vec<Location>,
    /// Whether its tokens are bound to a key of their holder; always, where nothing is said.
    #[serde(default)]
    pub binding: Binding,
    /// How it learns of a revoke; by asking, where nothing is said.
    #[serde(default)]
    pub revocation: Revocation,
    /// How old what it has heard of the revocation feed may be, in seconds, before it denies.
    #[serde(default)]
    pub freshness: Option<u32>,
    /// What its access tokens are signed with; ES256, where nothing is said.
    #[serde(default)]
    pub algorithm: SigningAlgorithm,
    /// SHA-256 of its bearer tokens, in lower-case hexadecimal.
    #[serde(default)]
    pub token_sha256: Vec<String>,
    /// Whether it reports what it sees done for a task: a gateway.
    #[serde(default)]
    pub reports: bool,
}

/// Whether the tokens of a service are bound to a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Never.
    None,
    /// Where the workload brings a key.
    Offered,
    /// Always.
    #[default]
    Required,
}

impl Binding {
    /// What a credential is bound to whose workload holds this key, if it showed one.
    ///
    /// # Errors
    /// [`Error::ProofInvalid`] where it has to be bound and cannot be.
    pub fn of(self, form: CredentialType, key: Option<Confirmation>) -> Result<Option<Confirmation>, Error> {
        match (self, form, key) {
            (Self::None, _, _) | (Self::Offered, CredentialType::Jwt, _) => Ok(None),
            (Self::Required, CredentialType::Jwt, _) => Err(Error::invalid(
                "this service takes bound tokens alone, and a JWT-SVID is never bound: ask for an access token",
            )),
            (Self::Required, CredentialType::AccessToken, None) => Err(Error::ProofInvalid(
                "this service takes bound tokens alone, so send one, or show a client certificate in the TLS handshake",
            )),
            (Self::Required | Self::Offered, CredentialType::AccessToken, key) => Ok(key),
        }
    }
}

/// How a service learns of a revoke.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revocation {
    /// It asks at every call.
    #[default]
    Introspection,
    /// It reads status lists.
    StatusList,
    /// It takes certificates, and checks their revocation lists.
    Crl,
    /// It follows the revocation feed.
    Feed,
    /// It does not: what it accepts lives until its `exp`.
    None,
}

/// An `[[operator]]`: a person or tool of the security team.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorConfig {
    /// The name, in the audit.
    pub name: String,
    /// What they may do. None implies another but `viewer`.
    pub roles: Vec<Role>,
    /// SHA-256 of the bearer token, in lower-case hexadecimal.
    pub token_sha256: String,
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Keys and recovery.
    Admin,
    /// Approve tasks, release locks.
    Approver,
    /// Revoke, lock.
    Responder,
    /// Look.
    Viewer,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Responder, Self::Approver, Self::Admin];

    /// The word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Approver => "approver",
            Self::Responder => "responder",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What operators do. What each of it takes stands here alone: the broker goes by it, and the API's document is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Ask whether a token is alive.
    Introspect,
    /// See the signing keys.
    ListKeys,
    /// List tasks.
    ListTasks,
    /// See which workloads there are.
    ListWorkloads,
    /// See what was granted and not used.
    ReportUnused,
    /// Revoke a task.
    Revoke,
    /// Have signing keys replaced.
    RotateKeys,
    /// Find what an id or a name belongs to.
    Search,
    /// Go through the audit log.
    ShowAudit,
    /// Show a task, or watch it.
    ShowTask,
    /// Show what happened to a task.
    ShowTimeline,
    /// Taint a signing key.
    TaintKey,
}

impl Act {
    /// The role that it takes.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Introspect
            | Self::ListKeys
            | Self::ListTasks
            | Self::ListWorkloads
            | Self::ReportUnused
            | Self::Search
            | Self::ShowAudit
            | Self::ShowTask
            | Self::ShowTimeline => Role::Viewer,
            Self::Revoke => Role::Responder,
            Self::RotateKeys | Self::TaintKey => Role::Admin,
        }
    }

    /// Whether those who act for an owner do it too, with what is that owner's.
    #[must_use]
    pub fn is_for_owners(self) -> bool {
        match self {
            Self::ListTasks
            | Self::ReportUnused
            | Self::Revoke
            | Self::Search
            | Self::ShowAudit
            | Self::ShowTask
            | Self::ShowTimeline => true,
            Self::Introspect | Self::ListKeys | Self::ListWorkloads | Self::RotateKeys | Self::TaintKey => false,
        }
    }
}

/// A service that is known.
#[derive(Debug)]
pub struct Service(ServiceConfig);

impl Service {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it reports what it sees.
    #[must_use]
    pub fn reports(&self) -> bool {
        self.0.reports
    }

    /// Whether it is the audience.
    #[must_use]
    pub fn answers_for(&self, audience: &Location) -> bool {
        self.0.audiences.contains(audience)
    }
}

/// An operator who is known.
#[derive(Debug)]
pub struct Operator {
    name: String,
    roles: Vec<Role>,
    member: Option<Member>,
    until: Option<Time>,
}

impl Operator {
    /// The name: that of the configuration; of somebody whom an issuer vouches for, the issuer, `#`, and what it calls them. No two have the
    /// same.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether they have the role. Every operator is a viewer.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        role == Role::Viewer || self.roles.contains(&role)
    }

    /// Whether their roles allow it.
    #[must_use]
    pub fn may(&self, act: Act) -> bool {
        self.is(act.role())
    }

    /// For whom they act besides.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// When they have to prove again who they are, where they do.
    #[must_use]
    pub fn until(&self) -> Option<Time> {
        self.until
    }
}

/// Somebody who acts for owners, because an issuer says that they are in one of their groups.
#[derive(Debug)]
pub struct Member {
    name: String,
    owners: Vec<String>,
    until: Time,
}

impl Member {
    /// The name, as that of an operator.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The owners; there is one at least.
    #[must_use]
    pub fn owners(&self) -> &[String] {
        &self.owners
    }

    /// Whether they act for this owner.
    #[must_use]
    pub fn acts_for(&self, owner: &str) -> bool {
        self.owners.iter().any(|one| one == owner)
    }

    /// When they have to prove again who they are.
    #[must_use]
    pub fn until(&self) -> Time {
        self.until
    }
}

/// Who a bearer token belongs to.
#[derive(Debug, Clone)]
pub enum Party {
    /// A service.
    Service(Arc<Service>),
    /// An operator.
    Operator(Arc<Operator>),
}

/// Everybody who is known by configuration.
#[derive(Default)]
pub struct Parties {
    services: Vec<Arc<Service>>,
    by_token: HashMap<String, Party>,
    issuers: OperatorIssuers,
    owners: Owners,
}

impl Parties {
    /// Takes the configured services, operators and owners, and reads the key files of the operators' issuers.
    ///
    /// # Errors
    /// Every mistake, each a sentence.
    pub fn build(
        services: Vec<ServiceConfig>,
        operators: Vec<OperatorConfig>,
        issuers: Vec<OperatorIssuerConfig>,
        owners: Vec<OwnerConfig>,
    ) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut parties = Self::default();
        for config in services {
            check_service(&config, &parties.services, &mut mistakes);
            let service = Arc::new(Service(config));
            for digest in &service.0.token_sha256 {
                parties.know(digest, Party::Service(service.clone()), service.name(), &mut mistakes);
            }
            parties.services.push(service);
        }
        parties.owners = Owners::build(owners, &mut mistakes);
        parties.issuers = OperatorIssuers::build(issuers, &parties.owners, &mut mistakes);
        let mut names = Vec::new();
        for config in operators {
            if config.name.is_empty() || names.contains(&config.name) {
                mistakes.push(format!("operator `{}`: every operator needs a name of their own", config.name));
            }
            if config.roles.is_empty() {
                mistakes
                    .push(format!("operator `{}`: `roles` lists viewer, responder, approver or admin", config.name));
            }
            if parties.issuers.could_name(&config.name) {
                mistakes.push(format!("operator `{}`: people of an [[operator_issuer]] are called so", config.name));
            }
            names.push(config.name.clone());
            let OperatorConfig { name, roles, token_sha256 } = config;
            let operator = Arc::new(Operator { name, roles, member: None, until: None });
            parties.know(&token_sha256, Party::Operator(operator.clone()), operator.name(), &mut mistakes);
        }
        if mistakes.is_empty() { Ok(parties) } else { Err(mistakes) }
    }

    fn know(&mut self, digest: &str, party: Party, name: &str, mistakes: &mut Vec<String>) {
        let fits = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !fits {
            mistakes.push(format!(
                "`{name}`: `token_sha256` is 64 hexadecimal digits in lower case (`sha256sum` prints them)"
            ));
        } else if self.by_token.insert(digest.to_owned(), party).is_some() {
            mistakes.push(format!("`{name}`: `token_sha256` is already another's; every token belongs to one party"));
        }
    }

    /// What is allowed and weak about them, each a sentence.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<String> {
        let mut found: Vec<String> = self.services.iter().flat_map(|service| weaknesses_of(&service.0)).collect();
        if self.services.is_empty() {
            found.push(
                "no [[service]]: credentials are minted for whatever location policy permits, and nobody can ask whether one was \
                 revoked; list the services"
                    .to_owned(),
            );
        }
        let responds = |party: &Party| matches!(party, Party::Operator(operator) if operator.is(Role::Responder));
        if !self.by_token.values().any(responds) && !self.issuers.grant(Role::Responder) {
            found.push("no operator has the role `responder`: only a workload itself can end its tasks".to_owned());
        }
        found.extend(self.issuers.weaknesses());
        found
    }

    /// Who a bearer token belongs to. Digests are compared, so timing says nothing about the token.
    #[must_use]
    pub fn by_token(&self, token: &str) -> Option<Party> {
        self.by_token.get(&sha256_hex(token.as_bytes())).cloned()
    }

    /// Who presents a token of the operators' issuers; `None` where it names none of them.
    ///
    /// # Errors
    /// When the token is not to be believed, or its issuer's keys are out of reach.
    pub async fn recognise(&self, token: &Unverified<'_>, now: Time) -> Option<Result<Person, Rejected>> {
        self.issuers.recognise(token, &self.owners, now).await
    }

    /// Which of these issuers vouch for people too, each a mistake: what proves a workload must never pass for an operator.
    pub fn shared_issuers<'a>(&self, of_workloads: impl Iterator<Item = &'a str>) -> Vec<String> {
        let shared = of_workloads.filter_map(|issuer| self.issuers.name_of(issuer));
        let mistake = |name| {
            format!(
                "operator_issuer `{name}`: its `issuer` vouches for workloads too, by an [[attestor]]; people need one of their own"
            )
        };
        shared.map(mistake).collect()
    }

    /// Takes over the keys of issuers that `before` has fetched.
    pub fn inherit(&self, before: &Self) {
        self.issuers.inherit(&before.issuers);
    }

    /// Why a workload may not name this owner, where owners are configured and it may not.
    #[must_use]
    pub fn refuses_owner(&self, owner: &str, workload: &SpiffeId) -> Option<&'static str> {
        self.owners.refuses(owner, workload)
    }

    /// Whom to talk to about a task of this owner.
    #[must_use]
    pub fn contacts(&self, owner: &str) -> &[String] {
        self.owners.contacts(owner)
    }

    /// How the credentials for this audience are bound: where no service is configured, not at all.
    #[must_use]
    pub fn binding(&self, audience: &Location) -> Binding {
        let service = self.services.iter().find(|service| service.answers_for(audience));
        match service {
            Some(service) => service.0.binding,
            None if self.services.is_empty() => Binding::None,
            None => Binding::Required,
        }
    }

    /// What a credential for this audience is signed with.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a JWT-SVID where that is RS256.
    pub fn algorithm(&self, audience: &Location, form: CredentialType) -> Result<SigningAlgorithm, Error> {
        let service = self.services.iter().find(|service| service.answers_for(audience));
        match (service.map_or(SigningAlgorithm::ES256, |service| service.0.algorithm), form) {
            (SigningAlgorithm::RS256, CredentialType::Jwt) => Err(Error::invalid(
                "this service takes RS256, and a JWT-SVID is signed with ES256 alone: ask for an access token",
            )),
            (algorithm, _) => Ok(algorithm),
        }
    }

    /// Whether the use of a credential for this audience can be seen: its service asks, or reports.
    #[must_use]
    pub fn sees_uses(&self, audience: &Location) -> bool {
        let service = self.services.iter().find(|service| service.answers_for(audience));
        service.is_some_and(|service| service.reports() || service.0.revocation == Revocation::Introspection)
    }

    /// The names of the services whose tokens are signed with RS256.
    #[must_use]
    pub fn with_rs256(&self) -> Vec<&str> {
        let with_rs256 = self.services.iter().filter(|service| service.0.algorithm == SigningAlgorithm::RS256);
        with_rs256.map(|service| service.name()).collect()
    }

    /// For how long a state of the revocation feed is good, in seconds: what the service asks for that waits the least.
    #[must_use]
    pub fn freshness(&self) -> u32 {
        self.services.iter().filter_map(|service| service.0.freshness).min().unwrap_or(FRESHNESS)
    }

    /// Whether a credential may be minted for this audience: it is a service's, or no service is configured at all.
    #[must_use]
    pub fn serves(&self, audience: &Location) -> bool {
        self.services.is_empty() || self.services.iter().any(|service| service.answers_for(audience))
    }
}

fn weaknesses_of(config: &ServiceConfig) -> Vec<String> {
    let name = &config.name;
    let mut found = Vec::new();
    if config.binding == Binding::None {
        found.push(format!(
            "service `{name}`: with `binding = \"none\"` its tokens serve whoever holds them; use \"offered\" where it can \
             check whose they are"
        ));
    }
    if config.revocation == Revocation::None {
        found.push(format!(
            "service `{name}`: with `revocation = \"none\"` no revoke reaches it, and what it was shown lives until its `exp`; \
             use \"introspection\""
        ));
    }
    found
}

fn check_service(config: &ServiceConfig, before: &[Arc<Service>], mistakes: &mut Vec<String>) {
    let name = &config.name;
    if name.is_empty() || before.iter().any(|other| other.name() == name) {
        mistakes.push(format!("service `{name}`: every service needs a name of its own"));
    }
    if config.audiences.is_empty() {
        mistakes.push(format!("service `{name}`: `audiences` lists at least one URI"));
    }
    for audience in &config.audiences {
        if before.iter().any(|other| other.answers_for(audience)) {
            mistakes.push(format!("service `{name}`: the audience {audience} is already another service's"));
        }
    }
    if config.reports && config.token_sha256.is_empty() {
        mistakes.push(format!("service `{name}`: `reports = true` needs a `token_sha256` to authenticate with"));
    }
    if config.freshness.is_some_and(|freshness| !(1..=60).contains(&freshness)) {
        mistakes.push(format!("service `{name}`: `freshness` is 1 to 60 seconds"));
    }
    if config.freshness.is_some() && config.revocation != Revocation::Feed {
        mistakes.push(format!("service `{name}`: `freshness` is for `revocation = \"feed\"`: set that, or remove it"));
    }
    if config.revocation == Revocation::Introspection && config.token_sha256.is_empty() {
        mistakes.push(format!(
            "service `{name}`: `revocation = \"introspection\"` needs a `token_sha256` to authenticate with"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(toml: &str) -> ServiceConfig {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let services = vec![
            service("name='git'\naudiences=['https://git']\nbinding='required'\nrevocation='introspection'"),
            service("name='git'\naudiences=['https://git']\nbinding='none'\nrevocation='none'\ntoken_sha256=['ABC']"),
        ];
        let operators = vec![OperatorConfig { name: "alice".into(), roles: vec![], token_sha256: "x".into() }];
        let mistakes = Parties::build(services, operators, vec![], vec![]).err().unwrap();
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
    }

    #[test]
    fn a_token_finds_its_party_and_roles_do_not_imply_each_other() {
        let operator =
            OperatorConfig { name: "alice".into(), roles: vec![Role::Responder], token_sha256: sha256_hex(b"secret") };
        let parties = Parties::build(vec![], vec![operator], vec![], vec![]).ok().unwrap();
        let Some(Party::Operator(alice)) = parties.by_token("secret") else { panic!("unknown") };
        assert!(
            alice.is(Role::Responder) && alice.is(Role::Viewer) && !alice.is(Role::Admin) && !alice.is(Role::Approver)
        );
        assert!(parties.by_token("Secret").is_none());
    }
}
