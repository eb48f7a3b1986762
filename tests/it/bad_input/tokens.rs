//! Tokens that are wrong in one thing, as evidence and as what a service is shown: the broker and the library that services embed
//! have one reader.

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use serde_json::{Value, json};

use super::{
    bench::{Bench, Case},
    forge::{Forge, Odd, as_access, as_evidence, encode, everywhere, odd},
};
use crate::support::{GIT, Issuer, REGISTRY, claims, now};

/// Header, claims and signature, as they stand.
fn parts(token: &str) -> [String; 3] {
    let parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts.try_into().expect("three parts")
}

/// The members of an object, without its braces.
fn members(object: &Value) -> String {
    object.to_string().trim_start_matches('{').trim_end_matches('}').to_owned()
}

/// Row 71.
pub(super) fn key_ids(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let mut bad = Odd::new();
        for kid in [
            json!("../../../../etc/passwd"),
            json!("/dev/null"),
            json!("file:///dev/null"),
            json!("https://127.0.0.1:1/jwks"),
            json!("x' UNION SELECT 'key'--"),
            json!("$(id)"),
            json!("*"),
            json!(""),
            json!("\u{0}"),
            json!(format!("{}\u{0}", forge.key.kid())),
            json!(format!(" {}", forge.key.kid())),
            json!(forge.key.kid().to_uppercase()),
            json!(&forge.key.kid()[..10]),
            json!("k".repeat(3_000)),
            json!("k".repeat(1_000_000)),
            json!(1),
            json!(true),
            json!([forge.key.kid()]),
            json!({"kid": forge.key.kid()}),
        ] {
            let name: String = kid.to_string().chars().take(40).collect();
            bad.push(odd(format!("kid {name}"), forge.headed(&json!({ "kid": kid }))));
        }
        // What is too large for a request is row 11.
        bad.retain(|(_, token)| token.len() < 60_000);
        bad
    })
}

/// Row 76.
pub(super) fn no_algorithm(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let good = parts(&forge.good());
        let mut bad = Odd::new();
        for alg in [
            "none", "NONE", "nOnE", "None", "null", "", " ES256", "es256", "ES256 ", "ES257", "ES384", "RS256", "EdDSA",
        ] {
            let mut header = forge.header.clone();
            header["alg"] = json!(alg);
            let header = encode(header.to_string());
            bad.push(odd(format!("alg `{alg}`, without a signature"), format!("{header}.{}.", good[1])));
            bad.push(odd(
                format!("alg `{alg}`, with another's signature"),
                format!("{header}.{}.{}", good[1], good[2]),
            ));
            bad.push(odd(format!("alg `{alg}`, signed"), forge.headed(&json!({ "alg": alg }))));
        }
        for alg in [json!(["ES256"]), json!({"alg": "ES256"}), json!(null), json!(256), json!(true)] {
            bad.push(odd(format!("alg {alg}"), forge.headed(&json!({ "alg": alg }))));
        }
        let mut without = forge.header.clone();
        without.as_object_mut().expect("an object").remove("alg");
        bad.push(odd("no alg", forge.sign(&without.to_string(), &forge.claims.to_string())));
        bad
    })
}

/// Row 77.
pub(super) fn a_public_key_as_a_secret(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let jwk = serde_json::to_value(forge.key.public()).expect("JSON");
        let texts = [
            jwk.to_string(),
            jwk["x"].as_str().unwrap_or_default().to_owned(),
            forge.key.kid().to_owned(),
            String::new(),
        ];
        let mut bad = Odd::new();
        for (n, secret) in texts.iter().enumerate() {
            for alg in ["HS256", "ES256"] {
                let mut header = forge.header.clone();
                header["alg"] = json!(alg);
                let input = format!("{}.{}", encode(header.to_string()), encode(forge.claims.to_string()));
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
                let tag = ring::hmac::sign(&key, input.as_bytes());
                bad.push(odd(format!("HMAC by {alg} with secret {n}"), format!("{input}.{}", encode(tag))));
            }
        }
        bad
    })
}

