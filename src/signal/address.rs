//! Where nothing is ever sent: a receiver is somebody else, and neither a service that a cloud gives its machines credentials from nor,
//! unless the configuration says so, anything that only this network can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::id::is_loopback;

/// Of clouds, outside the networks that are refused as such: Alibaba's and Azure's, and Amazon's for IPv6.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// What a cloud's machines call the same, whatever it resolves to.
const METADATA_NAMES: [&str; 3] = ["metadata.google.internal", "metadata.goog", "instance-data"];

const NEVER: &str =
    "its address is nobody's, everybody's, or one that a cloud gives credentials from: nothing is ever sent there";
const PRIVATE: &str = "its address is private: set `private_address = true` if it is meant to be there";

/// Why nothing is sent to an address.
fn refused(address: IpAddr, private: bool) -> Option<&'static str> {
    let address = address_within(address);
    let (never, local) = match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let never = v4.is_link_local() || first == 0 || first >= 224 || METADATA_V4.contains(&v4);
            // RFC 6598 section 7: shared by a carrier's customers.
            (never, v4.is_private() || v4.is_loopback() || (first == 100 && (64..128).contains(&second)))
        }
        IpAddr::V6(v6) => {
            let never = v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() || v6 == METADATA_V6;
            // The old site-local addresses, too (RFC 3879).
            (never, v6.is_loopback() || v6.is_unique_local() || v6.segments()[0] & 0xffc0 == 0xfec0)
        }
    };
    match (never, local && !private) {
        (true, _) => Some(NEVER),
        (false, true) => Some(PRIVATE),
        (false, false) => None,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped or compatible (RFC 4291), translated (RFC 6052), or 6to4 (RFC 3056).
fn address_within(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4(high, low)
        }
        [0, 0, 0, 0, 0, 0, high, low] if high > 0 => v4(high, low),
        _ => address,
    }
}

/// Why nothing is sent to the host of a URL, as far as it can be told before its name is resolved. On loopback it is whoever wrote it
/// that said so.
pub(super) fn refused_in(url: &Url, private: bool) -> Option<&'static str> {
    match url.host() {
        _ if is_loopback(url) => None,
        Some(Host::Ipv4(address)) => refused(address.into(), private),
        Some(Host::Ipv6(address)) => refused(address.into(), private),
        Some(Host::Domain(name)) => METADATA_NAMES.contains(&name.trim_end_matches('.')).then_some(NEVER),
        None => Some("`url` names no host"),
    }
}

/// Resolves the name of a receiver, and hands on what may be called alone: what was looked at is what is called, so that a name that
/// resolves to something else a moment later changes nothing.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) private: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private || name.as_str() == "localhost";
        Box::pin(async move {
            let all: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // A name that is here and there is a way around this.
            match all.iter().find_map(|address| refused(address.ip(), private)) {
                Some(why) => Err(why.into()),
                None => Ok(Box::new(all.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_judged_by_what_it_resolves_to() {
        let resolve = async |name: &str, private| {
            let resolving = Guarded { private }.resolve(name.parse().unwrap());
            resolving.await.map(Iterator::count).map_err(|why| why.to_string())
        };
        assert!(resolve("localhost", false).await.unwrap() > 0);
        // Numbers are names to a resolver.
        assert_eq!(resolve("127.0.0.1", false).await, Err(PRIVATE.to_owned()));
        assert_eq!(resolve("127.0.0.1", true).await, Ok(1));
        assert_eq!(resolve("169.254.169.254", true).await, Err(NEVER.to_owned()));
    }
}
