//! Issuers whose tokens are known, so that an `[[attestor]]` need only name them.

use serde::Deserialize;

use super::{
    Kind,
    config::{FactTemplates, OidcConfig},
};

/// What only a token that is bound to a pod has. Tokens of `kubectl create token` and of Secrets are bound to none.
const POD_UID: &str = "{/kubernetes.io/pod/uid}";

/// Issuers whose tokens are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// GitHub Actions: on github.com, or on a GitHub Enterprise Server whose `issuer` is given.
    GithubActions,
    /// `id_tokens` of GitLab CI: on gitlab.com, or on a GitLab whose address is given as `issuer`.
    GitlabCi,
    /// Projected service-account tokens of a Kubernetes cluster. Every cluster is an issuer of its own.
    Kubernetes,
}

/// What is known of an issuer.
struct Known {
    issuer: Option<&'static str>,
    /// Where its keys are, below the issuer.
    keys: Option<&'static str>,
    algorithms: &'static [&'static str],
    kind: Kind,
    workload: &'static str,
    instance: &'static str,
    facts: [Option<&'static str>; 4],
    selectors: &'static [&'static str],
}

impl Preset {
    fn known(self) -> Known {
        match self {
            Self::GithubActions => Known {
                issuer: Some("https://token.actions.githubusercontent.com"),
                keys: Some("/.well-known/jwks"),
                algorithms: &["RS256"],
                kind: Kind::Ci,
                workload: "/ci/{repository/*}",
                instance: "{run_id}.{run_attempt}",
                facts: [Some("{environment}"), None, Some("{repository}"), Some("{ref}")],
                selectors: &[
                    "repository",
                    "repository_id",
                    "repository_owner_id",
                    "ref",
                    "event_name",
                    "environment",
                    "workflow_ref",
                ],
            },
            Self::GitlabCi => Known {
                issuer: Some("https://gitlab.com"),
                keys: Some("/oauth/discovery/keys"),
                algorithms: &["RS256"],
                kind: Kind::Ci,
                // Not `/ci/`: acme/payments of GitLab and of GitHub may be two different owners'.
                workload: "/gitlab/{project_path/*}",
                // A job that is retried is another job.
                instance: "{pipeline_id}.{job_id}",
                // `ref` alone does not tell the tag `main` from the branch.
                facts: [Some("{environment}"), None, Some("{project_path}"), Some("{ref_path}")],
                selectors: &[
                    "project_path",
                    "project_id",
                    "namespace_path",
                    "namespace_id",
                    "ref",
                    "ref_type",
                    "ref_protected",
                    "pipeline_source",
                    "environment",
                    "environment_protected",
                    "user_login",
                    "runner_environment",
                    "ci_config_ref_uri",
                ],
            },
            Self::Kubernetes => Known {
                issuer: None,
                keys: None,
                // By the cluster's key: RSA or ECDSA. (Its ES512 is none of ours.)
                algorithms: &["RS256", "ES256", "ES384"],
                kind: Kind::Service,
                workload: "/ns/{/kubernetes.io/namespace}/sa/{/kubernetes.io/serviceaccount/name}",
                instance: POD_UID,
                facts: [None, Some(POD_UID), None, None],
                selectors: &[
                    "/kubernetes.io/namespace",
                    "/kubernetes.io/serviceaccount/name",
                    "/kubernetes.io/serviceaccount/uid",
                    "/kubernetes.io/pod/name",
                    "/kubernetes.io/node/name",
                ],
            },
        }
    }
}

impl OidcConfig {
    /// The same with the preset's settings where none is given.
    pub(super) fn settled(&self) -> Self {
        let mut config = self.clone();
        let Some(known) = config.preset.map(Preset::known) else { return config };
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        config.issuer = config.issuer.or_else(|| known.issuer.map(str::to_owned));
        // With an issuer given by hand, its own keys: another installation's vouch for nothing.
        if let (None, None, Some(issuer), Some(below)) =
            (&config.keys_file, &config.jwks_url, &config.issuer, known.keys)
        {
            config.jwks_url = Some(format!("{}{below}", issuer.trim_end_matches('/')));
        }
        config.workload.get_or_insert_with(|| known.workload.to_owned());
        config.instance.get_or_insert_with(|| known.instance.to_owned());
        config.kind.get_or_insert(known.kind);
        config.algorithms.get_or_insert_with(|| own(known.algorithms));
        config.facts.get_or_insert_with(|| {
            let [environment, sandbox, repo, branch] = known.facts.map(|fact| fact.map(str::to_owned));
            FactTemplates { environment, sandbox, repo, branch }
        });
        config.selectors.get_or_insert_with(|| own(known.selectors));
        config
    }

    /// What to say of a token that does not have a claim of the `instance` template, where more is known than that.
    pub(super) fn without_instance(&self) -> Option<&'static str> {
        (self.instance.as_deref() == Some(POD_UID)).then_some(
            "the token is not bound to a pod, so nothing says which instance presents it: mount a projected \
             `serviceAccountToken` volume into the pod and present that token",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Config;

    fn settled(more: &str) -> OidcConfig {
        let config = toml::from_str(&format!("type = 'oidc'\nname = 'o'\naudience = 'a'\n{more}"));
        let Ok(Config::Oidc(config)) = config else { panic!("{config:?}") };
        config.settled()
    }

    #[test]
    fn a_preset_yields_to_what_is_given_by_hand() {
        for preset in ["github-actions", "gitlab-ci", "kubernetes"] {
            let config = settled(&format!(
                "preset = '{preset}'\nissuer = 'https://i'\nkeys_file = 'k'\nalgorithms = ['EdDSA']\nkind = 'human'\n\
                 workload = '/w/{{x}}'\ninstance = '{{y}}'\nfacts = {{ repo = '{{z}}' }}\nselectors = ['s']\nowners = ['o']"
            ));
            assert_eq!(config.issuer.as_deref(), Some("https://i"));
            assert_eq!((config.keys_file.is_some(), config.jwks_url.as_deref()), (true, None));
            assert_eq!((config.algorithms, config.kind), (Some(vec!["EdDSA".to_owned()]), Some(Kind::Human)));
            assert_eq!((config.workload.as_deref(), config.instance.as_deref()), (Some("/w/{x}"), Some("{y}")));
            let facts = config.facts.unwrap();
            assert_eq!(
                (facts.repo.as_deref(), facts.environment, facts.sandbox, facts.branch),
                (Some("{z}"), None, None, None)
            );
            assert_eq!(config.selectors, Some(vec!["s".to_owned()]));
            assert_eq!(config.owners, Some(vec!["o".to_owned()]));
        }
    }

    #[test]
    fn keys_are_those_of_the_issuer() {
        for (more, url) in [
            ("preset = 'github-actions'", Some("https://token.actions.githubusercontent.com/.well-known/jwks")),
            ("preset = 'gitlab-ci'", Some("https://gitlab.com/oauth/discovery/keys")),
            (
                "preset = 'gitlab-ci'\nissuer = 'https://git.example.com/gitlab'",
                Some("https://git.example.com/gitlab/oauth/discovery/keys"),
            ),
            (
                "preset = 'github-actions'\nissuer = 'https://ghe.example.com/_services/token'",
                Some("https://ghe.example.com/_services/token/.well-known/jwks"),
            ),
            ("preset = 'gitlab-ci'\njwks_url = 'https://keys.example.com/'", Some("https://keys.example.com/")),
            ("preset = 'kubernetes'\nissuer = 'https://kubernetes.default.svc.cluster.local'", None),
        ] {
            assert_eq!(settled(more).jwks_url.as_deref(), url, "{more}");
        }
    }
}