/// Row 78.
pub(super) fn signatures(bench: &Bench) -> Vec<Case> {
    // The order of P-256, and of its field.
    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    const FIELD: &str = "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff";
    let bytes = |hex: &str| -> Vec<u8> {
        (0..32).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).expect("hex")).collect()
    };
    let numbers: Vec<(&str, Vec<u8>)> = vec![
        ("0", vec![0; 32]),
        ("1", [vec![0; 31], vec![1]].concat()),
        ("n", bytes(ORDER)),
        ("n - 1", {
            let mut n = bytes(ORDER);
            n[31] -= 1;
            n
        }),
        ("p", bytes(FIELD)),
        ("2^256 - 1", vec![0xff; 32]),
    ];
    everywhere(bench, |forge| {
        let [header, claims, _] = parts(&forge.good());
        let input = format!("{header}.{claims}");
        let good = forge.signature(&input);
        let signed = |signature: &[u8]| format!("{input}.{}", encode(signature));
        let mut bad = Odd::new();
        for (r, first) in &numbers {
            for (s, second) in &numbers {
                bad.push(odd(format!("r = {r}, s = {s}"), signed(&[&first[..], second].concat())));
            }
            bad.push(odd(format!("r = {r}"), signed(&[&first[..], &good[32..]].concat())));
            bad.push(odd(format!("s = {r}"), signed(&[&good[..32], first].concat())));
        }
        let stranger = Issuer::new();
        let theirs = Forge { key: &stranger.key, header: forge.header.clone(), claims: forge.claims.clone() };
        let mut flipped = good.clone();
        flipped[40] ^= 1;
        bad.extend([
            odd("as DER", signed(&der(&good))),
            odd("nothing", signed(&[])),
            odd("63 octets", signed(&good[..63])),
            odd("65 octets", signed(&[&good[..], &[0]].concat())),
            odd("a zero before it", signed(&[&[0], &good[..]].concat())),
            odd("twice", signed(&[&good[..], &good].concat())),
            odd("r and s exchanged", signed(&[&good[32..], &good[..32]].concat())),
            odd("a bit of it", signed(&flipped)),
            odd("of the claims alone", format!("{input}.{}", encode(forge.signature(&claims)))),
            odd("of another text", format!("{input}.{}", encode(forge.signature(&forge.claims.to_string())))),
            odd("by another key under this one's id", theirs.good()),
        ]);
        bad
    })
}

/// The same signature in the other form that libraries write.
fn der(signature: &[u8]) -> Vec<u8> {
    let number = |octets: &[u8]| {
        let mut octets = octets.to_vec();
        if octets[0] >= 0x80 {
            octets.insert(0, 0);
        }
        [vec![2, u8::try_from(octets.len()).expect("short")], octets].concat()
    };
    let both = [number(&signature[..32]), number(&signature[32..])].concat();
    [vec![0x30, u8::try_from(both.len()).expect("short")], both].concat()
}

/// Row 79.
pub(super) fn keys_in_the_token(bench: &Bench) -> Vec<Case> {
    let stranger = Issuer::new();
    let theirs = stranger.jwks()["keys"][0].clone();
    let mut cases = everywhere(bench, |forge| {
        let own = serde_json::to_value(forge.key.public()).expect("JSON");
        let mut bad = Odd::new();
        for (name, over) in [
            ("the right key", json!({ "jwk": own })),
            ("another key", json!({ "jwk": theirs })),
            ("an address of keys", json!({"jku": "https://127.0.0.1:1/jwks"})),
            ("an address of metadata", json!({"jku": "http://169.254.169.254/latest/meta-data/"})),
            ("an address of certificates", json!({"x5u": "https://127.0.0.1:1/cert"})),
            ("certificates", json!({"x5c": ["AA=="]})),
            ("no certificates", json!({"x5c": []})),
            ("null", json!({"jwk": null})),
        ] {
            bad.push(odd(format!("{name}, signed by the right key"), forge.headed(&over)));
            let thief = Forge { key: &stranger.key, header: forge.header.clone(), claims: forge.claims.clone() };
            bad.push(odd(format!("{name}, signed by another key"), thief.headed(&over)));
        }
        bad
    });
    // Issuers of evidence write the digest of a certificate; it leads nowhere. The broker does not.
    let digest = ["x5t", "x5t#S256"].map(|name| odd(name, bench.access().headed(&json!({ name: "AA" }))));
    cases.extend(as_access(digest.into()));
    cases
}

