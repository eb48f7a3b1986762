//! Addresses of proxies, as a configuration names them.

use serde::Deserialize;
use std::{net::IpAddr, str::FromStr};

/// One address, or all that begin alike: `10.1.2.3`, `10.1.0.0/16`, `2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    first: IpAddr,
    prefix: u32,
}

impl Network {
    /// Whether the address is one of these. An IPv4 address is the same in whatever form the system reports it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && difference(self.first, address).leading_zeros() >= self.prefix
    }

    /// Whether it is every address there is.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }
}

/// Where two addresses of one family differ, from the first bit on.
fn difference(one: IpAddr, other: IpAddr) -> u128 {
    let bits = |address| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    bits(one) ^ bits(other)
}

impl FromStr for Network {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "an address, or a network as in 10.1.0.0/16; names are not looked up";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| RULE)?;
        if first != first.to_canonical() {
            return Err("write IPv4 addresses as IPv4 addresses");
        }
        let whole = if first.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => whole,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| RULE)?,
            Some(_) => return Err(RULE),
        };
        let rest = difference(first, if first.is_ipv4() { [0; 4].into() } else { [0; 16].into() });
        if prefix > whole || rest.checked_shl(prefix).unwrap_or(0) != 0 {
            return Err("the address of a network has no bits beyond its prefix");
        }
        Ok(Self { first, prefix })
    }
}

impl TryFrom<String> for Network {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_begins_alike() {
        for (network, address, holds) in [
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("10.1.2.3", "::ffff:10.1.2.3", true),
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("10.1.2.2/31", "10.1.2.3", true),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "10.1.2.3", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("::1", "::1", true),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), holds, "{network} {address}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in [
            "",
            "proxy",
            "10.1.2.3/33",
            "10.1.2.3/16",
            "10.1.0.0/",
            "10.1.0.0/+16",
            "10.1/16",
            "::/129",
            "::ffff:10.1.2.3",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
