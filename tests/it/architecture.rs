//! Which module may use which, and where the libraries live that must not spread. The compiler does not see layers
//! inside one crate, so this reads the sources. Test code may use what it likes.

use std::{collections::BTreeSet, fs, path::Path};

/// A top-level module of `src` and the other modules it may use, beside those in [`SHARED`].
struct Module {
    name: &'static str,
    /// Whole modules; or one item, `module::Item`, where plain data is kept with the module that makes it.
    uses: &'static [&'static str],
    /// What stands behind the rule; the end of the failure's sentence.
    because: &'static str,
}

/// Words and data that everything above them may use.
const SHARED: [&str; 16] = [
    "claims",
    "clock",
    "error",
    "evaluation",
    "failpoint",
    "id",
    "jose",
    "key_file",
    "notice",
    "own_dir",
    "pem",
    "proof",
    "queue",
    "rsa",
    "secret_file",
    "task",
];

const LEAF: &str = "leaves do not know each other, nor who calls them: `broker` brings them together";
const EDGE: &str = "edges parse, call the broker and map the error; what happens in which order is the broker's";
const BOTTOM: &str = "it is below everything else, and shared data depends only on what is below it";
const CHAIN: &str = "only the evidence chain goes sideways: credential, policy, attest, and never up again";
const ROOT: &str = "it puts the parts together, and only the command line starts it";

/// The whole of DESIGN, 'The house', as a table. Lower modules first; none uses one that stands below it here.
const MODULES: &[Module] = &[
    Module { name: "clock", uses: &[], because: BOTTOM },
    Module { name: "rsa", uses: &[], because: BOTTOM },
    Module { name: "jose", uses: &[], because: BOTTOM },
    Module { name: "pem", uses: &[], because: BOTTOM },
    Module { name: "queue", uses: &[], because: BOTTOM },
    Module { name: "failpoint", uses: &[], because: BOTTOM },
    Module { name: "secret_file", uses: &["failpoint"], because: BOTTOM },
    Module { name: "own_dir", uses: &[], because: BOTTOM },
    Module { name: "key_file", uses: &["jose", "pem", "rsa", "secret_file"], because: BOTTOM },
    Module { name: "id", uses: &["clock"], because: BOTTOM },
    Module { name: "proof", uses: &["clock", "id", "jose"], because: BOTTOM },
    // What a task was granted or refused is said in the words of `error`.
    Module { name: "task", uses: &["clock", "id", "error::Denied", "error::Error", "error::Part"], because: BOTTOM },
    Module { name: "claims", uses: &["clock", "id", "jose", "task"], because: BOTTOM },
    Module { name: "notice", uses: &["claims", "clock", "id", "task"], because: BOTTOM },
    Module { name: "error", uses: &["clock", "id", "task"], because: BOTTOM },
    Module { name: "evaluation", uses: &["claims", "clock", "id", "jose", "task"], because: BOTTOM },
    Module { name: "metrics", uses: &[], because: LEAF },
    // How the log is kept is counted where it is kept.
    Module { name: "audit", uses: &["metrics"], because: LEAF },
    Module { name: "telemetry", uses: &["metrics"], because: LEAF },
    // The port is timed where it is.
    Module { name: "lease", uses: &["metrics"], because: LEAF },
    // People prove who they are to an issuer of their own, and its tokens are judged as evidence is.
    Module {
        name: "party",
        uses: &["attest::Believed", "attest::Issuer", "attest::IssuerTerms", "attest::Rejected"],
        because: LEAF,
    },
    Module { name: "revocation", uses: &[], because: LEAF },
    Module { name: "signal", uses: &[], because: LEAF },
    Module { name: "verify", uses: &[], because: "services embed it, without the broker" },
    Module { name: "attest", uses: &[], because: CHAIN },
    Module { name: "policy", uses: &["attest"], because: CHAIN },
    // A draft carries the record that `broker` stores before the draft may be signed.
    Module {
        name: "credential",
        uses: &[
            "attest",
            "policy",
            "lease::TrustAnchor",
            "lease::CertificateLease",
            "lease::Lease",
            "lease::PublishedKey",
            "lease::Taint",
            "lease::Use",
            "lease::Vouched",
        ],
        because: CHAIN,
    },
    Module {
        name: "broker",
        uses: &[
            "attest",
            "audit",
            "credential",
            "lease",
            "metrics",
            "party",
            "policy",
            "revocation",
            "signal",
            "telemetry",
            "verify",
        ],
        because: "the use cases know the leaves, and no transport",
    },
    // What an edge shows is data that the broker hands out; it holds no store and no key.
    Module {
        name: "http",
        uses: &[
            "attest::ClientCertificate",
            "attest::Asserted",
            "attest::Peer",
            "attest::not_after",
            "broker",
            "credential::Credential",
            "lease::TrustAnchor",
            "lease::Expansion",
            "lease::Held",
            "lease::PublishedKey",
            "lease::Retirement",
            "lease::Timeline",
            "lease::TimelineEvent",
            "lease::Use",
            "metrics",
            "party::Act",
            "party::Role",
            "telemetry::Link",
            "telemetry::Served",
        ],
        because: EDGE,
    },
    Module { name: "grpc", uses: &["attest::Peer", "broker", "credential::Credential", "lease::Held"], because: EDGE },
    Module {
        name: "config",
        uses: &[
            "attest",
            "audit",
            "broker",
            "credential",
            "grpc",
            "http",
            "lease",
            "party",
            "policy",
            "revocation",
            "signal",
            "telemetry",
        ],
        because: "it is made of the sections that the modules own",
    },
    Module {
        name: "serve",
        uses: &[
            "attest",
            "audit",
            "broker",
            "config",
            "credential",
            "grpc",
            "http",
            "lease",
            "metrics",
            "party",
            "policy",
            "revocation",
            "signal",
            "telemetry",
        ],
        because: ROOT,
    },
    Module {
        name: "sidecar",
        uses: &["http::Listener", "serve::StartError", "serve::bind_unix", "verify"],
        because: "it stands beside a service, and knows of the broker what services know: a verifier with a door",
    },
    Module {
        name: "cli",
        uses: &["audit", "config", "http::document", "party", "policy", "serve", "sidecar", "verify"],
        because: "the command line speaks the HTTP API; besides, it starts the broker, reads files and prints what the API is",
    },
    Module { name: "main", uses: &["cli"], because: "it only hands over to the command line" },
];

