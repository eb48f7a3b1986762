//! `remit serve`, and what it says when it is ready.

use clap::Args;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    connection::Connection,
    exit::Failure,
    show::{facts, program, quoted, say, say_aside},
};
use crate::{
    clock::SystemClock,
    config::{Config, Development, Overrides},
    serve::{Running, Signals, StartError, start},
};

pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8420);
const DATA_HELP: &str =
    "Store, audit log, socket and operator token [default: $XDG_STATE_HOME/remit or ~/.local/state/remit]";

/// Without --config: a whole broker for this machine, with its state in one directory.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// A configuration file. Anything unsafe or unknown in it is refused; the options below beat what it says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_name = "DIR", help = DATA_HELP)]
    data: Option<PathBuf>,
    /// The broker's own keys [default: `keys` in the data directory]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Where to listen for plain HTTP; a loopback address [default: 127.0.0.1:8420]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where to keep leases: redis://… or redb:PATH [default: embedded, in the data directory]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

impl Serve {
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let configuration = |mistakes: crate::config::Mistakes| Failure::Configuration(mistakes.to_string());
        let (config, data) = if let Some(file) = self.config {
            let over = Overrides { data: self.data, keys: self.keys, listen: self.listen, store: self.store };
            (Config::load(&file, over).map_err(configuration)?, None)
        } else {
            let data = self.data.map_or_else(|| connection.data(), Ok)?;
            // What is printed to be pasted must work from anywhere.
            let data =
                std::path::absolute(&data).map_err(|error| Failure::Input(format!("{}: {error}", data.display())))?;
            let listen = self.listen.unwrap_or(LISTEN);
            let settings = Development { data: data.clone(), keys: self.keys, listen, store: self.store };
            (Config::development(settings).map_err(configuration)?, Some(data))
        };
        // Records alone: what is read there is read by machines.
        let say = if config.audit.stdout { say_aside } else { say };
        let mut signals = Signals::listen().map_err(|why| Failure::Stopped(why.to_string()))?;
        let running = start(config, Arc::new(SystemClock)).await.map_err(|why| match why {
            StartError::Configuration(mistakes) => Failure::Configuration(mistakes),
            StartError::Failed(why) => Failure::Stopped(why),
        })?;
        say(&match &data {
            Some(data) => development_banner(&running, data),
            None => format!("remit is ready\n{}", places(&running, None)),
        });
        signals.received().await;
        running.stop().await;
        Ok(())
    }
}

fn places(running: &Running, data: Option<&Path>) -> String {
    let path = |path: &Path| path.display().to_string();
    facts(&[
        ("  HTTPS", running.https.map(|https| format!("https://{https}")).unwrap_or_default()),
        ("  HTTP", running.http.map(|http| format!("http://{http}")).unwrap_or_default()),
        ("  Unix socket", running.socket.as_deref().map(path).unwrap_or_default()),
        ("  operator token", data.map(|data| path(&data.join("operator.token"))).unwrap_or_default()),
    ])
}

/// What to paste next. The location is one that the sample policy allows; nothing has to listen there.
fn development_banner(running: &Running, data: &Path) -> String {
    let remit = program();
    let socket = running.socket.clone().unwrap_or_else(|| data.join("remit.sock"));
    let socket = quoted(&socket.to_string_lossy());
    let token = quoted(&data.join("operator.token").to_string_lossy());
    let uid = nix::unistd::getuid();
    let places = places(running, Some(data));
    format!(
        "remit is ready: a broker for this machine, where the kernel says who calls.
{places}

An agent declares its task and gets a credential for it, in one call:

  curl --unix-socket {socket} http://localhost/v1/tasks -H 'content-type: application/json' -d '{DECLARATION}'

or, in the words of this program:

  export REMIT_URL=unix:{socket}; unset REMIT_OPERATOR_TOKEN_FILE
  TASK=$({remit} task declare --purpose 'Try Remit' --owner me@example.com --access http://127.0.0.1:9000=read,write \\
    --output json | grep -o 'task_[0-9a-z]*' | head -n 1)
  {remit} task show $TASK
  {remit} mint token $TASK --resource http://127.0.0.1:9000 --privilege read

The security team sees every live task and stops one, with all its credentials:

  export REMIT_URL=unix:{socket} REMIT_OPERATOR_TOKEN_FILE={token}
  {remit} task list --state active
  {remit} task revoke $TASK --reason 'not what it was declared for'

Anything with this broker's own uid ({uid}) could read its files: tasks of such callers are marked `unseparated`.
To keep agents out for real, run the broker as a user of its own."
    )
}

const DECLARATION: &str = r#"{"purpose": "Try Remit", "owner": "me@example.com", "authorization_details": [{"type": "remit:access", "locations": ["http://127.0.0.1:9000"], "privileges": ["read", "write"]}], "credentials": [{"resource": "http://127.0.0.1:9000", "privilege": "read"}]}"#;

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_there_to_paste_is_a_declaration() {
        let declaration: crate::task::Declaration = serde_json::from_str(super::DECLARATION).unwrap();
        declaration.validate().unwrap();
        assert!(!super::DECLARATION.contains('\''));
    }
}
