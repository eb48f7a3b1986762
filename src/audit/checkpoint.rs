//! Signed statements of where the log ended: what is behind one can be neither changed nor cut off without being found out, by
//! whoever has the public key and, for the tail, a copy of the checkpoint from elsewhere.
//!
//! Each is a compact JWS (`typ: remit-audit-checkpoint+jwt`), signed with a key that signs nothing else. They stand one a line in
//! `checkpoints`; the public keys, a JWK Set, in `checkpoints.jwks`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

use super::{chain::Head, segment::hold};
use crate::{
    clock::Time,
    failpoint::{Step, reached},
    jose::{Invalid, SigningKey, Unverified, VerifyingKey},
    secret_file,
};

/// The `typ` of a checkpoint.
const TYP: &str = "remit-audit-checkpoint+jwt";
/// The checkpoints of a log, in its directory.
pub(super) const FILE: &str = "checkpoints";
/// The public keys of the checkpoints, in the same directory.
pub const KEYS: &str = "checkpoints.jwks";

/// Room on the disk that is taken before it is needed, in bytes: what is on record on a full disk is signed too.
const AHEAD: u64 = 64 << 10;

/// How much of the end of the checkpoints is looked at before the rest of them, in bytes: every one of them takes a while to verify.
const TAIL: u64 = 64 << 10;

/// The log ended here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which log.
    pub log: String,
    /// Its last record.
    #[serde(flatten)]
    pub head: Head,
    /// When (Unix seconds).
    pub iat: i64,
}

/// The public keys by which checkpoints are believed.
#[derive(Debug, Clone)]
pub struct CheckpointKeys(HashMap<String, VerifyingKey>);

impl CheckpointKeys {
    /// Reads a JWK Set, or one JWK.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, Invalid> {
        let set: Value = serde_json::from_str(text).map_err(|_| Invalid("not a JWK Set"))?;
        let one = std::slice::from_ref(&set);
        let keys = set.get("keys").map_or(Some(one), |keys| keys.as_array().map(Vec::as_slice));
        let parse = |jwk: &Value| {
            let key = VerifyingKey::from_jwk(jwk, jsonwebtoken::Algorithm::ES256)?;
            Ok((key.thumbprint().as_str().to_owned(), key))
        };
        keys.ok_or(Invalid("not a JWK Set"))?.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// When it is none, or none that these keys signed.
    pub fn verify(&self, text: &str) -> Result<Checkpoint, Invalid> {
        let unverified = Unverified::parse(text)?;
        if unverified.typ() != Some(TYP) || !unverified.is_plain() {
            return Err(Invalid("not a checkpoint of an audit log"));
        }
        let key = unverified.kid().and_then(|kid| self.0.get(kid)).ok_or(Invalid("it is signed with another key"))?;
        unverified.verify(key)
    }
}

/// Hands the checkpoints that stand in a file, one a line, to `each` with their lines; what is wrong with the other lines.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path, keys: &CheckpointKeys, each: impl FnMut(Checkpoint, &str)) -> io::Result<Vec<String>> {
    Ok(parse(path, whole(&std::fs::read(path)?), keys, each))
}

/// The lines that have an end: the last may be on its way to the disk, or a crash came.
fn whole(octets: &[u8]) -> &[u8] {
    &octets[..octets.iter().rposition(|&octet| octet == b'\n').map_or(0, |end| end + 1)]
}

fn parse(path: &Path, whole: &[u8], keys: &CheckpointKeys, mut each: impl FnMut(Checkpoint, &str)) -> Vec<String> {
    let mut bad = Vec::new();
    for (at, line) in String::from_utf8_lossy(whole).lines().enumerate() {
        match keys.verify(line) {
            Ok(checkpoint) => each(checkpoint, line),
            Err(why) => bad.push(format!("{}, line {}: {why}", path.display(), at + 1)),
        }
    }
    bad
}

/// Opens checkpoints to add to them.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Adds a checkpoint on a line of its own, or nothing: a part of one would take the next one with it.
pub(super) fn append(file: &mut File, checkpoint: &str) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
    }
    let end = if last == [b'\n'] { "" } else { "\n" };
    let written = file.write_all(format!("{end}{checkpoint}\n").as_bytes()).and_then(|()| file.sync_data());
    if written.is_err() {
        // Where that fails too, the next one begins a line all the same.
        let _ = file.set_len(length);
    }
    written
}

