//! Templates: how verified claims become a workload path, an instance, a fact.
//!
//! `{claim}` is one segment, `{claim/*}` may be several, `{/json/pointer}` reaches into nested claims. A value goes in
//! as it is or not at all: nothing is normalised, escaped or cut, so two values never become one name.

use serde_json::Value;

use crate::id::{SpiffeId, TrustDomain};

/// The longest text that a [`TextTemplate`] makes.
const MAX_TEXT: usize = 256;

/// Why claims do not fill a template. Names the claim, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// The evidence does not have the claim.
    #[error("the evidence has no claim `{0}`")]
    Absent(String),
    /// The claim is there, and cannot stand where the template puts it.
    #[error("{0}")]
    Value(String),
}

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    Claim { name: String, several: bool },
}

/// A template of a workload path.
#[derive(Debug, Clone)]
pub(super) struct PathTemplate(Vec<Part>);

/// A template of free text: 1 to 256 bytes without control characters.
#[derive(Debug, Clone)]
pub(super) struct TextTemplate(Vec<Part>);

impl PathTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// When whatever fills it, the result is no workload path, or two different sets of claims would make the same path.
    pub(super) fn parse(text: &str, domain: &TrustDomain) -> Result<Self, String> {
        let parts = parse(text)?;
        let sample: String = parts
            .iter()
            .map(|part| match part {
                Part::Literal(literal) => literal.as_str(),
                Part::Claim { .. } => "x",
            })
            .collect();
        if !sample.starts_with('/') {
            return Err("it must start with `/`".into());
        }
        domain.workload(&sample).map_err(|rule| rule.to_string())?;
        if parts.iter().filter(|part| matches!(part, Part::Claim { several: true, .. })).count() > 1 {
            return Err("at most one claim may fill several segments (`/*`), or two paths could be confused".into());
        }
        let apart = |between: &[Part]| between.iter().any(|part| matches!(part, Part::Literal(l) if l.contains('/')));
        let claims: Vec<usize> = (0..parts.len()).filter(|at| matches!(parts[*at], Part::Claim { .. })).collect();
        if !claims.windows(2).all(|pair| apart(&parts[pair[0]..pair[1]])) {
            return Err("put a `/` between any two claims, or the values of one could pass for the other's".into());
        }
        Ok(Self(parts))
    }

    /// The claims it asks for.
    pub(super) fn claims(&self) -> impl Iterator<Item = &str> {
        claims_of(&self.0)
    }

    /// The template without the names of its claims: two attestors with the same shape can name the same workload.
    pub(super) fn shape(&self) -> String {
        let part = |part: &Part| match part {
            Part::Literal(literal) => literal.clone(),
            Part::Claim { .. } => "{}".to_owned(),
        };
        self.0.iter().map(part).collect()
    }

    /// The workload that `claims` name.
    ///
    /// # Errors
    /// When a claim is missing, is neither text nor an integer, or does not fit a SPIFFE path where it stands.
    pub(super) fn fill(&self, claims: &Value, domain: &TrustDomain) -> Result<SpiffeId, Unfit> {
        let path = fill(&self.0, claims, |name, value, several| {
            let fits = |segment: &str| {
                !matches!(segment, "" | "." | "..")
                    && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
            };
            if if several { value.split('/').all(fits) } else { fits(value) } {
                Ok(())
            } else {
                Err(Unfit::Value(format!("the claim `{name}` does not fit a SPIFFE path")))
            }
        })?;
        domain.workload(&path).map_err(|rule| Unfit::Value(rule.to_string()))
    }
}

impl TextTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// When it is empty, a brace stands alone, or two claims stand side by side, so that the end of one could pass for the
    /// start of the other.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts = parse(text)?;
        if parts.windows(2).any(|pair| matches!(pair, [Part::Claim { .. }, Part::Claim { .. }])) {
            return Err("put something between any two claims, or the values of one could pass for the other's".into());
        }
        Ok(Self(parts))
    }

    /// The claims it asks for.
    pub(super) fn claims(&self) -> impl Iterator<Item = &str> {
        claims_of(&self.0)
    }

    /// The text that `claims` make.
    ///
    /// # Errors
    /// When a claim is missing, is empty or neither text nor an integer, holds what separates it from the next claim (so that
    /// no two sets of claims make the same text), or the result is too long or has control characters.
    pub(super) fn fill(&self, claims: &Value) -> Result<String, Unfit> {
        let text = fill(&self.0, claims, |name, value, _| {
            plain_text(name, value)?;
            match self.separator_after(name) {
                Some(separator) if value.contains(separator) => {
                    Err(Unfit::Value(format!("the claim `{name}` holds what the template puts behind it")))
                }
                _ => Ok(()),
            }
        })?;
        if text.len() > MAX_TEXT {
            return Err(Unfit::Value("what the claims make is longer than 256 bytes".into()));
        }
        Ok(text)
    }

    /// What stands between a claim and the next one; `None` for the last.
    fn separator_after(&self, claim: &str) -> Option<&str> {
        self.0.windows(3).find_map(|parts| match parts {
            [Part::Claim { name, .. }, Part::Literal(separator), Part::Claim { .. }] if name == claim => {
                Some(separator.as_str())
            }
            _ => None,
        })
    }
}

