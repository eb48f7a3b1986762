//! `remit mint cert`: the key is made here and stays here; the broker sees a request for it.

use clap::Args;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};
use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    cli::{Output, connection::Connection, exit::Failure, show::say},
    id::TaskId,
};

pub(super) const EXAMPLES: &str = "Example:
  remit mint cert TASK --dir certs && openssl s_client -cert certs/cert.pem -key certs/key.pem -CAfile certs/bundle.pem …";

/// One certificate.
#[derive(Debug, Args)]
pub(in crate::cli) struct Cert {
    /// The task it is for.
    task: TaskId,
    /// Where key.pem (mode 0600), cert.pem and bundle.pem are written, over what is there: each call makes a new key.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Its lifetime [default: policy's]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
}

impl Cert {
    pub(in crate::cli) async fn run(self, connection: &Connection, output: Output) -> Result<(), Failure> {
        let (key, csr) = request()?;
        let mut wanted = json!({ "csr": csr });
        if let Some(ttl) = self.ttl {
            wanted["ttl"] = ttl.into();
        }
        let path = format!("/v1/tasks/{}/certificate", self.task);
        let answer = connection.workload().await?.post(&path, &wanted).await?;
        let said = |member: &str| text(&answer.json, member);
        let files = [
            Staged::new(&self.dir, "key.pem", 0o600, &key)?,
            Staged::new(&self.dir, "cert.pem", 0o644, said("certificate")?)?,
            Staged::new(&self.dir, "bundle.pem", 0o644, said("bundle")?)?,
        ];
        // All three are whole by now, so that they change as nearly at once as files can.
        files.into_iter().try_for_each(Staged::put_in_place)?;
        if output == Output::Json {
            say(&answer.text);
            return Ok(());
        }
        let (id, expires_at, renew_at) = (said("spiffe_id")?, said("expires_at")?, said("renew_at")?);
        let dir = self.dir.display();
        say(&format!("{id}\nkey.pem, cert.pem and bundle.pem in {dir}\nexpires {expires_at}, renew at {renew_at}"));
        Ok(())
    }
}

/// A new key, and the request that shows it is held; both in PEM.
fn request() -> Result<(Zeroizing<String>, String), Failure> {
    let failed = |error: rcgen::Error| Failure::Stopped(format!("no key could be made: {error}"));
    let mut pair = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&pair).and_then(|csr| csr.pem()).map_err(failed)?;
    let key = Zeroizing::new(pair.serialize_pem());
    pair.zeroize();
    Ok((key, csr))
}

fn text<'a>(answer: &'a Value, member: &str) -> Result<&'a str, Failure> {
    let missing = || Failure::OutOfReach("the answer holds no certificate: is this a broker?".to_owned());
    answer[member].as_str().ok_or_else(missing)
}

/// A file that is written aside, to be put in its place whole.
struct Staged {
    aside: NamedTempFile,
    path: PathBuf,
}

impl Staged {
    fn new(dir: &Path, name: &str, mode: u32, text: &str) -> Result<Self, Failure> {
        let path = dir.join(name);
        let failed = |error: std::io::Error| Failure::Stopped(format!("{} cannot be written: {error}", path.display()));
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut builder = tempfile::Builder::new();
        let aside =
            builder.prefix(".new-").permissions(Permissions::from_mode(0o600)).tempfile_in(dir).map_err(failed)?;
        let write = |mut file: &std::fs::File| {
            file.write_all(text.as_bytes())?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        };
        write(aside.as_file()).map_err(failed)?;
        Ok(Self { aside, path })
    }

    fn put_in_place(self) -> Result<(), Failure> {
        let Self { aside, path } = self;
        let failed = |why: tempfile::PersistError| {
            Failure::Stopped(format!("{} cannot be written: {}", path.display(), why.error))
        };
        aside.persist(&path).map_err(failed).map(drop)
    }
}
