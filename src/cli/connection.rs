//! Where the broker is and as whom to call it. No token stands on a command line: other processes can read those.

use clap::Args;
use secrecy::SecretString;
use std::{
    ffi::OsString,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};
use zeroize::Zeroize as _;

use super::{
    client::{Caller, Client, Target},
    exit::Failure,
    holder::Holder,
};
use crate::secret_file;

/// The most that is read of a file with a token.
const MAX_TOKEN: u64 = 16 * 1024;

const URL_HELP: &str = "Where the broker is: unix:/path/remit.sock, https://HOST, or http://HOST on this machine
[default: the socket of `remit serve` in its default data directory]";
const EVIDENCE_HELP: &str =
    "What a workload proves itself with: file:PATH or env:VAR (a JWT), socket (the kernel's word),
or task-token:PATH with --key [default: socket on a Unix socket, otherwise nothing]";
const KEY_HELP: &str = "A key of the workload's own (PEM), made where there is none: credentials are bound to it,
and a JWT as evidence serves that key alone from then on";
const OPERATOR_HELP: &str = "A file with an operator's or an owner's token (also a JWT of the operators' issuer),
to list, show and revoke with (declare, complete and mint never use it)";
const CERTIFICATE_HELP: &str =
    "A file with an operator's client certificate and its key (PEM, mode 0600), in the place of a token or beside it";

/// Options of every command that calls a broker.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    #[arg(long, global = true, env = "REMIT_URL", value_name = "URL", help = URL_HELP)]
    url: Option<Target>,
    #[arg(long, global = true, env = "REMIT_EVIDENCE", value_name = "SOURCE", help = EVIDENCE_HELP)]
    evidence: Option<Evidence>,
    #[arg(long, global = true, env = "REMIT_KEY", value_name = "FILE", help = KEY_HELP)]
    key: Option<PathBuf>,
    #[arg(long, global = true, env = "REMIT_OPERATOR_TOKEN_FILE", value_name = "FILE", help = OPERATOR_HELP)]
    operator_token_file: Option<PathBuf>,
    #[arg(long, global = true, env = "REMIT_OPERATOR_CERT_FILE", value_name = "FILE", help = CERTIFICATE_HELP)]
    operator_cert_file: Option<PathBuf>,
    #[command(flatten)]
    home: Home,
}

/// What the environment says about where state is kept (XDG Base Directory). Options only because that is how the
/// environment is read here.
#[derive(Debug, Args)]
struct Home {
    #[arg(long, global = true, env = "XDG_STATE_HOME", hide = true, value_parser = clap::value_parser!(OsString))]
    xdg_state_home: Option<OsString>,
    #[arg(long, global = true, env = "HOME", hide = true, value_parser = clap::value_parser!(OsString))]
    home: Option<OsString>,
}

impl Home {
    /// The default data directory of a broker, if the environment says where it would be.
    fn data(&self) -> Option<PathBuf> {
        // A relative path in either is to be ignored (XDG Base Directory).
        let absolute = |value: &Option<OsString>| value.as_ref().map(PathBuf::from).filter(|path| path.is_absolute());
        let state = absolute(&self.xdg_state_home).or_else(|| Some(absolute(&self.home)?.join(".local/state")))?;
        Some(state.join("remit"))
    }
}

/// Where a workload's evidence comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Evidence {
    File(PathBuf),
    Environment(String),
    Socket,
    TaskToken(PathBuf),
}

impl FromStr for Evidence {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "socket" => Ok(Self::Socket),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Environment(name.to_owned())),
            Some(("task-token", path)) if !path.is_empty() => Ok(Self::TaskToken(path.into())),
            _ => Err("expected file:PATH, env:VAR, socket or task-token:PATH"),
        }
    }
}

impl Connection {
    /// The default data directory of a broker.
    pub(super) fn data(&self) -> Result<PathBuf, Failure> {
        self.home.data().ok_or_else(|| Failure::Input("no HOME: say where to keep data, with --data".to_owned()))
    }

