//! No secret is where it does not belong. Everything that a test run knows to be secret is noted as it comes up; whatever a broker or
//! a store leaves behind is searched for all of it, in every form that it may have been written in, when it goes away.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::{self, Write as _},
    fs,
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// Shorter ones are found by chance.
const SHORTEST: usize = 8;
/// As much of a secret, in octets, is enough to know it by.
const ENOUGH: usize = 32;
/// Files of keys and tokens are smaller.
const LARGEST_KEY_FILE: u64 = 64 * 1024;

/// What is never to be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Secret {
    kind: String,
    octets: Vec<u8>,
    /// What it is looked for in: every form there is, or as it stands because it is one already.
    form: Option<&'static str>,
}

#[derive(Default)]
struct Known {
    /// In the order in which they came up.
    secrets: Vec<Secret>,
    digests: HashSet<[u8; 32]>,
    /// How many there were when something first ran in a directory.
    marks: HashMap<PathBuf, usize>,
    /// Errors that a broker answered with, by its origin.
    errors: HashMap<String, String>,
}

fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note_in_form(kind: &str, octets: &[u8], form: Option<&'static str>) {
    // Nor is one that is hardly random: zeros for a signature are found wherever there is nothing.
    let distinct: BTreeSet<_> = octets[..octets.len().min(ENOUGH)].iter().collect();
    if octets.len() < SHORTEST || distinct.len() < SHORTEST / 2 {
        return;
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, octets).as_ref().try_into().expect("32 octets");
    let mut known = known();
    if known.digests.insert(digest) {
        known.secrets.push(Secret { kind: kind.to_owned(), octets: octets.to_vec(), form });
    }
}

/// Something is secret, in whatever form.
pub(crate) fn note(kind: &str, octets: &[u8]) {
    note_in_form(kind, octets, None);
}

/// A JWT is: whoever has the signature has the token, and the rest of it is no secret.
pub(crate) fn note_token(kind: &str, token: &str) {
    let mut parts = token.split('.');
    if let (Some(head), Some(_), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        && head.starts_with("eyJ")
        && let Ok(raw) = BASE64_URL_SAFE_NO_PAD.decode(signature)
    {
        // Twice encoded is a form too.
        note(kind, signature.as_bytes());
        note(kind, &raw);
    }
}

/// Notes the tokens of an answer, and keeps what it says if it is an error.
pub(crate) fn note_answer(url: &url::Url, answer: &super::Answer) {
    fn tokens(value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match value.as_str() {
                        Some(token) if name == "access_token" || name == "task_token" => note_token(name, token),
                        _ => tokens(value),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(tokens),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    if answer.status.as_u16() >= 400 {
        let mut known = known();
        let errors = known.errors.entry(url.origin().ascii_serialization()).or_default();
        let _ = writeln!(errors, "{:?}\n{}", answer.headers, answer.text);
    } else if let Ok(body) = serde_json::from_str(&answer.text) {
        tokens(&body);
    }
}

/// What a broker answered with, so far.
pub(crate) fn errors_of(origin: &str) -> String {
    known().errors.remove(origin).unwrap_or_default()
}

/// Notes what is in the files of keys and of tokens below a directory.
pub(crate) fn note_files(dir: &Path) {
    for path in files(dir) {
        let small = fs::metadata(&path).is_ok_and(|about| about.len() <= LARGEST_KEY_FILE);
        let Some(text) = small.then(|| fs::read_to_string(&path).ok()).flatten() else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for block in text.split("-----BEGIN ").skip(1) {
            if block.split("-----").next().is_some_and(|label| label.ends_with("PRIVATE KEY")) {
                note_key(&name, block);
            }
        }
        let text = text.trim();
        let word = text.len() < 200 && text.bytes().all(|byte| byte.is_ascii_graphic());
        if word
            && path.extension().is_some_and(|kind| kind == "key")
            && text.len() == 64
            && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
            note(&name, &(0..64).step_by(2).map(digit).collect::<Vec<_>>());
        } else if word && name.contains("token") {
            note(&name, text.as_bytes());
        }
    }
}

/// A private key: its secret numbers, and the lines of PEM that they are in.
fn note_key(name: &str, block: &str) {
    let lines: Vec<_> = block.lines().skip(1).take_while(|line| !line.starts_with('-')).collect();
    let Ok(der) = BASE64_STANDARD.decode(lines.concat()) else { return };
    let (secret, public) = numbers(&der);
    for number in &secret {
        note(name, &der[number.clone()]);
    }
    let touches = |one: &Range<usize>, other: &Range<usize>| one.start < other.end && other.start < one.end;
    for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.len() >= 40) {
        let octets = n * 48..(n + 1) * 48;
        if secret.iter().any(|number| touches(number, &octets)) && !public.iter().any(|part| touches(part, &octets)) {
            note_in_form(name, line.as_bytes(), Some("PEM"));
        }
    }
}

/// Where the secret numbers of a private key stand (PKCS#8, PKCS#1 or SEC 1; DER), and the public ones: an RSA modulus comes first.
fn numbers(der: &[u8]) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    fn walk(der: &[u8], within: Range<usize>, leaves: &mut Vec<(u8, Range<usize>)>) -> Option<()> {
        let mut at = within.start;
        while at < within.end {
            let (tag, first) = (*der.get(at)?, usize::from(*der.get(at + 1)?));
            let octets = first.saturating_sub(128);
            let length = der.get(at + 2..at + 2 + octets)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            let start = at + 2 + octets;
            let body = start..start + if first < 128 { first } else { length };
            if body.end > within.end {
                return None;
            }
            let before = leaves.len();
            let nested = matches!(tag, 0x30 | 0x04) && walk(der, body.clone(), leaves).is_some() && !body.is_empty();
            if !nested {
                leaves.truncate(before);
                leaves.push((tag, body.clone()));
            }
            at = body.end;
        }
        Some(())
    }
    let mut leaves = Vec::new();
    walk(der, 0..der.len(), &mut leaves);
    leaves.retain(|(tag, body)| matches!(tag, 0x02..=0x04) && body.len() >= 24);
    // The sign of a number is no part of it.
    for (tag, body) in &mut leaves {
        body.start += usize::from(*tag == 2 && der[body.start] == 0);
    }
    let modulus = leaves.iter().position(|(tag, _)| *tag == 2);
    let (mut secret, mut public) = (Vec::new(), Vec::new());
    for (n, (tag, body)) in leaves.into_iter().enumerate() {
        if tag == 3 || Some(n) == modulus { public.push(body) } else { secret.push(body) }
    }
    (secret, public)
}