/// Row 80.
pub(super) fn extensions(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let mut bad = Odd::new();
        for (name, over) in [
            ("an unknown one", json!({"crit": ["x"], "x": 1})),
            ("one that is not there", json!({"crit": ["x"]})),
            ("none", json!({"crit": []})),
            ("one twice", json!({"crit": ["x", "x"], "x": 1})),
            ("a standard one", json!({"crit": ["alg"]})),
            ("text", json!({"crit": "x"})),
            ("null", json!({"crit": null})),
            ("`exp`", json!({"crit": ["exp"], "exp": 1})),
            ("b64 is false", json!({"b64": false, "crit": ["b64"]})),
            ("b64 is false, without crit", json!({"b64": false})),
            ("b64 is true", json!({"b64": true, "crit": ["b64"]})),
            ("b64 is text", json!({"b64": "false"})),
        ] {
            bad.push(odd(format!("crit: {name}"), forge.headed(&over)));
        }
        // RFC 7797: what would be signed if it were read as it says.
        let header =
            json!({"alg": "ES256", "kid": forge.key.kid(), "typ": forge.header["typ"], "b64": false, "crit": ["b64"]});
        let signature = forge.signature(&format!("{}.{}", encode(header.to_string()), forge.claims));
        bad.push(odd(
            "claims as they are",
            format!("{}.{}.{}", encode(header.to_string()), encode(forge.claims.to_string()), encode(signature)),
        ));
        bad
    })
}

/// Row 81.
pub(super) fn other_writings(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let good = forge.good();
        let [header, payload, signature] = parts(&good);
        vec![
            odd("flattened JSON", json!({"protected": header, "payload": payload, "signature": signature}).to_string()),
            odd(
                "general JSON",
                json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]}).to_string(),
            ),
            odd("in braces", format!("{{{good}}}")),
            odd("in quotes", format!("\"{good}\"")),
            odd("one part", payload.clone()),
            odd("two parts", format!("{header}.{payload}")),
            odd("a dot after it", format!("{good}.")),
            odd("a dot before it", format!(".{good}")),
            odd("four parts", format!("{good}.{signature}")),
            odd("an empty part", format!("{header}..{signature}")),
            odd("no header", format!(".{payload}.{signature}")),
            odd("two dots", ".."),
            odd("10 000 dots", ".".repeat(10_000)),
            odd("60 000 dots", ".".repeat(60_000)),
            odd("a good one and 60 000 dots", good.clone() + &".".repeat(60_000)),
            odd("a million dots", ".".repeat(1_000_000)),
            odd("two tokens", format!("{good},{good}")),
            odd("two tokens and a space", format!("{good} {good}")),
            odd("other dots", good.replace('.', "。")),
            odd("an SD-JWT", format!("{good}~")),
        ]
        .into_iter()
        // A million of them is a head that is too large: row 11.
        .filter(|(_, token)| token.len() < 100_000 || token.starts_with(".."))
        .filter(|(_, token)| token.len() < 60_001 || !token.starts_with(".."))
        .collect()
    })
}

/// Row 82.
pub(super) fn what_is_encrypted_or_packed(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let [_, payload, signature] = parts(&forge.good());
        let mut bad = Odd::new();
        for (name, header) in [
            ("A256KW", json!({"alg": "A256KW", "enc": "A256GCM"})),
            ("dir", json!({"alg": "dir", "enc": "A256GCM"})),
            ("RSA1_5", json!({"alg": "RSA1_5", "enc": "A128CBC-HS256"})),
            (
                "PBES2, two thousand million rounds",
                json!({"alg": "PBES2-HS512+A256KW", "enc": "A256GCM", "p2s": "AA", "p2c": 2_147_483_648_u32}),
            ),
            ("packed", json!({"alg": "dir", "enc": "A256GCM", "zip": "DEF"})),
        ] {
            let header = encode(header.to_string());
            bad.push(odd(
                format!("{name}, five parts"),
                format!("{header}.{signature}.{signature}.{payload}.{signature}"),
            ));
            bad.push(odd(format!("{name}, without a key"), format!("{header}..{signature}.{payload}.{signature}")));
            bad.push(odd(format!("{name}, three parts"), format!("{header}.{payload}.{signature}")));
        }
        for (name, over) in [
            ("zip", json!({"zip": "DEF"})),
            ("enc", json!({"enc": "A256GCM"})),
            ("zip is null", json!({"zip": null})),
            ("rounds", json!({"alg": "PBES2-HS512+A256KW", "p2c": 2_147_483_648_u32})),
        ] {
            bad.push(odd(format!("{name}, signed"), forge.headed(&over)));
        }
        // Claims that would be a hundred times as long if anybody unpacked them.
        let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut packer, &vec![b' '; 1_000_000]).expect("packed");
        let bomb = encode(packer.finish().expect("packed"));
        let mut header = forge.header.clone();
        header["zip"] = json!("DEF");
        bad.push(odd("a bomb", forge.seal(&format!("{}.{bomb}", encode(header.to_string())))));
        bad.push(odd(
            "a bomb that nothing announces",
            forge.seal(&format!("{}.{bomb}", encode(forge.header.to_string()))),
        ));
        bad
    })
}