/// A checkpoint, and how it is written.
type Written = (Checkpoint, String);

/// The last checkpoint that one of these keys signed, looked for from the end, and what is wrong with the lines behind it. What a crash
/// left of a line is cut off.
fn find_last(file: &mut File, keys: &CheckpointKeys) -> io::Result<(Option<Written>, Vec<Invalid>)> {
    let size = file.metadata()?.len();
    let mut bad = Vec::new();
    // Almost always it is the very last line; where there is none, all of them are looked at.
    for start in [size.saturating_sub(TAIL), 0] {
        let mut octets = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        file.read_to_end(&mut octets)?;
        let whole = whole(&octets);
        if whole.is_empty() && start > 0 {
            continue;
        }
        let end = start + whole.len() as u64;
        if end < size {
            file.set_len(end)?;
        }
        bad.clear();
        let text = String::from_utf8_lossy(whole);
        // The first of them may be a part of one.
        let begin = if start == 0 { 0 } else { text.find('\n').map_or(text.len(), |at| at + 1) };
        for line in text.get(begin..).unwrap_or_default().lines().rev() {
            match keys.verify(line) {
                Ok(checkpoint) => return Ok((Some((checkpoint, line.to_owned())), bad)),
                Err(why) => bad.push(why),
            }
        }
    }
    Ok((None, bad))
}

/// Takes the room for checkpoints to come. Where there is none, what was taken before lasts for a while, and the next one tries again.
fn take_room(file: &File) {
    let _ = file.metadata().and_then(|about| hold(file, about.len() + AHEAD));
}

/// Signs checkpoints and keeps them beside the log.
pub(super) struct Signer {
    key: SigningKey,
    file: File,
    /// The last one.
    pub(super) last: Option<Checkpoint>,
    /// How that is written, where it was signed before.
    pub(super) found: Option<String>,
}

impl Signer {
    /// Opens the checkpoints of the log in `dir`.
    ///
    /// # Errors
    /// In a sentence: when they cannot be read or written, or none of them is one of ours.
    pub(super) fn open(dir: &Path, key: SigningKey) -> Result<Self, String> {
        let path = dir.join(FILE);
        let keys = publish(&dir.join(KEYS), &key)?;
        let failed = |error: io::Error| format!("{} cannot be opened: {error}", path.display());
        let mut file = open(&path).map_err(failed)?;
        let (last, bad) = find_last(&mut file, &keys).map_err(failed)?;
        if let Some(why) = bad.first() {
            if last.is_none() {
                return Err(format!("no checkpoint is this broker's: {}, its last line: {why}", path.display()));
            }
            tracing::error!(%why, lines = bad.len(), "the last lines among the checkpoints of the audit log are none");
        }
        let (last, found) = last.unzip();
        Ok(Self { key, file, last, found })
    }

    /// Signs where the log ends: the checkpoint as it is written.
    pub(super) fn sign(&mut self, log: &str, head: Head, now: Time) -> Result<String, String> {
        let checkpoint = Checkpoint { log: log.to_owned(), head, iat: now.timestamp() };
        let text = self.key.sign(TYP, &checkpoint).map_err(|why| why.to_string())?;
        take_room(&self.file);
        append(&mut self.file, &text).map_err(|error| error.to_string())?;
        reached(Step::CheckpointKept);
        self.last = Some(checkpoint);
        Ok(text)
    }
}

/// Writes the public half of the key to the others that this log had.
fn publish(path: &PathBuf, key: &SigningKey) -> Result<CheckpointKeys, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{} cannot be used: {error}", path.display());
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({"keys": []}).to_string(),
        text => text.map_err(|error| failed(&error))?,
    };
    let keys = CheckpointKeys::read(&text).map_err(|why| failed(&why))?;
    if keys.0.contains_key(key.kid()) {
        return Ok(keys);
    }
    let mut set: Value = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    let jwk = serde_json::to_value(key.public()).map_err(|error| failed(&error))?;
    set["keys"].as_array_mut().ok_or_else(|| failed(&"not a JWK Set"))?.push(jwk);
    let text = format!("{set}\n");
    // Nothing in it is secret; but it too is for its owner alone, and whole or not there.
    secret_file::overwrite(path, &Zeroizing::new(text.clone()))?;
    CheckpointKeys::read(&text).map_err(|why| failed(&why))
}
