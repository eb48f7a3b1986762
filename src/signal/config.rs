//! `[[receiver]]`: who is told of ends, and how.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use url::Url;

use super::{Receiver, Signal, Subject, address, push::Push};
use crate::{
    id::{is_loopback, is_sha256_hex},
    jose::SigningAlgorithm,
};

/// For as long as any credential of a task can live: after that, nobody needs to be told.
const LONGEST: u32 = 86_400;

/// One `[[receiver]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverConfig {
    /// Its name: that of its stream, and of a file.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub sort: Sort,
    /// `aud` of what it is told.
    pub audience: String,
    /// Whether it is told, or asks.
    #[serde(default)]
    pub delivery: Delivery,
    /// Where it is told.
    #[serde(default)]
    pub url: Option<String>,
    /// The file with the value of `Authorization` that it is told with.
    #[serde(default)]
    pub authorization_file: Option<PathBuf>,
    /// The authorities that vouch for it, in PEM; left out: those of the machine.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether it may be at a private address.
    #[serde(default)]
    pub private_address: bool,
    /// SHA-256 of its bearer tokens, in lower-case hexadecimal: for poll, and to ask for a verification.
    #[serde(default)]
    pub token_sha256: Vec<String>,
    /// What it is told is signed with; ES256, where nothing is said.
    #[serde(default)]
    pub algorithm: SigningAlgorithm,
    /// How a task is named to it.
    #[serde(default)]
    pub subject: Subject,
    /// What it is told; left out: all there is for its type.
    #[serde(default)]
    pub events: Option<Vec<Signal>>,
    /// Of a webhook: the sandboxes that it runs, by name, or by how the name begins (`sb-*`); left out: all.
    #[serde(default)]
    pub sandboxes: Option<Vec<String>>,
    /// How long it is tried to tell it of one end, in seconds.
    #[serde(default = "longest")]
    pub give_up_after: u32,
}

fn longest() -> u32 {
    LONGEST
}

/// What a receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// A receiver of Shared Signals, which is told of revoked sessions (CAEP 1.0).
    Caep,
    /// Whoever runs sandboxes, and takes them down.
    Webhook,
}

/// How a receiver hears.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It is told (RFC 8935).
    #[default]
    Push,
    /// It asks (RFC 8936).
    Poll,
}

impl ReceiverConfig {
    /// Makes its paths relative to where the configuration stands.
    pub fn resolve(&mut self, base: &Path) {
        for path in [&mut self.authorization_file, &mut self.ca_file].into_iter().flatten() {
            *path = base.join(&path);
        }
    }

    /// What is wrong with it, beside what is in files; each a sentence.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut unless = |fits: bool, what: &str| {
            if !fits {
                mistakes.push(format!("receiver `{}`: {what}", self.name));
            }
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        unless(
            (1..=64).contains(&self.name.len()) && self.name.bytes().all(plain),
            "`name` is 1 to 64 lower-case letters, digits, `-` and `_`",
        );
        unless(
            !self.audience.is_empty()
                && self.audience.len() <= 2048
                && self.audience.bytes().all(|b| b.is_ascii_graphic()),
            "`audience` is what it takes for itself: 1 to 2048 printable characters without spaces",
        );
        unless(
            self.token_sha256.iter().all(|digest| is_sha256_hex(digest)),
            "`token_sha256` is 64 hexadecimal digits in lower case (`sha256sum` prints them)",
        );
        unless((60..=LONGEST).contains(&self.give_up_after), "`give_up_after` is 60 to 86400 seconds");
        match self.delivery {
            Delivery::Push => match &self.url {
                Some(url) => {
                    let why = self.refuses(url);
                    unless(why.is_none(), why.unwrap_or_default());
                }
                None => unless(false, "`delivery = \"push\"` needs a `url`"),
            },
            Delivery::Poll => {
                unless(
                    !self.token_sha256.is_empty(),
                    "`delivery = \"poll\"` needs a `token_sha256` to authenticate with",
                );
                let pushes = self.url.is_some()
                    || self.authorization_file.is_some()
                    || self.ca_file.is_some()
                    || self.private_address;
                unless(
                    !pushes,
                    "`url`, `authorization_file`, `ca_file` and `private_address` are for `delivery = \"push\"`: remove them",
                );
                unless(self.sort == Sort::Caep, "a webhook is told, and does not ask: remove `delivery`");
            }
        }
        unless(
            self.sort == Sort::Webhook || self.sandboxes.is_none(),
            "`sandboxes` is for `type = \"webhook\"`: remove it",
        );
        let named =
            |pattern: &String| !pattern.is_empty() && pattern.find('*').is_none_or(|at| at + 1 == pattern.len());
        unless(
            self.sandboxes.as_ref().is_none_or(|all| !all.is_empty() && all.iter().all(named)),
            "`sandboxes` lists names, or how they begin, with one `*` at the end",
        );
        unless(
            self.sort == Sort::Caep || self.subject == Subject::default(),
            "`subject` is for `type = \"caep\"`: remove it",
        );
        let fits = |all: &Vec<Signal>| !all.is_empty() && all.iter().all(|signal| signal.is_for(self.sort));
        unless(
            self.events.as_ref().is_none_or(fits),
            match self.sort {
                Sort::Caep => "`events` lists `session-revoked`",
                Sort::Webhook => "`events` lists `task.revoked`, `task.completed` or both",
            },
        );
        mistakes
    }

    /// Why nothing is ever sent to this URL.
    fn refuses(&self, url: &str) -> Option<&'static str> {
        let Ok(url) = Url::parse(url) else { return Some("`url` is no URL") };
        if !(url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url)) {
            return Some("`url` is an https URL (http on loopback)");
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Some(
                "`url` has no user, password or fragment: what it is told with belongs in `authorization_file`",
            );
        }
        address::refused_in(&url, self.private_address)
    }
}

