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
    id::{Location, SpiffeId, is_sha256_hex, sha256_hex},
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
    /// What has a place in the status lists: each task, where nothing is said.
    #[serde(default)]
    pub status: StatusMode,
    /// How old what it has heard of the revocation feed may be, in seconds, before it denies.
    #[serde(default)]
    pub freshness: Option<u32>,
    /// What its access tokens are signed with; ES256, where nothing is said.
    #[serde(default)]
    pub algorithm: SigningAlgorithm,
    /// SHA-256 of its bearer tokens, in lower-case hexadecimal.
    #[serde(default)]
    pub token_sha256: Vec<String>,
    /// SHA-256 of the public keys (`SubjectPublicKeyInfo`) of its client certificates, in lower-case hexadecimal. Where there are tokens
    /// too, they are good together alone.
    #[serde(default)]
    pub public_key_sha256: Vec<String>,
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

/// What has a place of its own in the status lists, of what a service is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusMode {
    /// The task: all its tokens share the place.
    #[default]
    Task,
    /// Each token, so that the lists show when one of them is revoked by itself.
    Token,
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
    #[serde(default)]
    pub token_sha256: Option<String>,
    /// SHA-256 of the public keys of their client certificates, as a service's.
    #[serde(default)]
    pub public_key_sha256: Vec<String>,
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
    /// Let a lock stand for longer.
    ExtendLock,
    /// Ask whether a token is alive.
    Introspect,
    /// See the signing keys.
    ListKeys,
    /// See the locks.
    ListLocks,
    /// List tasks.
    ListTasks,
    /// See which workloads there are.
    ListWorkloads,
    /// Lock out.
    Lock,
    /// Release a lock.
    ReleaseLock,
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
    /// See where the end of a task has arrived.
    ShowReach,
    /// Taint a signing key.
    TaintKey,
    /// Have a receiver told that what it is told arrives.
    VerifyReceiver,
}

