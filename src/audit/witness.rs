//! What a broker remembers of its log where whoever can write the log's files cannot: how it ended. What was done to the files while no
//! broker ran shows when the next one starts, before it signs anything.
//!
//! It is noted in a file beside the broker's journal after every group of records, and in the store with every checkpoint: the store
//! knows of it too when the whole machine was put back to an older copy.

use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    chain::{Head, Record},
    segment::Segment,
};
use crate::own_dir;

/// The file, in the directory of the journal.
const FILE: &str = "audit-head";
/// How long what stands in it is, in octets: always the same, so that it is replaced in one piece.
const LENGTH: usize = 256;
/// How many records a log can have that a broker has only begun: nothing of it is worth more than what it says of the one before.
const BEGUN: u64 = 2;

/// How a log ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its name.
    pub log: String,
    /// Its last record.
    #[serde(flatten)]
    pub head: Head,
}

/// Where it is noted how the log ends.
pub struct Witness {
    file: File,
    path: PathBuf,
    /// Whether the last note failed.
    failed: bool,
}

impl Witness {
    /// Opens (or makes) the file in `dir`: it, and what it says.
    ///
    /// # Errors
    /// In a sentence that says what to do.
    pub fn open(dir: &Path) -> Result<(Self, Option<Ending>), String> {
        let path = dir.join(FILE);
        let failed = |error: io::Error| format!("{} cannot be used: {error}", path.display());
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let mut text = String::new();
        (&file).take(LENGTH as u64).read_to_string(&mut text).map_err(failed)?;
        let ending = if text.is_empty() {
            own_dir::sync(dir).map_err(failed)?;
            None
        } else {
            let ending = serde_json::from_str(text.trim_end()).map_err(|_| {
                format!(
                    "{} does not say how the audit log ended: hold the log against its anchors (`remit audit verify --anchor`), and \
                     remove the file",
                    path.display()
                )
            });
            Some(ending?)
        };
        Ok((Self { file, path, failed: false }, ending))
    }

    /// The log ends like that. Not synced: a process that dies loses nothing by it, and after a loss of power it says less.
    pub(super) fn note(&mut self, ending: &Ending) {
        let noted = serde_json::to_string(ending).map_err(io::Error::other).and_then(|text| {
            let line = format!("{text:<width$}\n", width = LENGTH - 1);
            self.file.write_all_at(line.as_bytes(), 0)
        });
        self.told(&noted);
    }

    /// Returns once what was noted is on disk, or cannot be.
    pub(super) fn sync(&mut self) {
        let synced = self.file.sync_data();
        self.told(&synced);
    }

    fn told(&mut self, outcome: &io::Result<()>) {
        if let Err(error) = outcome
            && !self.failed
        {
            tracing::error!(%error, path = %self.path.display(), "how the audit log ends is not noted outside it");
        }
        self.failed = outcome.is_err();
    }
}

/// What is remembered of a log that is opened.
#[derive(Default)]
pub struct Remembered {
    /// In the broker's own file, where it goes on being noted.
    pub here: Option<(Witness, Option<Ending>)>,
    /// In the store.
    pub elsewhere: Option<Ending>,
}

/// What is to be said in a log of how it was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// Another log was there before, and is gone.
    pub(super) gone: Option<Ending>,
    /// The first and the last of the records that nothing shows to be the broker's.
    pub(super) unwitnessed: Option<(u64, u64)>,
}

/// Holds a log that was found against what is remembered of it, and against what was `signed` of it last. `found` is its name, if it has
/// one yet, and its end.
///
/// # Errors
/// In a sentence, where it is not the one that was written.
pub(super) fn judge(
    dir: &Path,
    found: (Option<&str>, Head),
    signed: Option<Ending>,
    remembered: &Remembered,
) -> Result<Judged, String> {
    let (log, end) = found;
    let is_new = log.is_none() || end.sequence <= BEGUN;
    let here = remembered.here.as_ref().and_then(|(witness, ending)| Some((witness, ending.as_ref()?)));
    let is_known = here.is_some_and(|(_, ending)| Some(&*ending.log) == log);
    let mut known = Vec::new();
    known.extend(signed.map(|ending| ("the last checkpoint".to_owned(), ending, false)));
    known.extend(here.map(|(witness, ending)| (witness.path.display().to_string(), ending.clone(), is_new)));
    let elsewhere = remembered.elsewhere.clone();
    known.extend(elsewhere.map(|ending| ("the store".to_owned(), ending, is_new || is_known)));

    let refused = |place: &str, what: &str| {
        format!(
            "the audit log in {} is not the one that this broker wrote: {what}, says {place}. Records were altered or taken away, or an \
             old copy was put back. Move the log away, and keep it: the next one will say that it is gone",
            dir.display()
        )
    };
    let (mut judged, mut good_to) = (Judged::default(), 0);
    // Whether a record that is remembered is there, and one that is not.
    let (mut is_found, mut missing) = (false, None);
    for (place, ending, may_be_another) in known {
        let refused = |what: &str| Err(refused(&place, what));
        let Ending { log: name, head } = &ending;
        if log != Some(name) {
            if !may_be_another {
                return refused(&format!("that was {name}, with {} records", head.sequence));
            }
            if judged.gone.as_ref().is_none_or(|gone| gone.head.sequence < head.sequence) {
                judged.gone = Some(ending);
            }
        } else if head.sequence > end.sequence {
            return refused(&format!("it ends at record {}, and record {} was written", end.sequence, head.sequence));
        } else {
            let there = if head.sequence == end.sequence { Ok(Some(end)) } else { head_at(dir, head.sequence) };
            match there.map_err(|error| format!("the audit log in {} cannot be read: {error}", dir.display()))? {
                Some(there) if there != *head => {
                    return refused(&format!("its record {} is not the one that was written", head.sequence));
                }
                Some(_) => {
                    is_found = true;
                    good_to = good_to.max(head.sequence);
                }
                // It was removed because it had been kept for long enough: then something newer is remembered.
                None => missing = Some((place, head.sequence)),
            }
        }
    }
    if !is_found && let Some((place, sequence)) = missing {
        return Err(refused(&place, &format!("it begins after record {sequence}, the last that was written")));
    }
    if remembered.here.is_some() && log.is_some() && good_to < end.sequence {
        judged.unwitnessed = Some((good_to + 1, end.sequence));
    }
    Ok(judged)
}

/// The head of a log at a record; `None` where the log begins later.
fn head_at(dir: &Path, sequence: u64) -> io::Result<Option<Head>> {
    let segments = Segment::list(dir)?;
    let Some(segment) = segments.iter().rev().find(|segment| segment.first <= sequence) else { return Ok(None) };
    // What stands there is canonical, and few lines hold it by chance.
    let member = format!("\"sequence\":{sequence}");
    let mut file = BufReader::with_capacity(1 << 18, File::open(&segment.path)?);
    let mut line = String::new();
    while file.read_line(&mut line)? > 0 {
        if line.contains(&member)
            && let Ok(record) = Record::read(line.trim_end_matches('\n').as_bytes())
            && record.sequence == sequence
        {
            return record.before().followed_by(&record).map(Some).map_err(io::Error::other);
        }
        line.clear();
    }
    Err(io::Error::other(format!("record {sequence} is not where it belongs")))
}
