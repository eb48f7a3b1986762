//! `remit verifier`: the verifier of a service in any language, beside it.

use clap::Args;
use secrecy::ExposeSecret as _;
use std::path::PathBuf;
use url::Url;

use super::{
    connection::token_in,
    exit::Failure,
    show::{facts, say},
};
use crate::{
    id::Location,
    serve::{Signals, StartError},
    sidecar::{self, Place, Terms},
    verify::FollowTerms,
};

/// Follows the revocation feed, and answers nginx, Traefik, Envoy or the service itself on this machine.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verifier {
    /// The broker, as it stands in `iss`.
    #[arg(long, value_name = "URL")]
    broker: String,
    /// The service, as it stands in `aud`.
    #[arg(long, value_name = "URI")]
    audience: Location,
    /// Where to listen: ADDRESS:PORT on loopback, or unix:PATH.
    #[arg(long, value_name = "PLACE", default_value = "127.0.0.1:8421")]
    listen: Place,
    /// Listen where other machines reach it too: whoever does learns what any token says, and whether it is good.
    #[arg(long)]
    listen_anywhere: bool,
    /// The token by which the broker knows the service: then a revoke is reported effective as soon as it is here.
    #[arg(long, value_name = "FILE")]
    service_token_file: Option<PathBuf>,
    /// The authorities (PEM) that may vouch for the broker's certificate [default: those of the machine]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How clients know the service, for proofs [default: scheme and authority of the audience]
    #[arg(long, value_name = "URL")]
    at: Option<String>,
    /// The header in which the proxy says which certificate the client showed. The proxy has to set it on every request.
    #[arg(long, value_name = "NAME")]
    client_cert_header: Option<String>,
}

const EXAMPLES: &str = "Examples:
  remit verifier --broker https://broker.example.com --audience https://git.example.com
  remit verifier --broker https://broker.example.com --audience https://git.example.com \\
    --listen unix:/run/remit-verifier/verifier.sock --service-token-file git.token";

impl Verifier {
    pub(super) async fn run(self) -> Result<(), Failure> {
        if !(self.listen.is_local() || self.listen_anywhere) {
            let rule = "it answers whoever reaches it: --listen takes a loopback address or unix:PATH, or say --listen-anywhere";
            return Err(Failure::Input(rule.to_owned()));
        }
        let mut signals = Signals::listen().map_err(|why| Failure::Stopped(why.to_string()))?;
        let (terms, place) = self.terms()?;
        let running = sidecar::start(terms, place).await.map_err(|why| match why {
            StartError::Configuration(why) => Failure::Input(why),
            StartError::Failed(why) => Failure::Stopped(why),
        })?;
        let place = match &running.place {
            Place::Tcp(address) => ("  HTTP", format!("http://{address}")),
            Place::Unix(path) => ("  Unix socket", path.display().to_string()),
        };
        say(&format!("remit verifier listens\n{}", facts(&[place])));
        signals.received().await;
        running.stop().await;
        Ok(())
    }

    fn terms(self) -> Result<(Terms, Place), Failure> {
        if let Some(at) = &self.at {
            let known = Url::parse(at).ok().filter(|url| {
                matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none()
            });
            known.ok_or_else(|| Failure::Input("--at is an http:// or https:// URL without a query".to_owned()))?;
        }
        let header = self.client_cert_header.as_deref().map(|name| {
            name.parse().map_err(|_| Failure::Input("--client-cert-header is no name of a header".to_owned()))
        });
        let token = self.service_token_file.as_deref().map(token_in).transpose()?;
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))
        };
        let follow = FollowTerms {
            service_token: token.map(|token| token.expose_secret().to_owned()),
            roots: self.ca.as_ref().map(read).transpose()?,
            ..FollowTerms::of(&self.broker)
        };
        let terms = Terms { follow, audience: self.audience, at: self.at, certificate_header: header.transpose()? };
        Ok((terms, self.listen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier(listen: &str) -> Verifier {
        Verifier {
            broker: "http://127.0.0.1:1".to_owned(),
            audience: "https://git.example.com".parse().unwrap(),
            listen: listen.parse().unwrap(),
            listen_anywhere: false,
            service_token_file: None,
            ca: None,
            at: None,
            client_cert_header: None,
        }
    }

    #[tokio::test]
    async fn it_listens_on_this_machine_unless_told_otherwise() {
        for far in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            assert!(matches!(verifier(far).run().await, Err(Failure::Input(why)) if why.contains("--listen-anywhere")));
        }
        for bad in ["unix:", "8421", "localhost:8421", ""] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_it_is_told_is_checked() {
        let near = "127.0.0.1:0";
        for at in ["git.example.com", "ftp://git.example.com", "https://git.example.com?x"] {
            assert!(Verifier { at: Some(at.to_owned()), ..verifier(near) }.terms().is_err(), "{at}");
        }
        for header in ["", "x y", "x:y"] {
            let verifier = Verifier { client_cert_header: Some(header.to_owned()), ..verifier(near) };
            assert!(verifier.terms().is_err(), "{header}");
        }
        let (terms, place) =
            Verifier { at: Some("https://git.example.com/base".to_owned()), ..verifier(near) }.terms().unwrap();
        assert!(place.is_local() && terms.at.is_some());
    }
}