impl Act {
    /// The role that it takes.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Introspect
            | Self::ListKeys
            | Self::ListLocks
            | Self::ListTasks
            | Self::ListWorkloads
            | Self::ReportUnused
            | Self::Search
            | Self::ShowAudit
            | Self::ShowTask
            | Self::ShowTimeline
            | Self::ShowReach => Role::Viewer,
            Self::Lock | Self::Revoke => Role::Responder,
            Self::ExtendLock | Self::ReleaseLock => Role::Approver,
            Self::RotateKeys | Self::TaintKey | Self::VerifyReceiver => Role::Admin,
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
            | Self::ShowTimeline
            | Self::ShowReach => true,
            Self::ExtendLock
            | Self::Introspect
            | Self::ListKeys
            | Self::ListLocks
            | Self::ListWorkloads
            | Self::Lock
            | Self::ReleaseLock
            | Self::RotateKeys
            | Self::TaintKey
            | Self::VerifyReceiver => false,
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

/// Who a bearer token or a client certificate belongs to.
#[derive(Debug, Clone)]
pub enum Party {
    /// A service.
    Service(Arc<Service>),
    /// An operator.
    Operator(Arc<Operator>),
}

/// Somebody who is known, and what all they have to show.
#[derive(Debug, Clone)]
struct Known {
    party: Party,
    tokens: Vec<String>,
    keys: Vec<String>,
}

impl Known {
    /// Whether this is all that they have to show.
    fn shows(&self, token: Option<&str>, key: Option<&str>) -> bool {
        let is_good = |of: &[String], shown: Option<&str>| {
            of.is_empty() || shown.is_some_and(|shown| of.iter().any(|one| one == shown))
        };
        is_good(&self.tokens, token) && is_good(&self.keys, key)
    }
}

/// What somebody who is known showed is only a part of what they have to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfShown;

/// Everybody who is known by configuration.
#[derive(Default)]
pub struct Parties {
    services: Vec<Arc<Service>>,
    by_token: HashMap<String, Known>,
    by_key: HashMap<String, Known>,
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
            let (tokens, keys) = (service.0.token_sha256.clone(), service.0.public_key_sha256.clone());
            parties.know(
                &Known { party: Party::Service(service.clone()), tokens, keys },
                service.name(),
                &mut mistakes,
            );
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
            let OperatorConfig { name, roles, token_sha256, public_key_sha256: keys } = config;
            if token_sha256.is_none() && keys.is_empty() {
                mistakes.push(format!(
                    "operator `{name}`: a `token_sha256` or a `public_key_sha256` is what they are known by"
                ));
            }
            let operator = Arc::new(Operator { name, roles, member: None, until: None });
            let (party, tokens) = (Party::Operator(operator.clone()), token_sha256.into_iter().collect());
            parties.know(&Known { party, tokens, keys }, operator.name(), &mut mistakes);
        }
        if mistakes.is_empty() { Ok(parties) } else { Err(mistakes) }
    }

    fn know(&mut self, known: &Known, name: &str, mistakes: &mut Vec<String>) {
        let all =
            [("token_sha256", &known.tokens, &mut self.by_token), ("public_key_sha256", &known.keys, &mut self.by_key)];
        for (member, digests, by) in all {
            for digest in digests {
                if !is_sha256_hex(digest) {
                    mistakes.push(format!(
                        "`{name}`: `{member}` is 64 hexadecimal digits in lower case (`sha256sum` prints them)"
                    ));
                } else if by.insert(digest.clone(), known.clone()).is_some() {
                    mistakes.push(format!("`{name}`: `{member}` is already another's; each belongs to one party"));
                }
            }
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
        let responds =
            |known: &Known| matches!(&known.party, Party::Operator(operator) if operator.is(Role::Responder));
        if !self.by_token.values().chain(self.by_key.values()).any(responds) && !self.issuers.grant(Role::Responder) {
            found.push("no operator has the role `responder`: only a workload itself can end its tasks".to_owned());
        }
        found.extend(self.issuers.weaknesses());
        found
    }

    /// Who shows this bearer token, and this key of a client certificate (SHA-256 in lower-case hexadecimal) if any; `None` where neither
    /// is anybody's. Digests are compared, so timing says nothing about the token. Somebody's token counts before the certificate.
    ///
    /// # Errors
    /// [`HalfShown`] where whose it is has to show more.
    #[must_use]
    pub fn find(&self, token: Option<&str>, key: Option<&str>) -> Option<Result<Party, HalfShown>> {
        let token = token.map(|token| sha256_hex(token.as_bytes()));
        let known = match &token {
            Some(token) => self.by_token.get(token),
            None => key.and_then(|key| self.by_key.get(key)),
        }?;
        Some(if known.shows(token.as_deref(), key) { Ok(known.party.clone()) } else { Err(HalfShown) })
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

    /// What has a place in the status lists, of tokens for this audience.
    #[must_use]
    pub fn status(&self, audience: &Location) -> StatusMode {
        let service = self.services.iter().find(|service| service.answers_for(audience));
        service.map_or(StatusMode::Task, |service| service.0.status)
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
    let is_nobody = config.token_sha256.is_empty() && config.public_key_sha256.is_empty();
    if config.reports && is_nobody {
        mistakes.push(format!(
            "service `{name}`: `reports = true` needs a `token_sha256` or a `public_key_sha256` to authenticate with"
        ));
    }
    if config.freshness.is_some_and(|freshness| !(1..=60).contains(&freshness)) {
        mistakes.push(format!("service `{name}`: `freshness` is 1 to 60 seconds"));
    }
    if config.freshness.is_some() && config.revocation != Revocation::Feed {
        mistakes.push(format!("service `{name}`: `freshness` is for `revocation = \"feed\"`: set that, or remove it"));
    }
    if config.revocation == Revocation::Introspection && is_nobody {
        mistakes.push(format!(
            "service `{name}`: `revocation = \"introspection\"` needs a `token_sha256` or a `public_key_sha256` to authenticate with"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(toml: &str) -> ServiceConfig {
        toml::from_str(toml).unwrap()
    }

    fn operator(roles: Vec<Role>, token: Option<&str>, keys: &[&str]) -> OperatorConfig {
        let public_key_sha256 = keys.iter().map(|&key| key.to_owned()).collect();
        OperatorConfig { name: "alice".into(), roles, token_sha256: token.map(str::to_owned), public_key_sha256 }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let services = vec![
            service("name='git'\naudiences=['https://git']\nbinding='required'\nrevocation='introspection'"),
            service("name='git'\naudiences=['https://git']\nbinding='none'\nrevocation='none'\ntoken_sha256=['ABC']"),
        ];
        let operators = vec![operator(vec![], Some("x"), &[])];
        let mistakes = Parties::build(services, operators, vec![], vec![]).err().unwrap();
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
    }

    #[test]
    fn a_token_finds_its_party_and_roles_do_not_imply_each_other() {
        let operator = operator(vec![Role::Responder], Some(&sha256_hex(b"secret")), &[]);
        let parties = Parties::build(vec![], vec![operator], vec![], vec![]).ok().unwrap();
        let Some(Ok(Party::Operator(alice))) = parties.find(Some("secret"), None) else { panic!("unknown") };
        assert!(
            alice.is(Role::Responder) && alice.is(Role::Viewer) && !alice.is(Role::Admin) && !alice.is(Role::Approver)
        );
        assert!(parties.find(Some("Secret"), None).is_none());
    }

    #[test]
    fn who_has_a_token_and_a_certificate_shows_both() {
        let (token, key, other) = (sha256_hex(b"secret"), sha256_hex(b"key"), sha256_hex(b"other"));
        let parties = |token: Option<&str>| {
            let operator = operator(vec![Role::Viewer], token, &[&key]);
            Parties::build(vec![], vec![operator], vec![], vec![]).ok().unwrap()
        };
        let is = |found: Option<Result<Party, HalfShown>>| found.map(|found| found.is_ok());
        let both = parties(Some(&token));
        assert_eq!(is(both.find(Some("secret"), Some(&key))), Some(true));
        for (token, key) in [(Some("secret"), None), (Some("secret"), Some(&*other)), (None, Some(&*key))] {
            assert_eq!(is(both.find(token, key)), Some(false));
        }
        assert_eq!(is(both.find(Some("nobody's"), Some(&key))), None);
        let certificate = parties(None);
        assert_eq!(is(certificate.find(None, Some(&key))), Some(true));
        assert_eq!((is(certificate.find(None, Some(&other))), is(certificate.find(None, None))), (None, None));
    }
}
