//! Tokens whose signature was checked, so that one that comes again costs no signature. What is remembered is that this very text was
//! signed with that very key, and what it says; everything that can change is asked every time. What was refused is never remembered.

use ring::digest::{SHA256, digest};
use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use super::{KeySet, Keys, Signed};
use crate::jose::Thumbprint;

/// How many tokens are remembered, in each of two turns. With claims of 2 KiB that is 16 MiB.
const MOST: usize = 4096;

/// The SHA-256 of a whole token, signature and all.
type Digest = [u8; 32];

/// What is known of tokens that had a good signature. When one turn is full, the one before is forgotten.
#[derive(Debug, Default)]
pub(super) struct Remembered(RwLock<Turns>);

#[derive(Debug, Default)]
struct Turns {
    now: HashMap<Digest, Known>,
    before: HashMap<Digest, Known>,
}

#[derive(Debug)]
struct Known {
    signed: Signed,
    /// What it was signed with. A set of keys may have another by the same name tomorrow.
    key: Thumbprint,
}

/// The digest of a token that is looked for, and remembered if it turns out to be good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked(Digest);

impl Remembered {
    /// A token that was signed with a key which is still believed.
    pub(super) fn find(&self, token: &str, keys: &Keys) -> (Looked, Option<Signed>) {
        let mut key = Digest::default();
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let turns = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let known = turns.now.get(&key).or_else(|| turns.before.get(&key));
        let believed = |known: &&Known| known.is_signed_by_one_of(keys.of(known.signed.form()));
        (Looked(key), known.filter(believed).map(|known| known.signed.clone()))
    }

    /// Its signature was checked with this key.
    pub(super) fn remember(&self, looked: Looked, signed: &Signed, key: &Thumbprint) {
        let known = Known { signed: signed.clone(), key: key.clone() };
        let mut turns = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if turns.now.len() >= MOST {
            turns.before = std::mem::take(&mut turns.now);
        }
        turns.now.insert(looked.0, known);
    }
}