impl Receiver {
    /// Makes all of them. `others` are the digests of tokens that belong to somebody else.
    ///
    /// # Errors
    /// Every mistake, each a sentence.
    pub fn build(configs: &[ReceiverConfig], others: &[&str]) -> Result<Vec<Self>, Vec<String>> {
        let (mut mistakes, mut built) = (Vec::new(), Vec::<Self>::new());
        let mut tokens = others.to_vec();
        for config in configs {
            let name = &config.name;
            let before = mistakes.len();
            mistakes.extend(config.mistakes());
            if configs.iter().filter(|other| other.name == *name).count() > 1 {
                mistakes.push(format!("receiver `{name}`: every receiver needs a name of its own"));
            }
            for token in &config.token_sha256 {
                if tokens.contains(&token.as_str()) {
                    mistakes.push(format!(
                        "receiver `{name}`: `token_sha256` is already another's; every token belongs to one party"
                    ));
                }
                tokens.push(token);
            }
            if mistakes.len() > before {
                continue;
            }
            match config.url.as_ref().map(|_| Push::new(config)).transpose() {
                Ok(push) => {
                    let all = || Signal::ALL.into_iter().filter(|signal| signal.is_for(config.sort)).collect();
                    let signals = config.events.clone().unwrap_or_else(all);
                    built.push(Self { config: config.clone(), signals, push });
                }
                Err(why) => mistakes.push(format!("receiver `{name}`: {why}")),
            }
        }
        mistakes.dedup();
        if mistakes.is_empty() { Ok(built) } else { Err(mistakes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(toml: &str) -> Vec<String> {
        let config: ReceiverConfig = toml::from_str(toml).unwrap();
        Receiver::build(&[config], &[&"a".repeat(64)]).err().unwrap_or_default()
    }

    #[test]
    fn a_url_that_must_not_be_called_is_a_mistake() {
        let push = |url: &str| mistakes(&format!("name = 'r'\ntype = 'caep'\naudience = 'a'\nurl = '{url}'"));
        for url in [
            "http://siem.example.com/",
            "ftp://siem.example.com/",
            "https://user@siem.example.com/",
            "https://:secret@siem.example.com/",
            "https://siem.example.com/#here",
            "https://169.254.169.254/latest/meta-data/",
            "https://[::ffff:169.254.169.254]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://2852039166/",
            "https://0xa9fea9fe/",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://100.100.100.200/",
            "https://168.63.129.16/",
            "https://10.0.0.1/",
            "https://192.168.1.1/",
            "https://172.16.0.1/",
            "https://[fd00::1]/",
            "https://0.0.0.0/",
            "https://224.0.0.1/",
            "https://metadata.google.internal/computeMetadata/v1/",
            "not a url",
        ] {
            let found = push(url);
            assert_eq!(found.len(), 1, "{url}: {found:?}");
            assert!(!found[0].contains("secret"), "{found:?}");
        }
        for url in
            ["https://siem.example.com/events?tenant=1", "http://127.0.0.1:9/", "https://[::1]/", "http://localhost/"]
        {
            assert_eq!(push(url), Vec::<String>::new(), "{url}");
        }
        let private = "name = 'r'\ntype = 'caep'\naudience = 'a'\nprivate_address = true\nurl = ";
        assert!(mistakes(&format!("{private}'https://10.0.0.1/'")).is_empty());
        for never in
            ["https://169.254.169.254/", "https://[fd00:ec2::254]/", "https://100.100.100.200/", "https://0.0.0.0/"]
        {
            assert_eq!(mistakes(&format!("{private}'{never}'")).len(), 1, "{never}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let digest = "a".repeat(64);
        let found = mistakes(&format!(
            "name = 'R/../x'\ntype = 'webhook'\naudience = ''\ndelivery = 'poll'\nurl = 'https://a/'\ntoken_sha256 = ['{digest}', 'x']\n\
             subject = 'complex'\nevents = ['session-revoked']\nsandboxes = ['a*b']\ngive_up_after = 1"
        ));
        assert_eq!(found.len(), 10, "{found:#?}");
        let both = "name = 'r'\ntype = 'caep'\naudience = 'a'\ndelivery = 'poll'\nsandboxes = []";
        assert_eq!(mistakes(both).len(), 3);
        let one: ReceiverConfig =
            toml::from_str("name = 'r'\ntype = 'caep'\naudience = 'a'\nurl = 'https://a/'").unwrap();
        assert!(Receiver::build(&[one.clone(), one], &[]).unwrap_err()[0].contains("name of its own"));
    }

    #[test]
    fn a_sandbox_is_found_by_name_or_by_how_that_begins() {
        let config: ReceiverConfig = toml::from_str(
            "name = 'r'\ntype = 'webhook'\naudience = 'a'\nurl = 'https://a/'\nsandboxes = ['one', 'sb-*']\nevents = ['task.revoked']",
        )
        .unwrap();
        let receiver = Receiver::build(&[config], &[]).unwrap().remove(0);
        assert!(receiver.runs("one") && receiver.runs("sb-7") && !receiver.runs("one-more") && !receiver.runs("other"));
        assert_eq!(receiver.signal_of(crate::task::State::Completed), None);
    }
}