/// A library and the only files that may name it: paths below `src`, with `/` at the end for everything in there.
struct Library {
    names: &'static [&'static str],
    only_in: &'static [&'static str],
    because: &'static str,
}

const LIBRARIES: &[Library] = &[
    Library {
        names: &[
            "axum",
            "http_body_util",
            "hyper",
            "hyper_util",
            "tower",
            "tower_http",
            "tower_layer",
            "tower_service",
            "utoipa_axum",
        ],
        only_in: &["http/", "serve.rs", "sidecar/", "cli/demo_service.rs", "verify/layer.rs"],
        because: "the rest does not know that it is reached by HTTP",
    },
    Library { names: &["cedar_policy"], only_in: &["policy/"], because: "the policy language is a detail of `policy`" },
    Library {
        names: &["prometheus_client"],
        only_in: &["metrics.rs"],
        because: "what is counted has a face of its own, with labels that are bounded",
    },
    Library {
        names: &["rcgen", "time"],
        only_in: &["credential/", "cli/mint/"],
        because: "how a certificate is made is a detail of `credential`",
    },
    Library {
        names: &["redb"],
        only_in: &["lease/redb.rs", "lease/redb/"],
        because: "the embedded store is one implementation of the port",
    },
    Library {
        names: &["redis"],
        only_in: &["lease/redis.rs", "lease/redis/"],
        because: "Redis is one implementation of the port",
    },
    Library {
        names: &["tokio_rustls"],
        only_in: &["http/tls.rs", "http/listen.rs"],
        because: "the rest does not know that it is reached by TLS",
    },
    Library {
        names: &["reqwest"],
        only_in: &[
            "attest/fetched.rs",
            "attest/settings.rs",
            "audit/anchor.rs",
            "signal/address.rs",
            "signal/config.rs",
            "signal/push.rs",
            "cli/",
            "telemetry/export.rs",
            "verify/follow/",
        ],
        because: "the broker calls out for an issuer's keys, to anchor its log, to send telemetry, and for nothing else; a verifier, to \
                  the broker",
    },
];