impl Known {
    fn is_signed_by_one_of(&self, keys: &KeySet) -> bool {
        keys.get(self.signed.kid()).is_some_and(|key| *key.thumbprint() == self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Moment,
        jose::SigningKey,
        verify::{
            Denial, Refused, Rejected, Verifier,
            feed::tests::{START, Stand, moment},
        },
    };
    use serde_json::{Value, json};

    const TASK: &str = "task_01jd0000000000000000000000";
    const GIT: &str = "https://git.example.com";

    /// A verifier that has accepted a token before.
    fn accepted() -> (Stand, Verifier<crate::verify::Following>, String) {
        let stand = Stand::new();
        stand.snapshot(&stand.key, 1, &json!([])).unwrap();
        let verifier = Verifier::following(stand.feed.clone(), GIT.parse().unwrap());
        let token = stand.token(None);
        for _ in 0..2 {
            verifier.verify(&token, &now()).unwrap();
        }
        assert!(known(&verifier, &token, &stand));
        (stand, verifier, token)
    }

    fn now() -> Moment {
        moment(START, 0)
    }

    fn known(verifier: &Verifier<crate::verify::Following>, token: &str, stand: &Stand) -> bool {
        verifier.remembered().find(token, &stand.feed.keys()).1.is_some()
    }

    /// A set of access token keys in which a key goes by another's name.
    fn keys(key: &SigningKey, kid: &str) -> Keys {
        let mut jwk = serde_json::to_value(key.public()).unwrap();
        (jwk["use"], jwk["remit_purpose"], jwk["kid"]) = ("sig".into(), "access_token".into(), kid.into());
        let none = json!({"keys": []}).to_string();
        Keys::read(json!({"keys": [jwk]}).to_string().as_bytes(), none.as_bytes(), none.as_bytes()).unwrap()
    }

    #[test]
    fn what_has_changed_since_denies_what_is_remembered() {
        let entry = |what: Value| {
            let mut entry = what;
            (entry["at"], entry["until"]) = (json!(START / 1000), json!(START / 1000 + 600));
            json!([entry])
        };
        let lock = json!({"lock": {"id": "lock_01jd0000000000000000000000", "match": {"owner": "o"}}});
        for (what, expected) in [
            (json!({"task": TASK}), Denial::Revoked),
            (json!({"lease": "0".repeat(32)}), Denial::Revoked),
            (lock, Denial::Locked),
        ] {
            let (stand, verifier, token) = accepted();
            stand.push(&stand.key, 1, &entry(what)).unwrap();
            assert_eq!(verifier.verify(&token, &now()).unwrap_err(), Rejected::Denied(expected));
            assert!(known(&verifier, &token, &stand));
        }
        let (stand, verifier, token) = accepted();
        stand.push(&stand.key, 1, &entry(json!({"key": stand.access.kid()}))).unwrap();
        assert_eq!(verifier.verify(&token, &now()).unwrap_err(), Rejected::Denied(Denial::Revoked));
    }

    #[test]
    fn time_denies_what_is_remembered() {
        let (_stand, verifier, token) = accepted();
        let expired = Rejected::Invalid(Refused("it has expired"));
        // By either clock.
        assert_eq!(verifier.verify(&token, &moment(START + 60_000, 0)).unwrap_err(), expired);
        assert_eq!(verifier.verify(&token, &moment(START, 60_000)).unwrap_err(), expired);
        let early = verifier.verify(&token, &moment(START - 60_000, 0));
        assert!(early.is_ok(), "the brokers' clock counts, and it has not gone back");
        verifier.verify(&token, &now()).unwrap();
    }

    #[test]
    fn a_stale_set_accepts_nothing_that_is_remembered() {
        // Good for longer than the set.
        let stand = Stand::new();
        stand.snapshot(&stand.key, 1, &json!([])).unwrap();
        let verifier = Verifier::following(stand.feed.clone(), GIT.parse().unwrap());
        let mut claims: Value = crate::jose::Unverified::parse(&stand.token(None))
            .unwrap()
            .verify(stand.feed.keys().access.get(stand.access.kid()).unwrap())
            .unwrap();
        claims["exp"] = json!(START / 1000 + 600);
        let token = stand.access.sign("at+jwt", &claims).unwrap();
        verifier.verify(&token, &now()).unwrap();
        let stale = verifier.verify(&token, &moment(START, 61_000)).unwrap_err();
        assert_eq!(stale, Rejected::Denied(Denial::Stale));
    }

    #[test]
    fn a_key_that_is_gone_or_another_takes_what_it_signed_with_it() {
        let (stand, verifier, token) = accepted();
        let other = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        stand.feed.believe(keys(&other, other.kid()));
        assert_eq!(verifier.verify(&token, &now()).unwrap_err(), Rejected::Invalid(Refused("its key is unknown")));
        stand.feed.believe(keys(&other, stand.access.kid()));
        assert_eq!(verifier.verify(&token, &now()).unwrap_err(), Rejected::Invalid(Refused("the signature is wrong")));
        stand.feed.believe(keys(&stand.access, stand.access.kid()));
        verifier.verify(&token, &now()).unwrap();
    }

    #[test]
    fn what_was_refused_is_not_remembered_and_what_is_bound_stays_so() {
        let (stand, verifier, token) = accepted();
        let other = token.replace(&token[token.len() - 8..], "AAAAAAAA");
        let bound = stand.token(Some(json!({"x5t#S256": "A".repeat(43)})));
        for refused in [&other, &bound] {
            for _ in 0..2 {
                assert!(matches!(verifier.verify(refused, &now()), Err(Rejected::Invalid(_))));
            }
        }
        assert!(!known(&verifier, &other, &stand));
        let elsewhere = Verifier::following(stand.feed.clone(), "https://elsewhere.example.com".parse().unwrap());
        assert!(elsewhere.verify(&token, &now()).is_err());
        assert!(!known(&elsewhere, &token, &stand));
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let (stand, verifier, token) = accepted();
        let remembered = Remembered::default();
        let keys = stand.feed.keys();
        let signed = verifier.remembered().find(&token, &keys).1.unwrap();
        for n in 0..3 * MOST {
            let (looked, _) = remembered.find(&n.to_string(), &keys);
            remembered.remember(looked, &signed, keys.access.get(signed.kid()).unwrap().thumbprint());
        }
        let turns = remembered.0.read().unwrap();
        assert_eq!((turns.now.len(), turns.before.len()), (MOST, MOST));
        drop(turns);
        assert!(
            remembered.find("0", &keys).1.is_none() && remembered.find(&(3 * MOST - 1).to_string(), &keys).1.is_some()
        );
    }
}
