//! A Status List Token (draft-ietf-oauth-status-list section 5.1) and the bits in it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde::{Deserialize, Serialize};
use std::io::{Read as _, Write as _};

use crate::{jose::Invalid, task::STATUS_LIST_ENTRIES};

/// The `typ` of a Status List Token, and the end of its media type.
pub const STATUS_LIST_TYP: &str = "statuslist+jwt";

/// The claims of a Status List Token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusListClaims {
    /// The list's URI.
    pub sub: String,
    /// As of when it is true.
    pub iat: i64,
    /// From when on it is worth nothing.
    pub exp: i64,
    /// How long it may be kept before it is fetched again, in seconds.
    pub ttl: u32,
    /// The bits.
    pub status_list: CompressedList,
}

/// The bits, as they are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressedList {
    /// How many bits a status takes.
    pub bits: u8,
    /// DEFLATE in a zlib container, in base64url.
    pub lst: String,
}

impl CompressedList {
    /// Compresses a list of one bit each, the lowest bit of an octet first.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn pack(octets: &[u8]) -> Result<Self, Invalid> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        let compressed = encoder.write_all(octets).and_then(|()| encoder.finish());
        let compressed = compressed.map_err(|_| Invalid("the list cannot be compressed"))?;
        Ok(Self { bits: 1, lst: BASE64_URL_SAFE_NO_PAD.encode(compressed) })
    }

    /// The list, of which no more is inflated than the broker's are long.
    ///
    /// # Errors
    /// When it is not of one bit each, not compressed like that, or longer.
    pub fn unpack(&self) -> Result<Vec<u8>, Invalid> {
        if self.bits != 1 {
            return Err(Invalid("not a list of one bit each"));
        }
        let compressed = BASE64_URL_SAFE_NO_PAD.decode(&self.lst).map_err(|_| Invalid("not base64url"))?;
        let most = u64::from(STATUS_LIST_ENTRIES) / 8;
        let mut octets = Vec::new();
        let inflated = ZlibDecoder::new(&*compressed).take(most + 1).read_to_end(&mut octets);
        match inflated {
            Ok(length) if length as u64 <= most => Ok(octets),
            Ok(_) => Err(Invalid("the list is longer than the broker's are")),
            Err(_) => Err(Invalid("the list is not compressed as it has to be")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the draft, section 4.1: other libraries compress to other octets, and all inflate alike.
    #[test]
    fn the_example_of_the_draft_is_read() {
        let example = CompressedList { bits: 1, lst: "eNrbuRgAAhcBXQ".into() };
        assert_eq!(example.unpack().unwrap(), [0xb9, 0xa3]);
        assert_eq!(CompressedList::pack(&[0xb9, 0xa3]).unwrap().unpack().unwrap(), [0xb9, 0xa3]);
    }

    #[test]
    fn a_list_is_small_until_it_is_random_and_never_more_than_a_token_may_be() {
        let whole = STATUS_LIST_ENTRIES as usize / 8;
        let mut octets = vec![0; whole];
        assert!(CompressedList::pack(&octets).unwrap().lst.len() < 64);
        let digest = |at: usize| ring::digest::digest(&ring::digest::SHA256, &at.to_be_bytes());
        for (at, chunk) in octets.chunks_mut(32).enumerate() {
            chunk.copy_from_slice(digest(at).as_ref());
        }
        let packed = CompressedList::pack(&octets).unwrap();
        assert_eq!(packed.unpack().unwrap(), octets);
        assert!(packed.lst.len() * 4 / 3 < crate::jose::MAX_TOKEN - 512, "{}", packed.lst.len());
    }

    #[test]
    fn what_would_blow_up_is_refused() {
        let packed = CompressedList::pack(&vec![0; 64 << 20]).unwrap();
        assert_eq!(packed.unpack(), Err(Invalid("the list is longer than the broker's are")));
        let list = CompressedList::pack(&[1, 2, 3]).unwrap();
        assert!(CompressedList { bits: 2, ..list.clone() }.unpack().is_err());
        for lst in [String::new(), "AAAA".into(), format!("{}=", list.lst), list.lst[..list.lst.len() - 3].to_owned()] {
            assert!(CompressedList { bits: 1, lst }.unpack().is_err());
        }
    }
}
