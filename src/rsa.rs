//! RSA keys that are weak by how they were made: of the right size, and yet anybody can take them apart.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use num_bigint::BigUint;
use x509_parser::{public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// The odd primes up to 167, whose product every prime of a library with ROCA was built around.
const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];
/// How many steps of Fermat's method are taken. Two primes that were picked one after the other are found in the first of them.
const STEPS: u32 = 100;

/// What is wrong with a modulus (big-endian), if it is one that can be factored by how it was made:
///
/// - a factor that is small;
/// - ROCA (CVE-2017-15361): all primes of an Infineon library are a power of 65537 modulo a product of small primes, and so is what
///   two of them make. A good key looks like that once in a hundred million;
/// - two factors beside each other (CVE-2022-26320).
fn flaw(modulus: &[u8]) -> Option<&'static str> {
    let modulus = BigUint::from_bytes_be(modulus);
    let residues = PRIMES.map(|prime| (prime, remainder(&modulus, prime)));
    if !modulus.bit(0) || residues.iter().any(|(_, residue)| *residue == 0) {
        return Some("it has a small factor");
    }
    if residues.iter().all(|(prime, residue)| is_power_of_65537(*residue, *prime)) {
        return Some("it was made by a library whose keys can be factored (ROCA, CVE-2017-15361)");
    }
    has_close_factors(&modulus).then_some("its factors stand beside each other (CVE-2022-26320)")
}

/// The same of a modulus in base64url, as a JWK has it (RFC 7518 section 6.3.1.1). What is none is nobody's key.
pub(crate) fn flaw_of(modulus: &str) -> Option<&'static str> {
    BASE64_URL_SAFE_NO_PAD.decode(modulus).ok().and_then(|modulus| flaw(&modulus))
}

/// The same of a public key; `None` of one that is no RSA key, too.
pub(crate) fn flaw_in(key: &SubjectPublicKeyInfo<'_>) -> Option<&'static str> {
    let Ok(PublicKey::RSA(key)) = key.parsed() else { return None };
    flaw(key.modulus)
}

fn remainder(number: &BigUint, prime: u32) -> u32 {
    number.iter_u32_digits().rev().fold(0, |rest, digit| {
        let rest = ((u64::from(rest) << 32) | u64::from(digit)) % u64::from(prime);
        u32::try_from(rest).unwrap_or_default()
    })
}

fn is_power_of_65537(number: u32, prime: u32) -> bool {
    let mut power = 1;
    for _ in 1..prime {
        if power == number {
            return true;
        }
        power = power * (65_537 % prime) % prime;
    }
    false
}

/// Fermat's method: from the root upwards, the first number whose square is a square more than the modulus is the middle of two factors.
fn has_close_factors(modulus: &BigUint) -> bool {
    let root = modulus.sqrt();
    (0..=STEPS).map(|step| (&root + step).pow(2)).filter(|square| square >= modulus).any(|square| {
        let rest = square - modulus;
        // A square ends in one of four ways: most numbers need no root.
        let end = rest.iter_u32_digits().next().unwrap_or_default() % 16;
        matches!(end, 0 | 1 | 4 | 9) && rest.sqrt().pow(2) == rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::{SecureRandom as _, SystemRandom};

    fn flaws() -> Vec<Option<&'static str>> {
        let keys = include_str!("../tests/it/support/weak-keys.pem").split_inclusive("-----END PRIVATE KEY-----\n");
        let modulus = |pem: &str| {
            let (_, pem) = pem.split_once('\n').unwrap();
            let info = crate::pem::read_one(pem, &["PRIVATE KEY"]).unwrap();
            // Its first number of 257 octets, the sign's included: ring reads no key like these.
            let at = info.windows(5).position(|head| head == [2, 0x82, 1, 1, 0]).unwrap() + 5;
            info[at..at + 256].to_vec()
        };
        keys.map(|pem| flaw(&modulus(pem))).collect()
    }

    #[test]
    fn a_key_that_can_be_taken_apart_is_told() {
        let told: Vec<_> = flaws().into_iter().map(Option::unwrap).collect();
        assert!(told[0].contains("ROCA") && told[1].contains("beside") && told[2].contains("small"), "{told:?}");
    }

    #[test]
    fn a_number_like_those_of_good_keys_is_not() {
        let mut good = 0;
        for _ in 0..200 {
            let mut modulus = [0; 256];
            SystemRandom::new().fill(&mut modulus).unwrap();
            modulus[0] |= 0xc0;
            modulus[255] |= 1;
            match flaw(&modulus) {
                None => good += 1,
                Some(why) => assert!(why.contains("small"), "{why}"),
            }
        }
        // What is odd has no factor of 3 to 167 in about 22 of 100 cases.
        assert!(good > 10, "{good}");
    }
}