/// Checks that a value is fit to be shown: 1 to 256 bytes, no control characters.
///
/// # Errors
/// When it is not.
pub(super) fn plain_text(name: &str, value: &str) -> Result<(), Unfit> {
    if value.is_empty() || value.len() > MAX_TEXT || value.chars().any(char::is_control) {
        return Err(Unfit::Value(format!("the claim `{name}` is not 1 to 256 bytes without control characters")));
    }
    Ok(())
}

/// The claim `name`: a member, or what a JSON pointer (RFC 6901) points at.
pub(super) fn claim<'a>(claims: &'a Value, name: &str) -> Option<&'a Value> {
    if name.starts_with('/') { claims.pointer(name) } else { claims.get(name) }
}

/// Whether it is meant as a JSON pointer and is none (RFC 6901, section 3).
fn misescaped(name: &str) -> bool {
    name.starts_with('/') && name.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1']))
}

/// Whether this can be the name of a claim, or a JSON pointer to one.
pub(super) fn names_claim(name: &str) -> bool {
    !matches!(name, "" | "/") && !misescaped(name) && !name.chars().any(char::is_control)
}

/// A claim as text, if it is text or an integer. Nothing else has one way to be written.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn parse(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (literal, tail) = rest.split_at(at);
        let Some((name, tail)) = tail.strip_prefix('{').and_then(|tail| tail.split_once('}')) else {
            return Err("every `{` needs its `}`, with the name of a claim between them".into());
        };
        let (name, several) = name.strip_suffix("/*").map_or((name, false), |name| (name, true));
        if matches!(name, "" | "/") || name.contains('{') || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("between `{` and `}` stands `claim`, `claim/*` or `/json/pointer`".into());
        }
        if misescaped(name) {
            return Err("in a JSON pointer `~1` stands for `/` and `~0` for `~`; nothing else follows a `~`".into());
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.to_owned()));
        }
        parts.push(Part::Claim { name: name.to_owned(), several });
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest.to_owned()));
    }
    if parts.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err("it must be 1 to 256 bytes without control characters".into());
    }
    Ok(parts)
}

fn claims_of(parts: &[Part]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        Part::Claim { name, .. } => Some(name.as_str()),
        Part::Literal(_) => None,
    })
}