/// Row 83.
pub(super) fn base64(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let good = forge.good();
        let [header, payload, signature] = parts(&good);
        let mut bad = vec![
            odd("padded", format!("{good}==")),
            odd("padded once", format!("{good}=")),
            odd("spare bits of the signature", format!("{header}.{payload}.{}", spare(&signature))),
            odd("a letter more", format!("{good}A")),
            odd("a letter less", good[..good.len() - 1].to_owned()),
        ];
        for c in ['+', '/', '?', '=', ' ', '\t', '\n', '%', '\\', '\u{e9}', '\0', ':'] {
            bad.push(odd(
                format!("{c:?} in the signature"),
                format!("{header}.{payload}.{}{c}{}", &signature[..40], &signature[41..]),
            ));
            bad.push(odd(
                format!("{c:?} more in the signature"),
                format!("{header}.{payload}.{}{c}{}", &signature[..40], &signature[40..]),
            ));
            // Well signed, as it stands.
            let header = format!("{}{c}{}", &header[..8], &header[8..]);
            bad.push(odd(format!("{c:?} more in the header"), forge.seal(&format!("{header}.{payload}"))));
        }
        // Parts of each length, so that there are spare bits or there is padding, and signed as they stand.
        for length in 0..3 {
            let mut claims = forge.claims.to_string();
            claims.push_str(&" ".repeat(length));
            let (header, payload) = (encode(forge.header.to_string()), encode(&claims));
            if payload.len() % 4 != 0 {
                let padding = "=".repeat(4 - payload.len() % 4);
                bad.push(odd(format!("padded claims, {length}"), forge.seal(&format!("{header}.{payload}{padding}"))));
                bad.push(odd(
                    format!("spare bits of the claims, {length}"),
                    forge.seal(&format!("{header}.{}", spare(&payload))),
                ));
            }
            let padded = encode(forge.header.to_string() + &" ".repeat(length));
            if padded.len() % 4 != 0 {
                let padding = "=".repeat(4 - padded.len() % 4);
                bad.push(odd(format!("padded header, {length}"), forge.seal(&format!("{padded}{padding}.{payload}"))));
                bad.push(odd(
                    format!("spare bits of the header, {length}"),
                    forge.seal(&format!("{}.{payload}", spare(&padded))),
                ));
            }
        }
        // Octets whose letters differ in the two alphabets.
        let other = forge.claims.to_string().replacen('{', "{\"x\":\"\u{3ff}\u{3ff}\u{3ff}>>>???\",", 1);
        let standard = BASE64_STANDARD_NO_PAD.encode(&other);
        assert!(standard.contains(['+', '/']), "{standard}");
        bad.push(odd("the other alphabet", forge.seal(&format!("{header}.{standard}"))));
        bad
    })
}

/// The same octets to a reader who does not look at the bits that are left over.
fn spare(part: &str) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = part.split_at(part.len() - 1);
    let at = LETTERS.find(last).expect("base64url");
    format!("{rest}{}", &LETTERS[at + 1..at + 2])
}