#[test]
fn modules_keep_their_direction() {
    let found = violations(&sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_table_has_no_cycle() {
    for (index, module) in MODULES.iter().enumerate() {
        for used in module.uses.iter().filter(|used| !used.contains("::")) {
            let place = MODULES.iter().position(|other| other.name == *used);
            assert!(place.is_some_and(|place| place < index), "`{}` has to stand above `{}`", used, module.name);
        }
    }
    let first_leaf = MODULES.iter().position(|module| module.because != BOTTOM).unwrap();
    let bottom: BTreeSet<_> = MODULES[..first_leaf].iter().map(|module| module.name).collect();
    assert_eq!(bottom, BTreeSet::from(SHARED), "what is shared stands at the bottom, and the other way round");
}

#[test]
fn a_broken_tree_is_told_what_is_wrong() {
    let broken = [
        (
            "lease/mod.rs",
            "pub mod redis;\npub use redis::Store;\nuse crate::{\n    id::TaskId, // shared\n    http,\n};",
        ),
        ("lease/redis.rs", "use redis::Script;\nfn f() { super::super::broker::mint(); super::sibling(); }"),
        ("id.rs", "use super::task::Task;"),
        (
            "credential/jwt.rs",
            "use crate::{attest::Kind, policy::{Permit, deep::{self, Er}}};\nuse crate::lease::{Lease, Store};\nuse crate::lease;",
        ),
        ("broker.rs", "pub(in crate::broker) fn f() {}\nfn g() -> axum::Response { crate::lease::x() }"),
        ("util.rs", ""),
        ("task/mod.rs", "use crate::*;"),
        ("main.rs", "fn main() { remit::broker::run() }"),
        ("audit/mod.rs", "use ::redb as db;"),
    ];
    let found = violations(&broken.map(|(path, text)| (path.to_owned(), text.to_owned())));
    let expected = [
        "src/lease/mod.rs:5: `lease` may not use `http`: leaves do not know each other",
        "src/lease/redis.rs:2: `lease` may not use `broker`: leaves do not know each other",
        "src/id.rs:1: `id` may not use `task`: it is below everything else",
        "src/credential/jwt.rs:2: `credential` may not use `lease`: only the evidence chain goes sideways",
        "src/credential/jwt.rs:3: `credential` may not use `lease`: only the evidence chain goes sideways",
        "src/broker.rs:2: `axum` belongs in src/http/, src/serve.rs, src/sidecar/, src/cli/demo_service.rs, src/verify/layer.rs alone: the rest",
        "src/util.rs:1: `util` is not in the table of tests/it/architecture.rs: add it, and what it may use",
        "src/task/mod.rs:1: `task` takes everything from the crate's root: name the modules",
        "src/main.rs:1: `main` may not use `broker`: it only hands over",
        "src/audit/mod.rs:1: `redb` belongs in src/lease/redb.rs, src/lease/redb/ alone: the embedded store",
    ];
    assert_eq!(found.len(), expected.len(), "\n{}\n", found.join("\n"));
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "\n{found}\n{expected}\n");
    }
}