fn fill(
    parts: &[Part],
    claims: &Value,
    check: impl Fn(&str, &str, bool) -> Result<(), Unfit>,
) -> Result<String, Unfit> {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Literal(literal) => text.push_str(literal),
            Part::Claim { name, several } => {
                let value = claim(claims, name).filter(|value| !value.is_null());
                let value = value.ok_or_else(|| Unfit::Absent(name.clone()))?;
                let value = scalar(value)
                    .ok_or_else(|| Unfit::Value(format!("the claim `{name}` is neither text nor an integer")))?;
                check(name, &value, *several)?;
                text.push_str(&value);
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn domain() -> TrustDomain {
        "example.com".parse().unwrap()
    }

    fn path(template: &str, claims: &Value) -> Option<String> {
        let filled = PathTemplate::parse(template, &domain()).unwrap().fill(claims, &domain()).ok()?;
        Some(filled.as_str().strip_prefix("spiffe://example.com").unwrap().to_owned())
    }

    #[test]
    fn claims_become_paths() {
        let claims =
            json!({"repository": "acme/pay.ments", "n": 7, "kubernetes.io": {"pod": {"uid": "u-1"}}, "u": "é"});
        assert_eq!(path("/ci/{repository/*}", &claims).as_deref(), Some("/ci/acme/pay.ments"));
        assert_eq!(path("/n-{n}/x", &claims).as_deref(), Some("/n-7/x"));
        assert_eq!(path("/k8s/{/kubernetes.io/pod/uid}", &claims).as_deref(), Some("/k8s/u-1"));
        assert_eq!(path("/ci/{repository}", &claims), None, "a slash in one segment");
        assert_eq!(path("/ci/{u}", &claims), None);
        let claims = json!({"a/b": {"c~d": ["x", {"": "y"}]}, "~1": "z", "n": {"p": "one/two"}});
        assert_eq!(path("/w/{/a~1b/c~0d/0}", &claims).as_deref(), Some("/w/x"), "`~1` is a slash, `~0` a tilde");
        assert_eq!(path("/w/{/~01}", &claims).as_deref(), Some("/w/z"), "unescaped once, in this order");
        assert_eq!(path("/w/{/a~1b/c~0d/1/}", &claims).as_deref(), Some("/w/y"), "an empty name is one, too");
        assert_eq!(path("/w/{/n/p/*}", &claims).as_deref(), Some("/w/one/two"));
        for missing in ["/a/b/c~0d/0", "/a~1b/c~0d/2", "/a~1b/c~0d/00", "/n", "/n/p"] {
            assert_eq!(path(&format!("/w/{{{missing}}}"), &claims), None, "{missing}");
        }
        assert_eq!(path("/fixed", &claims).as_deref(), Some("/fixed"));
        assert_eq!(path("/ci/{missing}", &claims), None);
    }

    #[test]
    fn values_that_would_move_the_path_are_refused() {
        for bad in [
            "", ".", "..", "a/../b", "../x", "a//b", "/a", "a/", "%2e%2e", "a%2fb", "a b", "a\0b", "a\nb", "a?b",
            "a#b", "task", "a/task", "a/task/b", "ä", "a:b", "{x}",
        ] {
            let claims = json!({"c": bad});
            assert_eq!(path("/w/{c}", &claims), None, "{bad}");
            assert_eq!(path("/w/{c/*}", &claims), None, "{bad}");
        }
        for bad in [json!(null), json!(true), json!(1.5), json!(["a"]), json!({"a": 1})] {
            assert_eq!(path("/w/{c}", &json!({"c": bad})), None, "{bad}");
        }
        assert_eq!(path("/w/ta{c}", &json!({"c": "sk"})), None);
        assert_eq!(path("/w/.{c}", &json!({"c": "."})), None);
        assert_eq!(path("/w/{c}", &json!({"c": "Task"})).as_deref(), Some("/w/Task"), "nothing is folded");
    }

    #[test]
    fn templates_that_could_confuse_two_workloads_are_refused() {
        for bad in [
            "",
            "{c}",
            "a/{c}",
            "/",
            "/a/",
            "/a//b",
            "/a/../b",
            "/task/{c}",
            "/{c}/task",
            "/a b",
            "/{c",
            "/c}",
            "/{}",
            "/{/*}",
            "/{/}",
            "/{a{b}}",
            "/{a}{b}",
            "/{a}-{b}",
            "/{a/*}/{b/*}",
            "/é/{c}",
            "/{/a~b}",
            "/{/a~2b}",
            "/{/a~}",
        ] {
            assert!(PathTemplate::parse(bad, &domain()).is_err(), "{bad}");
        }
        assert!(PathTemplate::parse("/{a/*}/env/{b}", &domain()).is_ok());
    }

    #[test]
    fn text_is_short_and_visible() {
        let text = |template: &str, claims: Value| TextTemplate::parse(template).unwrap().fill(&claims);
        assert_eq!(text("{run_id}.{run_attempt}", json!({"run_id": "12", "run_attempt": 3})).as_deref(), Ok("12.3"));
        assert_eq!(text("{r}", json!({"r": "refs/heads/é x"})).as_deref(), Ok("refs/heads/é x"));
        for bad in [json!(""), json!("a\nb"), json!("a\u{85}b"), json!("a".repeat(257)), json!(false), json!([1])] {
            assert!(matches!(text("{c}", json!({"c": bad})), Err(Unfit::Value(_))), "{bad}");
        }
        assert!(text("{a}-{b}", json!({"a": "a".repeat(200), "b": "b".repeat(200)})).is_err());
        // ("1.2", "3") and ("1", "2.3") would be one instance.
        assert!(TextTemplate::parse("{a}{b}").is_err());
        assert!(text("{a}.{b}", json!({"a": "1.2", "b": "3"})).is_err());
        assert_eq!(text("{a}.{b}", json!({"a": "1", "b": "2.3"})).as_deref(), Ok("1.2.3"));
        assert_eq!(text("{c}", json!({})), Err(Unfit::Absent("c".into())));
        assert_eq!(text("{c}", json!({"c": null})), Err(Unfit::Absent("c".into())));
    }
}
