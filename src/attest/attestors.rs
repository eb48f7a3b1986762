//! The configured attestors, and the way from evidence to the one that judges it.

use quick_cache::sync::Cache;
use secrecy::ExposeSecret as _;
use std::collections::{HashMap, HashSet};
use tokio::time::Instant;

use super::{
    Asserted, Attested, ClientCertificate, Config, Evidence, Rejected, Standing, client,
    oidc::{self, Verified},
    settings::Settings,
    svid::Svid,
    unix, weak, x509,
};
use crate::{
    clock::Time,
    id::{TrustDomain, sha256_hex},
    jose::Unverified,
};

/// How many verified tokens are remembered.
const REMEMBERED: usize = 8192;

/// Everything that turns evidence into [`Attested`].
pub struct Attestors {
    unix: Option<unix::Attestor>,
    /// By issuer.
    oidc: HashMap<String, oidc::Attestor>,
    /// By `client_id`.
    clients: HashMap<String, client::Attestor>,
    /// By trust domain.
    x509: HashMap<String, x509::Attestor>,
    /// This broker's own.
    domain: TrustDomain,
    /// What was verified, by the SHA-256 of the token or the certificates. What was refused is never in it.
    seen: Cache<String, Verified>,
    weaknesses: Vec<String>,
}

impl Attestors {
    /// Checks the configuration and reads the key files that it names; keys that have to be fetched are fetched when
    /// they are first needed.
    ///
    /// # Errors
    /// Every mistake at once, each a sentence that names the attestor and says what to change.
    pub fn build(configs: &[Config], trust_domain: &TrustDomain) -> Result<Self, Vec<String>> {
        let mut attestors = Self {
            unix: None,
            oidc: HashMap::new(),
            clients: HashMap::new(),
            x509: HashMap::new(),
            domain: trust_domain.clone(),
            seen: Cache::new(REMEMBERED),
            weaknesses: Vec::new(),
        };
        let (mut mistakes, mut names, mut shapes) = (Vec::new(), HashSet::new(), Vec::new());
        for config in configs {
            let name = config.name();
            if name.is_empty() || name.len() > 64 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
                mistakes.push(format!("attestor `{name}`: `name` is 1 to 64 bytes without spaces"));
            }
            if !names.insert(name) {
                mistakes.push(format!("attestor `{name}`: another attestor has this name; rename one"));
            }
            if config.owners().is_some_and(|owners| owners.is_empty() || owners.iter().any(String::is_empty)) {
                mistakes.push(format!(
                    "attestor `{name}`: `owners` lists nobody or an empty name; leave it out to let policy decide"
                ));
            }
            mistakes.extend(attestors.add(config, trust_domain, &mut shapes).err().into_iter().flatten());
        }
        for (client_id, client) in &attestors.clients {
            if let Some(other) = attestors.oidc.get(client_id) {
                let (name, other) = (&client.name, &other.settings.name);
                mistakes.push(format!("attestor `{name}`: its `client_id` is the `issuer` of attestor `{other}`"));
            }
            if let Some(other) = attestors.of_spiffe_id(client_id) {
                let (name, other) = (&client.name, &other.name);
                mistakes.push(format!("attestor `{name}`: its `client_id` is for attestor `{other}` to vouch for"));
            }
        }
        if mistakes.is_empty() { Ok(attestors) } else { Err(mistakes) }
    }

    /// Adds one. `shapes` holds the names of those before it, and what their workloads look like.
    fn add(
        &mut self,
        config: &Config,
        trust_domain: &TrustDomain,
        shapes: &mut Vec<(String, String)>,
    ) -> Result<(), Vec<String>> {
        let name = config.name();
        let (weaknesses, shape, replaced) = match config {
            Config::Unix(config) => {
                let unix = unix::Attestor::build(config, trust_domain).map_err(|mistake| vec![mistake])?;
                let weaknesses = weak::of_workload(name, &unix.workload, "every process of the machine");
                let shape = unix.workload.shape();
                if self.unix.replace(unix).is_some() {
                    return Err(vec![format!("attestor `{name}`: there is one kernel; remove all but one `unix`")]);
                }
                (weaknesses.into_iter().collect(), shape, None)
            }
            Config::Oidc(config) => {
                let settings = Settings::check(config, trust_domain)?;
                let (weaknesses, shape) = (weak::of_oidc(&settings), settings.workload.shape());
                let issuer = settings.issuer.id.clone();
                let other = self.oidc.insert(issuer, oidc::Attestor::new(settings, trust_domain.clone()));
                (weaknesses, shape, other.map(|other| (other.settings.name, "issuer")))
            }
            Config::PrivateKeyJwt(config) => {
                let client = client::Attestor::build(config, trust_domain)?;
                let shape = client.path.shape();
                let other = self.clients.insert(client.client_id.clone(), client);
                (Vec::new(), shape, other.map(|other| (other.name, "client_id")))
            }
            Config::X509(config) => {
                let attestor = x509::Attestor::build(config, trust_domain)?;
                let weaknesses = weak::of_workload(name, &attestor.workload, "every workload of its trust domain");
                let weaknesses =
                    weaknesses.into_iter().chain(weak::of_instance(name, &attestor.workload, &attestor.instance));
                let (weaknesses, shape) = (weaknesses.collect(), attestor.workload.shape());
                let other = self.x509.insert(config.trust_domain.to_string(), attestor);
                (weaknesses, shape, other.map(|other| (other.name, "trust_domain")))
            }
        };
        if let Some((other, what)) = replaced {
            return Err(vec![format!("attestor `{name}`: attestor `{other}` has the same `{what}`")]);
        }
        self.weaknesses.extend(weaknesses);
        self.weaknesses.extend(weak::of_shape(name, &shape, shapes));
        shapes.push((name.to_owned(), shape));
        Ok(())
    }

    /// Takes over the keys that `before` has fetched: an issuer that is down just now takes nothing with it that was known.
    pub fn inherit(&self, before: &Self) {
        for (issuer, attestor) in &self.oidc {
            if let Some(before) = before.oidc.get(issuer) {
                attestor.settings.issuer.inherit(&before.settings.issuer);
            }
        }
        for (client_id, attestor) in &self.clients {
            if let Some(before) = before.clients.get(client_id) {
                attestor.keys.inherit(&before.keys);
            }
        }
        for (domain, attestor) in &self.x509 {
            if let Some(before) = before.x509.get(domain) {
                attestor.bundle.inherit(&before.bundle);
            }
        }
    }

    /// The issuers and clients that vouch for workloads. None of them can vouch for an operator.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        let domains = self.x509.values().map(|attestor| &attestor.issuer);
        self.oidc.keys().chain(self.clients.keys()).chain(domains).map(String::as_str)
    }

    /// Whether a certificate can be evidence.
    #[must_use]
    pub fn take_certificates(&self) -> bool {
        !self.x509.is_empty()
    }

    /// Whether a JWT-SVID for the broker `issuer` can be a client's assertion.
    #[must_use]
    pub fn take_jwt_svids(&self, issuer: &str) -> bool {
        self.x509.values().any(|attestor| attestor.takes_jwt_svids_for(issuer))
    }

    /// What is allowed and weak about them, each a sentence that names the attestor and says what to change.
    #[must_use]
    pub fn weaknesses(&self) -> &[String] {
        &self.weaknesses
    }

    /// Judges evidence for the broker `issuer` at `now`.
    ///
    /// # Errors
    /// When it is not to be believed, comes from nobody that is configured, or cannot be judged now.
    pub async fn attest(&self, evidence: &Evidence, issuer: &str, now: Time) -> Result<Attested, Rejected> {
        let at = Instant::now();
        match evidence {
            Evidence::Jwt(token) => self.attest_token(token.expose_secret(), issuer, now, at).await,
            Evidence::Assertion { token, of } => {
                let text = token.expose_secret();
                let token = Unverified::parse(text).map_err(|why| Rejected::Refused(why.to_string()))?;
                let unknown = || Rejected::Refused("the client is unknown".into());
                match of {
                    Asserted::Client => self.client(&token).ok_or_else(unknown)?.attest(&token, issuer, now, at).await,
                    Asserted::Spiffe => {
                        let domain = token.subject().and_then(|subject| self.of_spiffe_id(subject));
                        let (domain, digest) = (domain.ok_or_else(unknown)?, sha256_hex(text.as_bytes()));
                        Ok(domain.attest_token(&token, &digest, Some(issuer), now, at).await?.attested)
                    }
                }
            }
            Evidence::Certificate(certificate) => self.attest_certificate(certificate, now, at).await,
            Evidence::Peer(peer) => match &self.unix {
                Some(unix) => unix.attest(peer).await,
                None => Err(Rejected::Refused("no attestor of type `unix` is configured".into())),
            },
        }
    }

    /// What a task token says was attested, if the attestor that vouched is still configured; with the owners that it allows by now.
    #[must_use]
    pub fn still_vouches(&self, standing: Standing) -> Option<Standing> {
        let Standing { mut attested, attested_at, lease, task, key } = standing;
        let (name, owners) = if let Some(issuer) = attested.issuer() {
            match (self.oidc.get(issuer), self.clients.get(issuer), self.of_spiffe_id(issuer)) {
                (Some(oidc), _, _) => (&oidc.settings.name, &oidc.settings.owners),
                (None, Some(client), _) => (&client.name, &client.owners),
                (None, None, domain) => domain.map(|domain| (&domain.name, &domain.owners))?,
            }
        } else {
            let unix = self.unix.as_ref()?;
            (&unix.name, &unix.owners)
        };
        if *name != attested.attestor {
            return None;
        }
        attested.owners.clone_from(owners);
        Some(Standing { attested, attested_at, lease, task, key })
    }

    fn client(&self, token: &Unverified<'_>) -> Option<&client::Attestor> {
        self.clients.get(token.issuer()?)
    }

    async fn attest_token(&self, token: &str, issuer: &str, now: Time, at: Instant) -> Result<Attested, Rejected> {
        let digest = sha256_hex(token.as_bytes());
        if let Some(attested) = self.remembered(&digest, now, at) {
            return Ok(attested);
        }
        let token = Unverified::parse(token).map_err(|invalid| Rejected::Refused(invalid.to_string()))?;
        if let Some(client) = self.client(&token) {
            return client.attest(&token, issuer, now, at).await;
        }
        // The issuer only chooses whose keys are tried; what it says is believed after the signature. A JWT-SVID need not name one.
        let verified = if let Some(attestor) = token.issuer().and_then(|issuer| self.oidc.get(issuer)) {
            attestor.attest(&token, &digest, now, at).await?
        } else if let Some(attestor) = token.subject().and_then(|subject| self.of_spiffe_id(subject)) {
            attestor.attest_token(&token, &digest, None, now, at).await?
        } else {
            return Err(Rejected::Refused("no attestor has the token's issuer".into()));
        };
        self.seen.insert(digest, verified.clone());
        Ok(verified.attested)
    }

    async fn attest_certificate(
        &self,
        certificate: &ClientCertificate,
        now: Time,
        at: Instant,
    ) -> Result<Attested, Rejected> {
        if let Some(attested) = self.remembered(certificate.digest(), now, at) {
            return Ok(attested);
        }
        let svid = Svid::read(certificate).map_err(|invalid| Rejected::Refused(invalid.to_string()))?;
        if svid.id.trust_domain() == self.domain.as_str() {
            return Err(Rejected::Refused(
                "the certificate is of this broker's own trust domain, and no evidence".into(),
            ));
        }
        let attestor = self.of_spiffe_id(svid.id.as_str());
        let attestor =
            attestor.ok_or_else(|| Rejected::Refused("no attestor has the certificate's trust domain".into()))?;
        let verified = attestor.attest_certificate(certificate, &svid, now, at).await?;
        self.seen.insert(certificate.digest().to_owned(), verified.clone());
        Ok(verified.attested)
    }

    /// The attestor for the trust domain that a SPIFFE ID names.
    fn of_spiffe_id(&self, id: &str) -> Option<&x509::Attestor> {
        self.x509.get(id.strip_prefix("spiffe://")?.split('/').next()?)
    }

    /// What this evidence proved before, if it would be judged by the same keys now. Where its time is over it is judged anew: another
    /// authority may vouch for a certificate longer than the one that was found first.
    fn remembered(&self, digest: &str, now: Time, at: Instant) -> Option<Attested> {
        let seen = self.seen.get(digest)?;
        let issuer = seen.attested.issuer()?;
        let still = match (self.oidc.get(issuer), self.of_spiffe_id(issuer)) {
            (Some(attestor), _) => attestor.settings.issuer.keys.still(&seen.keys, at),
            (None, Some(attestor)) => attestor.bundle.still(&seen.keys, at),
            (None, None) => false,
        };
        (still && seen.window.admits(now).is_ok()).then_some(seen.attested)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(toml: &str) -> Vec<String> {
        #[derive(serde::Deserialize)]
        struct File {
            attestor: Vec<Config>,
        }
        let file: File = toml::from_str(toml).unwrap();
        Attestors::build(&file.attestor, &"example.com".parse().unwrap()).err().unwrap_or_default()
    }

    #[test]
    fn the_development_attestor_is_one() {
        let attestors = Attestors::build(&[Config::development()], &"localhost".parse().unwrap());
        assert_eq!(attestors.map(|attestors| attestors.issuers().count()), Ok(0));
    }

    #[test]
    fn every_mistake_is_said_at_once() {
        let found = mistakes(
            "[[attestor]]\ntype = 'unix'\nname = 'kernel'\nworkload = '/u/{pid}'\n\
             [[attestor]]\ntype = 'oidc'\nname = 'a'\nissuer = 'http://issuer.example'\naudience = ''\n\
             keys_file = '/nowhere/keys.json'\nalgorithms = ['HS256']\nworkload = '/task'\nleeway = 61\nmax_age = 0\n\
             owners = []\nca_file = 'ca.pem'\nselectors = ['x', 'x:y']\nfacts = { repo = '{' }\n\
             [[attestor]]\ntype = 'oidc'\nname = 'b'\npreset = 'github-actions'\naudience = 'x'\njwks_url = 'http://h/'\n",
        );
        for (attestor, field) in [
            ("kernel", "workload"),
            ("a", "issuer"),
            ("a", "audience"),
            ("a", "algorithms"),
            ("a", "workload"),
            ("a", "instance"),
            ("a", "kind"),
            ("a", "leeway"),
            ("a", "max_age"),
            ("a", "owners"),
            ("a", "selectors"),
            ("a", "facts.repo"),
            ("b", "jwks_url"),
        ] {
            let named =
                |m: &String| m.starts_with(&format!("attestor `{attestor}`")) && m.contains(&format!("`{field}`"));
            assert!(found.iter().any(named), "{attestor} {field}: {found:#?}");
        }
    }

    #[test]
    fn an_issuer_and_a_name_belong_to_one_attestor() {
        let oidc = |name: &str| {
            format!("[[attestor]]\ntype = 'oidc'\nname = '{name}'\npreset = 'github-actions'\naudience = 'x'\n")
        };
        assert_eq!(mistakes(&oidc("a")), Vec::<String>::new());
        assert_eq!(mistakes(&format!("{}{}", oidc("a"), oidc("b"))).len(), 1);
        let unix = "[[attestor]]\ntype = 'unix'\nname = 'u'\n";
        assert_eq!(mistakes(&format!("{unix}{unix}")).len(), 2, "the name, and the kernel");
    }
}