    fn target(&self) -> Result<Target, Failure> {
        match (&self.url, self.home.data()) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(data)) => Ok(Target::Unix(data.join("remit.sock"))),
            (None, None) => Err(Failure::Input("no HOME: say where the broker is, with --url".to_owned())),
        }
    }

    /// A client that calls as this workload.
    pub(super) async fn workload(&self) -> Result<Client, Failure> {
        let target = self.target()?;
        let is_socket = matches!(target, Target::Unix(_));
        let (caller, bearer) = match &self.evidence {
            Some(Evidence::File(path)) => (Caller::Evidence, Some(token_in(path)?)),
            Some(Evidence::Environment(name)) => (Caller::Evidence, Some(variable(name)?)),
            Some(Evidence::TaskToken(_)) if self.key.is_none() => {
                return Err(Failure::Input("a task token is bound to a key: name its file with --key".to_owned()));
            }
            Some(Evidence::TaskToken(path)) => (Caller::TaskToken, Some(token_in(path)?)),
            Some(Evidence::Socket) if !is_socket => {
                return Err(Failure::Input(format!("--evidence socket needs --url unix:PATH, not {target}")));
            }
            Some(Evidence::Socket) => (Caller::Kernel, None),
            None if is_socket => (Caller::Kernel, None),
            None => (Caller::Nobody, None),
        };
        let client = Client::new(target, caller, bearer)?;
        match self.holder()? {
            Some(holder) => client.with_holder(holder).await,
            None => Ok(client),
        }
    }

    /// The workload's own key, where one is named.
    pub(super) fn holder(&self) -> Result<Option<Holder>, Failure> {
        self.key.as_deref().map(Holder::of).transpose()
    }

    /// The file that the task token was read from, where that is what stands for the evidence.
    pub(super) fn task_token_file(&self) -> Option<&Path> {
        match &self.evidence {
            Some(Evidence::TaskToken(path)) => Some(path),
            _ => None,
        }
    }

    /// A client that calls as the operator where there is a token or a certificate for one, and as this workload otherwise.
    pub(super) async fn operator(&self) -> Result<Client, Failure> {
        let token = self.operator_token_file.as_deref().map(operator_token).transpose()?;
        match &self.operator_cert_file {
            Some(path) => Client::showing(self.target()?, token, (path, &operator_token(path)?)),
            None if token.is_some() => Client::new(self.target()?, Caller::Operator, token),
            None => self.workload().await,
        }
    }
}

/// An operator's token, or key, can stop everything: a file that others can read is refused, as `ssh` does with a key. A pipe
/// (`<(pass show remit)`) is nobody else's.
fn operator_token(path: &Path) -> Result<SecretString, Failure> {
    if path.is_file() {
        let text = secret_file::load(path).map_err(Failure::Input)?;
        return trimmed(path, text.as_deref().map_or("", String::as_str));
    }
    token_in(path)
}

/// The token in a file.
pub(super) fn token_in(path: &Path) -> Result<SecretString, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text));
    let token = match read {
        Ok(_) => trimmed(path, &text),
        Err(error) => Err(Failure::Input(format!("{}: {error}", path.display()))),
    };
    text.zeroize();
    token
}

fn trimmed(path: &Path, text: &str) -> Result<SecretString, Failure> {
    match text.trim() {
        "" => Err(Failure::Input(format!("{}: holds no token", path.display()))),
        token => Ok(token.into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "which variable holds the evidence is the caller's choice, `env:VAR`")]
fn variable(name: &str) -> Result<SecretString, Failure> {
    let text = std::env::var(name).unwrap_or_default();
    match text.trim() {
        "" => Err(Failure::Input(format!("the environment has no {name} with evidence in it"))),
        token => Ok(token.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(home: Option<&str>, xdg: Option<&str>) -> Connection {
        let home = Home { xdg_state_home: xdg.map(Into::into), home: home.map(Into::into) };
        Connection { url: None, evidence: None, key: None, operator_token_file: None, operator_cert_file: None, home }
    }

    #[test]
    fn the_default_broker_is_the_one_with_the_default_data() {
        let socket = |home, xdg| connection(home, xdg).target().map(|target| target.to_string()).ok();
        assert_eq!(socket(Some("/home/a"), None).unwrap(), "unix:/home/a/.local/state/remit/remit.sock");
        assert_eq!(socket(Some("/home/a"), Some("/state")).unwrap(), "unix:/state/remit/remit.sock");
        assert_eq!(socket(Some("/home/a"), Some("")).unwrap(), "unix:/home/a/.local/state/remit/remit.sock");
        assert_eq!(socket(Some("/home/a"), Some("rel")).unwrap(), "unix:/home/a/.local/state/remit/remit.sock");
        assert_eq!(socket(None, None), None);
    }

    #[test]
    fn evidence_is_a_file_a_variable_or_the_socket() {
        assert_eq!("file:/var/run/token".parse(), Ok(Evidence::File("/var/run/token".into())));
        assert_eq!("env:ID_TOKEN".parse(), Ok(Evidence::Environment("ID_TOKEN".into())));
        assert_eq!("socket".parse(), Ok(Evidence::Socket));
        for bad in ["", "file:", "env:", "eyJhbGciOi", "socket:/run"] {
            assert!(bad.parse::<Evidence>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_kernel_vouches_on_a_socket_alone() {
        let mut connection = connection(None, None);
        connection.url = Some("http://127.0.0.1:1".parse().unwrap());
        connection.evidence = Some(Evidence::Socket);
        assert!(matches!(connection.workload().await, Err(Failure::Input(_))));
        connection.evidence = Some(Evidence::TaskToken("token".into()));
        assert!(matches!(connection.workload().await, Err(Failure::Input(_))), "without a key");
    }

    #[test]
    fn an_operators_token_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "t0ken\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(operator_token(&path).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(operator_token(&path).is_ok());
        assert!(token_in(&dir.path().join("none")).is_err());
    }
}
