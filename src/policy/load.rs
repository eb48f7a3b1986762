//! Files → a set of policies that fits the schema, or every mistake in them.

use cedar_policy::{
    Effect, Policy, PolicyId, PolicySet, Template, ValidationError, ValidationMode, Validator, ffi::DetailedError,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
};

use super::{BadPolicies, Limits, request::Vocabulary};

/// The longest time that an annotation may set: a day, which no task outlives.
const MOST_SECONDS: u32 = 86_400;

/// A file of policies, as it was read: what is checked is what is compiled.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
}

/// What the annotations of the policies say, by `@id`.
pub(super) type Annotations = BTreeMap<String, Limits>;

/// Reads the `*.cedar` files of a directory, in the order of their names, and says what could not be read.
pub(super) fn read(dir: &Path) -> (Vec<Source>, Vec<String>) {
    let entries = match fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(why) => return (Vec::new(), vec![format!("`policy.dir`: {}: {why}", dir.display())]),
    };
    let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cedar"));
    paths.sort();

    let (mut sources, mut mistakes) = (Vec::new(), Vec::new());
    for path in paths {
        let name = path.display().to_string();
        if path.is_dir() {
            mistakes.push(format!("{name}: a directory; policies are files, and directories are not descended into"));
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(text) => sources.push(Source { name, text }),
            Err(why) => mistakes.push(format!("{name}: {why}")),
        }
    }
    if sources.is_empty() && mistakes.is_empty() {
        mistakes.push(format!("{}: no `*.cedar` file; without policies everything is denied", dir.display()));
    }
    (sources, mistakes)
}

/// Checks every policy of every file; `mistakes` are those made before.
pub(super) fn check(
    sources: &[Source],
    mut mistakes: Vec<String>,
    vocabulary: &Vocabulary,
) -> Result<Annotations, BadPolicies> {
    let validator = Validator::new(vocabulary.schema().clone());
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut limits = Annotations::new();
    for source in sources {
        let file = match source.text.parse::<PolicySet>() {
            Ok(file) => file,
            Err(errors) => {
                mistakes.extend(errors.iter().map(|error| source.mistake(&DetailedError::from(error))));
                continue;
            }
        };
        for template in file.templates() {
            mistakes
                .push(source.at(template_start(template), "templates (`?principal`, `?resource`) are not supported"));
        }
        let mut policies: Vec<_> = file.policies().collect();
        policies.sort_by_key(|policy| start(policy));
        for policy in policies {
            let at = |what: &str| source.at(start(policy), what);
            match annotations(policy) {
                Ok((id, limit)) => {
                    if let Some(first) = seen.insert(id.clone(), at("")) {
                        mistakes.push(at(&format!("`@id(\"{id}\")` is taken by the policy at {first}")));
                    }
                    limits.insert(id, limit);
                }
                Err(whats) => mistakes.extend(whats.iter().map(|what| at(what))),
            }
            for uid in policy.entity_literals().iter().filter(|uid| !vocabulary.can_exist(uid)) {
                mistakes.push(at(&format!(
                    "{uid} is nothing that a request can name: compare with how the broker writes it"
                )));
            }
        }
        mistakes.extend(misfits(source, &file, &validator));
    }
    if mistakes.is_empty() && limits.is_empty() {
        mistakes.push("no policy in any file; without policies everything is denied".to_owned());
    }
    if mistakes.is_empty() { Ok(limits) } else { Err(BadPolicies(mistakes)) }
}

