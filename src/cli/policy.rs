//! `remit policy …`: policies that are only files yet.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Output, exit::Failure, show::say};
use crate::policy::{BadPolicies, Cases, Policies};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Check the policies of a directory as `serve` would, and that they decide what their cases say.
    #[command(after_help = EXAMPLES)]
    Check(Check),
}

const EXAMPLES: &str = "Examples:
  remit policy check policies
  remit policy check policies/production --cases policies/cases.toml";

/// Every policy is parsed, fits the schema, and has an `@id` of its own. Then every case is decided.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The directory of `*.cedar` files, `policy.dir` in a configuration.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// What they are to decide [default: `cases.toml` in the directory, if it is there]
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Of the cases, those that have this `set`, or none [default: the name of the directory]
    #[arg(long, value_name = "NAME")]
    set: Option<String>,
}

/// How the cases went.
#[derive(Default)]
struct Outcome {
    /// Name, and what was decided instead, if it was not what the case says.
    cases: Vec<(String, Option<String>)>,
    /// How many were about other sets.
    skipped: usize,
    /// Policies that decided none of them.
    untried: Vec<String>,
}

impl PolicyCommand {
    pub(super) fn run(self, output: Output) -> Result<(), Failure> {
        let PolicyCommand::Check(check) = self;
        match (check.check(), output) {
            (Ok((policies, outcome)), _) => check.report(&policies, outcome.as_ref(), output),
            (Err(mistakes), Output::Json) => {
                say(&json!({"dir": check.dir, "accepted": false, "mistakes": mistakes}).to_string());
                Err(Failure::CheckFailed)
            }
            (Err(mistakes), Output::Text) => Err(Failure::Configuration(mistakes.join("\n"))),
        }
    }
}

impl Check {
    fn check(&self) -> Result<(Policies, Option<Outcome>), Vec<String>> {
        let cases = self.case_file().map(|file| Cases::read(&file).map(|cases| (file, cases))).transpose();
        let policies = Policies::load(&self.dir).map_err(|BadPolicies(mistakes)| mistakes);
        match (policies, cases) {
            (Ok(policies), Ok(None)) => Ok((policies, None)),
            (Ok(policies), Ok(Some((file, cases)))) => {
                let outcome = self.decide(&policies, &file, &cases).map_err(|mistake| vec![mistake])?;
                Ok((policies, Some(outcome)))
            }
            (policies, cases) => Err(policies.err().into_iter().flatten().chain(cases.err()).collect()),
        }
    }

    fn case_file(&self) -> Option<PathBuf> {
        let beside = || Some(self.dir.join("cases.toml")).filter(|file| file.exists());
        self.cases.clone().or_else(beside)
    }

    fn decide(&self, policies: &Policies, file: &Path, cases: &Cases) -> Result<Outcome, String> {
        let named = || self.dir.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
        let set = self.set.clone().or_else(named).unwrap_or_default();
        let (mut outcome, mut deciding) = (Outcome::default(), BTreeSet::new());
        for case in cases.about(&set) {
            let wrong = match policies.decide(case) {
                Ok(decided) => {
                    let wrong = (decided != case.expected()).then(|| decided.to_string());
                    deciding.extend(decided.policies);
                    wrong.map(|decided| format!("expected {}, decided {decided}", case.expected()))
                }
                Err(why) => Some(why),
            };
            outcome.cases.push((case.name().to_owned(), wrong));
        }
        if outcome.cases.is_empty() {
            let sets: Vec<_> = cases.sets().into_iter().collect();
            return Err(format!(
                "{}: no case is about the set `{set}`; `--set` chooses another of: {}; without cases of your own, remove the file",
                file.display(),
                sets.join(", ")
            ));
        }
        outcome.skipped = cases.count() - outcome.cases.len();
        outcome.untried = policies.names().filter(|id| !deciding.contains(*id)).map(str::to_owned).collect();
        Ok(outcome)
    }

    fn report(&self, policies: &Policies, outcome: Option<&Outcome>, output: Output) -> Result<(), Failure> {
        let failed =
            outcome.into_iter().flat_map(|outcome| &outcome.cases).filter(|(_, wrong)| wrong.is_some()).count();
        match output {
            Output::Text => say(&self.text(policies, outcome, failed)),
            Output::Json => say(&self.json(policies, outcome, failed).to_string()),
        }
        match (failed, output) {
            (0, _) => Ok(()),
            (_, Output::Json) => Err(Failure::CheckFailed),
            (failed, Output::Text) => Err(Failure::Configuration(format!("{failed} of the cases failed"))),
        }
    }

    fn text(&self, policies: &Policies, outcome: Option<&Outcome>, failed: usize) -> String {
        let names: Vec<_> = policies.names().collect();
        let mut text = format!("{}: {} policies fit the schema", self.dir.display(), names.len());
        for name in names {
            let _ = write!(text, "\n  {name}");
        }
        let Some(outcome) = outcome else { return text + "\nno cases: --cases FILE says what they are to decide" };
        let passed = outcome.cases.len() - failed;
        let _ = write!(text, "\ncases: {passed} passed, {failed} failed, {} about other sets", outcome.skipped);
        for (name, wrong) in &outcome.cases {
            let _ = match wrong {
                None => write!(text, "\n  passed  {name}"),
                Some(wrong) => write!(text, "\n  FAILED  {name}: {wrong}"),
            };
        }
        if !outcome.untried.is_empty() {
            let _ = write!(text, "\nno case is decided by: {}", outcome.untried.join(", "));
        }
        text
    }

    fn json(&self, policies: &Policies, outcome: Option<&Outcome>, failed: usize) -> Value {
        let mut report = json!({
            "dir": self.dir, "accepted": failed == 0, "mistakes": [],
            "policies": policies.names().collect::<Vec<_>>(), "digest": policies.digest(),
        });
        if let Some(outcome) = outcome {
            let case = |(name, wrong): &(String, Option<String>)| json!({"name": name, "passed": wrong.is_none(), "reason": wrong});
            report["cases"] = outcome.cases.iter().map(case).collect();
            report["skipped"] = outcome.skipped.into();
            report["untried"] = json!(outcome.untried);
        }
        report
    }
}