/// Where the secrets begin that something in this directory can have come by.
pub(crate) fn mark(dir: &Path) -> usize {
    let mut known = known();
    let so_far = known.secrets.len();
    *known.marks.entry(dir.to_owned()).or_insert(so_far)
}

/// The forms that octets are written in, each by its name.
fn forms(octets: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let octets = &octets[..octets.len().min(ENOUGH)];
    let hex = remit::id::hex(octets);
    let list = octets[..SHORTEST].iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let mut forms = vec![
        ("as it is", octets.to_vec()),
        ("hexadecimal, in capitals", hex.to_ascii_uppercase().into_bytes()),
        ("hexadecimal", hex.into_bytes()),
        ("a list of numbers", list.into_bytes()),
    ];
    // Behind none, one or two other octets: only characters that hold nothing of what stands around it.
    for before in 0..3 {
        let moved = [&[0; 2][..before], octets].concat();
        let whole = (before * 8).div_ceil(6)..moved.len() * 8 / 6;
        for (name, alphabet) in [("base64", &BASE64_STANDARD_NO_PAD), ("base64url", &BASE64_URL_SAFE_NO_PAD)] {
            forms.push((name, alphabet.encode(&moved).as_bytes()[whole.clone()].to_vec()));
        }
    }
    forms
}

/// A secret where it does not belong: said without saying it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leak {
    pub(crate) kind: String,
    pub(crate) form: &'static str,
    pub(crate) place: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a secret ({}), as {}, in {}", self.kind, self.form, self.place)
    }
}

/// Everything that is secret of what came up since.
pub(crate) fn leaks(since: usize, places: &[(String, Vec<u8>)]) -> BTreeSet<Leak> {
    let secrets = known().secrets[since..].to_vec();
    let parties = [
        super::GIT_TOKEN,
        super::REGISTRY_TOKEN,
        super::RESPONDER,
        super::VIEWER,
        super::ADMIN,
        super::APPROVER,
        crate::signals::RECEIVER_TOKEN,
    ];
    let parties = parties.map(|token| Secret {
        kind: "the token of an operator or a service".to_owned(),
        octets: token.as_bytes().to_vec(),
        form: None,
    });
    let (mut patterns, mut names) = (Vec::new(), Vec::new());
    for Secret { kind, octets, form } in secrets.into_iter().chain(parties) {
        let forms = match form {
            Some(form) => vec![(form, octets)],
            None => forms(&octets),
        };
        for (form, pattern) in forms {
            names.push((kind.clone(), form));
            patterns.push(pattern);
        }
    }
    let search = AhoCorasick::builder()
        .kind(Some(AhoCorasickKind::NoncontiguousNFA))
        .match_kind(MatchKind::Standard)
        .build(&patterns)
        .expect("patterns");
    let mut found = BTreeSet::new();
    for (place, octets) in places {
        for hit in search.find_overlapping_iter(octets) {
            let (kind, form) = &names[hit.pattern().as_usize()];
            found.insert(Leak { kind: kind.clone(), form, place: place.clone() });
        }
    }
    found
}

/// Fails the test if there is anything, and the run even where the test no longer can.
pub(crate) fn expect_none(since: usize, places: &[(String, Vec<u8>)]) {
    let found = leaks(since, places);
    if found.is_empty() {
        return;
    }
    let said = found.iter().fold(String::new(), |said, leak| said + &leak.to_string() + "\n");
    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join("leaks.txt");
    let written = fs::OpenOptions::new().append(true).create(true).open(list);
    written.and_then(|mut list| list.write_all(said.as_bytes())).expect("written");
    if std::thread::panicking() {
        eprintln!("{said}");
    } else {
        panic!("{said}");
    }
}

/// The files below a directory, each by its path.
pub(crate) fn places(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |path: PathBuf| Some((path.display().to_string(), fs::read(&path).ok()?));
    files(dir).into_iter().filter_map(read).collect()
}

/// Files below a directory; a link is none.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
