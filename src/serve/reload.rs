//! Another configuration for a running broker: policies, attestors, services, operators and owners follow their files, and so does how
//! the audit log is kept.
//!
//! The files are read and compared every few seconds, because what they say is all that counts: an editor may write them
//! anew, and Kubernetes swaps a link to the directory they are in. A set that changes while it is read is left for the next
//! look, and a set with a mistake in it is refused whole.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use super::Checked;
use crate::{
    broker::Broker,
    config::{Config, Mistakes, Origin},
    credential::Imported,
    http::Tls,
    id::sha256_hex,
    jose::SigningAlgorithm,
    lease::Use,
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Looks at the files of a running configuration until `stop`; at once when told to by `hangup` (SIGHUP). `known` is what was
/// [`seen`] before they were read.
pub(super) async fn run(
    origin: Origin,
    running: Config,
    broker: Arc<Broker>,
    mut known: String,
    mut hangup: Signal,
    stop: CancellationToken,
) {
    // A set that was found half written is looked at again, even if nothing changes after that.
    let mut again = content(&origin.file) != origin.digest;
    loop {
        let told = tokio::select! {
            () = stop.cancelled() => return,
            _ = hangup.recv() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = seen(&origin).await;
        if now == known && !told && !again {
            continue;
        }
        let made = make(&origin, &running).await;
        again = seen(&origin).await != now;
        if again {
            continue;
        }
        known = now;
        let file = origin.file.display();
        let adopted = match made {
            Ok(checked) => {
                for weakness in &checked.weaknesses {
                    tracing::warn!("{weakness}");
                }
                let kept = broker.audit().keep(checked.keeping).await.map_err(|why| vec![why.to_string()]);
                let adopted = match kept {
                    Ok(()) => broker.adopt(checked.into_rules()).await.map_err(|error| vec![error.to_string()]),
                    Err(why) => Err(why),
                };
                // There is nothing wrong with it: what could not be recorded now can be later.
                again = adopted.is_err();
                adopted
            }
            Err(mistakes) => Err(mistakes),
        };
        match adopted {
            Ok(()) => tracing::info!(%file, "the configuration changed, and is in force"),
            Err(mistakes) => {
                broker.keep_rules();
                tracing::error!(%file, "the configuration changed, and is refused; the old one stays in force:\n{}", mistakes.join("\n"));
            }
        }
    }
}

/// Shows what the files of the server certificate hold, until `stop`. On its own: a certificate that is renewed does not wait
/// for a configuration that somebody has to mend.
pub(super) async fn certificate(tls: Tls, broker: Arc<Broker>, stop: CancellationToken) {
    count(&tls, &broker);
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        let followed = tls.clone();
        match tokio::task::spawn_blocking(move || followed.follow()).await {
            Ok(Some(Ok(()))) => {
                count(&tls, &broker);
                tracing::info!("the server certificate changed, and is shown from now on");
            }
            Ok(Some(Err(why))) => {
                tracing::error!("the server certificate changed, and is refused; the old one is still shown: {why}");
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// Tells the metrics when the certificate that is shown ends.
pub(super) fn count(tls: &Tls, broker: &Broker) {
    tls.not_after().into_iter().for_each(|end| broker.metrics().certificate(end.timestamp()));
}

/// Makes what the files say now. Reading and compiling take a while, so not on a thread that serves requests.
async fn make(origin: &Origin, running: &Config) -> Result<Checked, Vec<String>> {
    let (origin, running) = (origin.clone(), running.clone());
    let made = tokio::task::spawn_blocking(move || {
        let config = Config::read(&origin.file, origin.over).map_err(|Mistakes(mistakes)| mistakes)?;
        // Of what only a start can change too: a start that fails is too late to be told.
        let mut mistakes = config.mistakes();
        let (config, changed) = config.under(&running);
        if !changed.is_empty() {
            tracing::warn!("changes of {} take effect at the next start", changed.join(", "));
        }
        let checked = Checked::new(&config);
        if mistakes.is_empty() {
            return checked;
        }
        let more = checked.err().unwrap_or_default().into_iter();
        let more: Vec<_> = more.filter(|mistake| !mistakes.contains(mistake)).collect();
        mistakes.extend(more);
        Err(mistakes)
    });
    made.await.unwrap_or_else(|_| Err(vec!["the new configuration could not be read: a defect of the broker".into()]))
}

/// A digest of everything that the files say now.
pub(super) async fn seen(origin: &Origin) -> String {
    let origin = origin.clone();
    tokio::task::spawn_blocking(move || digest(&origin)).await.unwrap_or_default()
}

fn digest(origin: &Origin) -> String {
    let mut said = vec![content(&origin.file)];
    if let Ok(config) = Config::read(&origin.file, origin.over.clone()) {
        let (policies, files) = config.inputs();
        let named = policies.map(fs::read_dir).into_iter().flatten().flatten().flatten();
        let policies: BTreeSet<_> = named.map(|entry| entry.path()).filter(|path| is_policy(path)).collect();
        let all = policies.iter().map(AsRef::as_ref).chain(files);
        said.extend(all.map(|path: &Path| format!("{} {}", path.display(), content(path))));
        // Not what is in it, which is read where it is kept secret.
        if config.services.iter().any(|service| service.algorithm == SigningAlgorithm::RS256) {
            said.push(Imported::seen(Use::AccessToken, &config.files.keys));
        }
    }
    sha256_hex(said.join("\n").as_bytes())
}

fn is_policy(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "cedar")
}

fn content(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => sha256_hex(&bytes),
        Err(error) => error.to_string(),
    }
}
