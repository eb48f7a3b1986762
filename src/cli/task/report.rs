//! `remit task report`: what was done, as a digest and a size that are computed here.

use clap::{Args, builder::NonEmptyStringValueParser};
use serde_json::{Value, json};
use std::{fs, io::Read as _, path::PathBuf};

use super::super::exit::Failure;
use crate::{id::TaskId, task};

pub(super) const EXAMPLES: &str = "Examples:
  remit task report TASK --sequence 1 --kind prompt --label plan --file prompt.txt
  git diff | remit task report TASK --sequence 2 --kind tool_result --label git.diff --file -
  remit task report TASK --sequence 3 --kind tool_call --label git.clone --digest sha-256:… --size 1024

The content stays here: its SHA-256 and its size are sent. --with-body sends it too, where the broker keeps contents.";

/// One thing that was done.
#[derive(Debug, Args)]
pub(in crate::cli) struct Report {
    /// The task.
    pub(super) task: TaskId,
    /// The how many-th report of the task it is, from 1 on: a repeat has the same number.
    #[arg(long, value_name = "NUMBER")]
    sequence: u32,
    /// What it was: a `tool_call`, a `tool_result`, a `prompt` or a `completion`.
    #[arg(long)]
    kind: String,
    /// What it is called.
    #[arg(long, value_name = "TEXT")]
    label: String,
    /// The content; `-` reads it from standard input.
    #[arg(long, required_unless_present = "digest", conflicts_with_all = ["digest", "size"])]
    file: Option<PathBuf>,
    /// The digest of a content that is elsewhere: sha-256: and base64url.
    #[arg(long, requires = "size", value_parser = NonEmptyStringValueParser::new())]
    digest: Option<String>,
    /// The size of that content, in octets.
    #[arg(long, value_name = "OCTETS", requires = "digest")]
    size: Option<u64>,
    /// Send the content too.
    #[arg(long, requires = "file")]
    with_body: bool,
}

impl Report {
    /// The body of the request.
    pub(super) fn body(&self) -> Result<Value, Failure> {
        let Self { sequence, kind, label, .. } = self;
        let mut report = json!({"kind": kind, "label": label, "sequence": sequence});
        if let Some(file) = &self.file {
            let content = content(file)?;
            report["digest"] = task::digest(&content).into();
            report["size"] = content.len().into();
            if self.with_body {
                let name = file.display();
                let text = String::from_utf8(content);
                report["body"] = text.map_err(|_| Failure::Input(format!("{name}: --with-body takes text")))?.into();
            }
        } else {
            report["digest"] = json!(self.digest);
            report["size"] = json!(self.size);
        }
        Ok(json!({"reports": [report]}))
    }
}

fn content(file: &PathBuf) -> Result<Vec<u8>, Failure> {
    let read = if file.as_os_str() == "-" {
        let mut content = Vec::new();
        std::io::stdin().lock().read_to_end(&mut content).map(|_| content)
    } else {
        fs::read(file)
    };
    read.map_err(|error| Failure::Input(format!("{}: {error}", file.display())))
}