/// Row 84.
pub(super) fn members_twice(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let (header, claims) = (forge.header.to_string(), forge.claims.to_string());
        let (in_header, in_claims) = (members(&forge.header), members(&forge.claims));
        let mut bad = Odd::new();
        for name in ["iss", "aud", "exp", "iat", "sub"] {
            let value = &forge.claims[name];
            bad.push(odd(
                format!("`{name}` twice, alike"),
                forge.sign(&header, &format!(r#"{{{in_claims},"{name}":{value}}}"#)),
            ));
            bad.push(odd(
                format!("`{name}` twice, another first"),
                forge.sign(&header, &format!(r#"{{"{name}":"x",{in_claims}}}"#)),
            ));
            bad.push(odd(
                format!("`{name}` twice, another last"),
                forge.sign(&header, &format!(r#"{{{in_claims},"{name}":1}}"#)),
            ));
        }
        for (name, more) in [("alg", "none"), ("alg", "ES256"), ("kid", "x"), ("typ", "JWT"), ("typ", "at+jwt")] {
            bad.push(odd(
                format!("`{name}` twice, `{more}` first"),
                forge.sign(&format!(r#"{{"{name}":"{more}",{in_header}}}"#), &claims),
            ));
            bad.push(odd(
                format!("`{name}` twice, `{more}` last"),
                forge.sign(&format!(r#"{{{in_header},"{name}":"{more}"}}"#), &claims),
            ));
        }
        bad.extend([
            odd("a claim twice, once escaped", forge.sign(&header, &format!(r#"{{{in_claims},"\u0069ss":"x"}}"#))),
            odd("a member twice, deep down", forge.sign(&header, &format!(r#"{{{in_claims},"x":[{{"a":1,"a":2}}]}}"#))),
            odd("more after the claims", forge.sign(&header, &format!("{claims}{{}}"))),
            odd("more after the header", forge.sign(&format!("{header}{{}}"), &claims)),
            odd("claims that are a list", forge.sign(&header, &format!("[{claims}]"))),
            odd("a header that is a list", forge.sign(&format!("[{header}]"), &claims)),
            odd(
                "claims in UTF-16",
                forge.seal(&format!(
                    "{}.{}",
                    encode(&header),
                    encode(claims.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>())
                )),
            ),
            odd("a byte order mark", forge.sign(&header, &format!("\u{feff}{claims}"))),
            odd(
                "deep claims",
                forge.sign(&header, &format!(r#"{{{in_claims},"x":{}1{}}}"#, "[".repeat(3_000), "]".repeat(3_000))),
            ),
        ]);
        bad
    })
}

/// Row 85.
pub(super) fn times(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let soon = now() + 200;
        let huge: Value = serde_json::from_str("1e308").expect("JSON");
        let mut bad = Odd::new();
        for claim in ["exp", "iat", "nbf"] {
            let past = now() - 60;
            let own = if claim == "exp" { soon } else { past };
            let mut values = vec![
                json!(own.to_string()),
                json!(f64::from(u32::try_from(own).expect("this century"))),
                json!(format!("{own}.5").parse::<f64>().expect("a number")),
                json!(null),
                json!(true),
                json!([own]),
                json!({"value": own}),
                json!("2026-01-01T00:00:00Z"),
                huge.clone(),
                json!(u64::MAX),
                json!(i64::MAX),
            ];
            if claim == "exp" {
                values.extend([json!(-1), json!(0), json!(-0.0), json!(i64::MIN), json!(now() - 1)]);
            } else {
                values.extend([json!(now() + 60), json!(now() + 86_400)]);
            }
            for value in values {
                bad.push(odd(format!("{claim} = {value}"), forge.claiming(&json!({ claim: value }))));
            }
        }
        for claim in ["exp", "iat"] {
            bad.push(odd(format!("no {claim}"), forge.without(claim)));
        }
        bad
    })
    .into_iter()
    .chain(as_access(vec![odd("no nbf", bench.access().without("nbf"))]))
    .collect()
}

/// Row 86.
pub(super) fn audiences_and_issuers(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let text = |claim: &str| forge.claims[claim].as_str().unwrap_or_default().to_owned();
        let (audience, issuer) = (text("aud"), text("iss"));
        let mut bad = Odd::new();
        for (claim, own) in [("aud", &audience), ("iss", &issuer)] {
            bad.push(odd(format!("no {claim}"), forge.without(claim)));
            for value in [
                json!(null),
                json!(""),
                json!("*"),
                json!(1),
                json!({}),
                json!([]),
                json!([[own]]),
                json!(vec![own; 9]),
                json!(format!("{own}/")),
                json!(format!("{own}.")),
                json!(format!("{own}#")),
                json!(format!("{own}?")),
                json!(format!("{own}/x")),
                json!(format!("{own} ")),
                json!(format!(" {own}")),
                json!(format!("{own}\u{0}")),
                json!(format!("{own}.evil.example.com")),
                json!(format!("{own}@evil.example.com")),
                json!(&own[..own.len() - 1]),
                json!(own.to_uppercase()),
                json!(own.replacen("http", "HTTP", 1)),
                json!(own.replacen("://", "://x@", 1)),
                json!(own.replacen('e', "\u{435}", 1).replacen('1', "\u{661}", 1)),
                json!(own.split_once("://").map_or("", |(_, rest)| rest)),
                json!("https://evil.example.com"),
            ] {
                bad.push(odd(format!("{claim} = {value}"), forge.claiming(&json!({ claim: value }))));
            }
        }
        bad
    })
    .into_iter()
    .chain(as_access(
        [json!(REGISTRY), json!([GIT]), json!([GIT, REGISTRY])]
            .into_iter()
            .map(|audience| odd(format!("aud {audience}"), bench.access().claiming(&json!({ "aud": audience }))))
            .collect(),
    ))
    .collect()
}

/// Row 87.
pub(super) fn one_kind_for_another(bench: &Bench) -> Vec<Case> {
    let mut cases = everywhere(bench, |forge| {
        let mut bad = Odd::new();
        let own = forge.header["typ"].as_str().unwrap_or_default();
        for typ in [
            "at+jwt",
            "JWT",
            "jwt",
            "AT+JWT",
            "application/at+jwt",
            "dpop+jwt",
            "statuslist+jwt",
            "logout+jwt",
            "remit-revocations+jwt",
            "secevent+jwt",
            "JOSE",
            "",
            "at+jwt ",
        ] {
            // `jwt` is how some issuers of evidence write it.
            if typ != own && !(own == "JWT" && typ == "jwt") {
                bad.push(odd(format!("typ `{typ}`"), forge.headed(&json!({ "typ": typ }))));
            }
        }
        for typ in [json!(["at+jwt", "JWT"]), json!(1), json!({})] {
            bad.push(odd(format!("typ {typ}"), forge.headed(&json!({ "typ": typ }))));
        }
        bad
    });
    // Good ones of another kind.
    cases.extend(as_evidence(
        bench,
        vec![
            odd("an access token", bench.token.clone()),
            odd("a JWT-SVID", bench.svid.clone()),
            odd(
                "claims of evidence under the broker's key",
                Forge::new(bench.access().key, "JWT", bench.evidence().claims).good(),
            ),
            odd(
                "claims of an access token under the issuer's key",
                Forge::new(bench.evidence().key, "JWT", claims(&bench.token)).good(),
            ),
        ],
    ));
    cases.extend(as_access(vec![
        odd("evidence", bench.stand.evidence()),
        odd(
            "claims of a token under the issuer's key",
            Forge::new(bench.evidence().key, "at+jwt", claims(&bench.token)).good(),
        ),
        odd(
            "claims of a JWT-SVID in an access token",
            Forge::new(bench.access().key, "at+jwt", claims(&bench.svid)).claiming(&json!({"aud": "x"})),
        ),
        odd(
            "claims of an access token in a JWT-SVID",
            Forge::new(bench.access().key, "JWT", claims(&bench.token)).good(),
        ),
        odd("a status list", Forge::new(bench.access().key, "statuslist+jwt", claims(&bench.token)).good()),
        odd("no typ", {
            let forge = bench.access();
            forge.sign(&json!({"alg": "ES256", "kid": forge.key.kid()}).to_string(), &forge.claims.to_string())
        }),
    ]));
    cases
}

/// Row 91.
pub(super) fn long_tokens(bench: &Bench) -> Vec<Case> {
    everywhere(bench, |forge| {
        let [header, payload, signature] = parts(&forge.good());
        let filler = |length: usize| "x".repeat(length);
        vec![
            odd("64 KiB of signature", format!("{header}.{payload}.{}", "A".repeat(64 * 1024))),
            odd("64 KiB of claims", format!("{header}.{}.{signature}", "A".repeat(64 * 1024))),
            odd("64 KiB of header", format!("{}.{payload}.{signature}", "A".repeat(64 * 1024))),
            odd("60 KB that are no base64", "=".repeat(20_000)),
            odd("17 KiB, well signed", forge.claiming(&json!({"x": filler(13_000)}))),
            odd("a header of 8 KiB, well signed", forge.headed(&json!({"x": filler(6_200)}))),
            odd("a header of 12 KiB, well signed", forge.headed(&json!({"x": filler(9_000)}))),
        ]
    })
}