#[test]
fn what_is_not_code_of_the_product_does_not_count() {
    let fine = [
        (
            "id.rs",
            "//! See [`crate::http`].\n/* crate::cli /* nested */ crate::cli */ fn f<'a>(x: &'a str) -> char { '\\'' }",
        ),
        (
            "clock.rs",
            r##"const A: &str = "crate::http \" crate::http"; const B: &str = r#"crate::"http"#; const C: char = '"';"##,
        ),
        ("task/mod.rs", "#[cfg(test)]\nmod tests { use crate::http; fn f() { loop {} } }\n#[cfg(test)] mod more;"),
        ("lease/tests.rs", "use crate::http;"),
        ("lease/redis/tests/all.rs", "use crate::http;"),
        (
            "jose.rs",
            "#[cfg(test)]\n#[expect(dead_code)]\nuse crate::http;\n#[cfg(test)] fn f(x: [u8; 2]) { crate::http::f() }",
        ),
        ("lib.rs", "pub mod http; pub use crate::http::Router;"),
        ("serve.rs", "use axum::Router; use crate::http; use tower::{Service, util::x};"),
        ("lease/mod.rs", "mod redis;\nfn f() { redis::open(); self::redis::open(); let x: redis::Lease; }"),
        ("error.rs", "enum E { A, #[cfg(test)] B(u8, crate::http::X), } struct S { #[cfg(test)] x: crate::http::X }"),
        ("broker.rs", "use self::inner::x; mod inner { use super::Thing; }"),
    ];
    let found = violations(&fine.map(|(path, text)| (path.to_owned(), text.to_owned())));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// Every source file, as its path below `src` and its text.
fn sources(src: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![src.to_owned()];
    while let Some(dir) = pending.pop() {
        for item in fs::read_dir(dir).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn violations(files: &[(String, String)]) -> Vec<String> {
    files.iter().filter(|(path, _)| !is_test(path)).flat_map(|(path, text)| in_file(path, text)).collect()
}

fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

fn in_file(path: &str, text: &str) -> Vec<String> {
    let parts = module_path(path);
    let top = parts.first().copied().unwrap_or("lib");
    let rule = MODULES.iter().find(|module| module.name == top);
    let mut found = Vec::new();
    if rule.is_none() && top != "lib" {
        let sentence = "is not in the table of tests/it/architecture.rs: add it, and what it may use";
        found.push(format!("src/{path}:1: `{top}` {sentence}"));
    }

    let tokens = without_tests(&tokens(text));
    let own: BTreeSet<&str> = tokens.windows(2).filter(|pair| pair[0].text == "mod").map(|pair| pair[1].text).collect();
    for Named { path: named, line } in paths(&tokens) {
        if let Some(rule) = rule
            && let Some((used, item)) = module_used(&named, &parts)
        {
            if used == "*" {
                found.push(format!(
                    "src/{path}:{line}: `{top}` takes everything from the crate's root: name the modules"
                ));
            } else if used != top && !may_use(rule, used, item) {
                found.push(format!("src/{path}:{line}: `{top}` may not use `{used}`: {}", rule.because));
            }
        }
        found.extend(library_used(path, &named, &own).map(|sentence| format!("src/{path}:{line}: {sentence}")));
    }
    found.dedup();
    found
}

/// `lease/redis.rs` is the module `lease::redis`, `lease/mod.rs` is `lease`, `lib.rs` is the root.
fn module_path(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches(".rs");
    path.split('/').filter(|part| !matches!(*part, "mod" | "lib")).collect()
}

fn may_use(rule: &Module, used: &str, item: &str) -> bool {
    let shared = rule.because != BOTTOM && SHARED.contains(&used);
    let named = |allowed: &&str| allowed.split_once("::").is_some_and(|(module, name)| module == used && name == item);
    shared || rule.uses.contains(&used) || rule.uses.iter().any(named)
}

/// The top-level module that a path leads to, and what is named in it, if it leads to another place in this crate.
fn module_used<'a>(named: &[&'a str], from: &[&str]) -> Option<(&'a str, &'a str)> {
    let at = |index: usize| named.get(index).copied();
    match named.first() {
        Some(&("crate" | "remit")) => Some((at(1)?, at(2).unwrap_or_default())),
        Some(&"super") => {
            let up = named.iter().take_while(|part| **part == "super").count();
            // An inline module's `super` looks one level too high here, so only what is surely a module counts.
            let used = at(up).filter(|used| MODULES.iter().any(|module| module.name == *used))?;
            (up >= from.len()).then(|| (used, at(up + 1).unwrap_or_default()))
        }
        _ => None,
    }
}

fn library_used(path: &str, named: &[&str], own: &BTreeSet<&str>) -> Option<String> {
    let (name, certain) = match named {
        ["", name, ..] => (*name, true),
        [name, ..] => (*name, false),
        [] => return None,
    };
    let library = LIBRARIES.iter().find(|library| library.names.contains(&name))?;
    let allowed = |place: &&str| path == *place || (place.ends_with('/') && path.starts_with(*place));
    // A module of the same name hides the library.
    if (!certain && own.contains(name)) || library.only_in.iter().any(allowed) {
        return None;
    }
    let places: Vec<String> = library.only_in.iter().map(|place| format!("src/{place}")).collect();
    Some(format!("`{name}` belongs in {} alone: {}", places.join(", "), library.because))
}

/// A word, `::`, or one character of anything else; comments, strings and character literals are left out.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let line = source[..source.len() - rest.len()].matches('\n').count() + 1;
        let (length, is_token) = if let Some(length) = not_code(rest) {
            (length, false)
        } else if is_word(first) {
            (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), true)
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        if is_token {
            found.push(Token { text: &rest[..length], line });
        }
        rest = &rest[length..];
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// How long the comment or literal is that `rest` begins with.
fn not_code(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    let unprefixed = rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'));
    if let Some(raw) = unprefixed {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = rest.len() - raw.len() + hashes + 1;
            return Some(rest[start..].find(&close).map_or(rest.len(), |at| start + at + close.len()));
        }
    }
    let plain = rest.strip_prefix(['b', 'c']).unwrap_or(rest);
    let prefix = rest.len() - plain.len();
    if plain.starts_with('"') {
        return Some(prefix + quoted(plain, '"'));
    }
    let is_char = plain.starts_with("'\\") || (plain.starts_with('\'') && plain.chars().nth(2) == Some('\''));
    is_char.then(|| prefix + quoted(plain, '\''))
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let step = if rest[at..].starts_with("/*") {
            depth += 1;
            2
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// Takes out what stands behind `#[cfg(test)]`.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let marked = tokens[at..].iter().map(|token| token.text).take(MARK.len()).eq(MARK);
        if marked {
            at += item_length(&tokens[at..]);
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

/// Up to the `;` that is in no brackets, the brace that closes the body, or the end of what the item stands in.
fn item_length(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return at,
            "}" if depth == 1 => return at + 1,
            ")" | "]" | "}" => depth -= 1,
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// A path as it is written, from its first word; `""` in front stands for a leading `::`.
struct Named<'a> {
    path: Vec<&'a str>,
    line: usize,
}

/// All paths, with what is imported in braces written out.
fn paths<'a>(tokens: &[Token<'a>]) -> Vec<Named<'a>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let imports = tokens[at].text == "use";
        let start = at + usize::from(imports);
        let (next, any) = path_from(tokens, start, &[], imports, &mut found);
        at = if any { next } else { at + 1 };
    }
    found
}

/// Reads one path, or a tree of them, in front of which stands `before`. Answers where it ends and whether it was one.
fn path_from<'a>(
    tokens: &[Token<'a>],
    start: usize,
    before: &[&'a str],
    imports: bool,
    found: &mut Vec<Named<'a>>,
) -> (usize, bool) {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let mut path = before.to_vec();
    let mut at = start;
    if text(at) == "::" {
        path.push("");
        at += 1;
    }
    loop {
        if imports && text(at) == "{" {
            at += 1;
            while !matches!(text(at), "}" | "") {
                let (next, any) = path_from(tokens, at, &path, true, found);
                // A comma, or the new name after `as`.
                at = if any { next } else { at + 1 };
            }
            return (at + 1, true);
        }
        let is_segment = text(at).starts_with(is_word) || (imports && text(at) == "*");
        if !is_segment {
            return (at, false);
        }
        path.push(text(at));
        at += 1;
        if text(at) != "::" {
            break;
        }
        at += 1;
        if !imports && !text(at).starts_with(is_word) {
            break;
        }
    }
    if imports || path.len() > 1 {
        found.push(Named { path, line: tokens[at - 1].line });
    }
    if imports && text(at) == "as" {
        at += 2;
    }
    (at, true)
}