/// Where the policies of a file do not fit the schema.
fn misfits(source: &Source, file: &PolicySet, validator: &Validator) -> Vec<String> {
    let result = validator.validate(file, ValidationMode::Strict);
    let errors = result.validation_errors().map(|error| (error.policy_id(), DetailedError::from(error)));
    let wrong: HashSet<_> = result.validation_errors().map(ValidationError::policy_id).collect();
    // What only draws a warning from Cedar (a condition that is never true, look-alike characters) is no less a mistake.
    let warnings = result.validation_warnings().map(|warning| (warning.policy_id(), DetailedError::from(warning)));
    let warnings = warnings.filter(|(id, _)| !wrong.contains(id));
    let mut misfits: Vec<_> = errors
        .chain(warnings)
        .map(|(id, error)| {
            let mut what = source.mistake(&error);
            // Cedar calls a policy by its position; whoever wrote it calls it by its `@id`.
            if let Some(name) = file.annotation(id, "id") {
                what = what.replace(&format!("policy `{id}`"), &format!("policy `{name}`"));
            }
            // It repeats itself for every action, and they all have the same context.
            for action in validator.schema().actions() {
                what = what.replace(&format!(" for {action}"), "");
            }
            (offset(&error), what)
        })
        .collect();
    misfits.sort();
    misfits.dedup();
    misfits.into_iter().map(|(_, what)| what).collect()
}

/// Parses files that were checked. Two results share nothing, so that two threads never touch the same counters.
pub(super) fn compile(sources: &[Source]) -> Result<PolicySet, BadPolicies> {
    let broken = |why: String| BadPolicies(vec![why]);
    let mut set = PolicySet::new();
    for source in sources {
        let file: PolicySet = source.text.parse().map_err(|why| broken(format!("{}: {why}", source.name)))?;
        for policy in file.policies() {
            let named = policy.new_id(PolicyId::new(policy.annotation("id").unwrap_or_default()));
            set.add(named).map_err(|why| broken(format!("{}: {why}", source.name)))?;
        }
    }
    Ok(set)
}

/// The name and the limits of a policy, or what is wrong with its annotations.
fn annotations(policy: &Policy) -> Result<(String, Limits), Vec<String>> {
    let mut mistakes = Vec::new();
    for (key, _) in policy.annotations() {
        match key {
            "id" | "description" | "max_ttl" | "max_lifetime" | "idle_ttl" | "attest_every" | "require_reports" => {}
            "needs_approval" => mistakes.push(format!("`@{key}` is not available yet")),
            _ => mistakes.push(format!(
                "`@{key}` is unknown; there are `@id`, `@description`, `@max_ttl`, `@max_lifetime`, `@idle_ttl`, \
                 `@attest_every` and `@require_reports`"
            )),
        }
    }
    let id = policy.annotation("id").unwrap_or_default();
    if id.is_empty() {
        mistakes.push("a policy carries an `@id(\"…\")`: it is its name in answers and in the audit".to_owned());
    } else if id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        mistakes.push("an `@id` is 1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `-`".to_owned());
    }
    let mut limit = |key: &str| {
        let seconds = policy.annotation(key).map(seconds);
        if seconds.is_some() && policy.effect() == Effect::Forbid {
            mistakes.push(format!("`@{key}` stands on a `permit` only"));
        } else if seconds == Some(None) {
            mistakes.push(format!("`@{key}` is a whole number of seconds, 1 to {MOST_SECONDS}"));
        }
        seconds.flatten()
    };
    let limits = Limits {
        max_ttl: limit("max_ttl"),
        max_lifetime: limit("max_lifetime"),
        idle_ttl: limit("idle_ttl"),
        attest_every: limit("attest_every"),
        require_reports: limit("require_reports"),
    };
    if mistakes.is_empty() { Ok((id.to_owned(), limits)) } else { Err(mistakes) }
}

fn seconds(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|seconds| digits && (1..=MOST_SECONDS).contains(seconds))
}

fn start(policy: &Policy) -> usize {
    match policy.as_ref().loc() {
        Some(loc) => loc.start(),
        None => 0,
    }
}

fn template_start(template: &Template) -> usize {
    match template.as_ref().loc() {
        Some(loc) => loc.start(),
        None => 0,
    }
}

impl Source {
    fn at(&self, offset: usize, what: &str) -> String {
        let line = 1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count();
        let place = format!("{}:{line}", self.name);
        if what.is_empty() { place } else { format!("{place}: {what}") }
    }

    fn mistake(&self, error: &DetailedError) -> String {
        let help = error.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        self.at(offset(error), &format!("{}{help}", error.message).replace('\n', " "))
    }
}

fn offset(error: &DetailedError) -> usize {
    error.source_locations.first().map_or(0, |label| label.loc.start)
}
