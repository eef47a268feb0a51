//! Name resolution that keeps to the address rules. A connection is made to what comes out here and to nothing else.

use std::{
    error, fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address_rules::AddressRules;

/// Looks a name up. Handed in, so that a test can decide what a name resolves to.
pub(super) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Every address of a host is refused.
#[derive(Debug)]
pub(super) struct NotAllowed {
    host: String,
    why: Vec<String>,
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name with a hundred addresses must not flood the status.
        let shown = self.why.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
        write!(f, "Connections to {} are not allowed: {shown}", self.host)
    }
}

impl error::Error for NotAllowed {}

/// Checks an address that stands in a URL, for which no resolver is asked.
pub(super) fn check_literal(rules: &AddressRules, ip: IpAddr) -> Result<(), NotAllowed> {
    rules.permits(ip).map_err(|why| NotAllowed { host: ip.to_string(), why: vec![why] })
}

/// Lets through only addresses that the rules permit.
pub(super) struct CheckedResolver {
    pub(super) rules: AddressRules,
    pub(super) lookup: Lookup,
    /// With `tls.serverName`, that name stands in the URL; this is the host that is meant by it.
    pub(super) alias: Option<Alias>,
}

/// A name that is looked up as another host.
#[derive(Clone)]
pub(super) struct Alias {
    pub(super) name: String,
    pub(super) host: String,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = match &self.alias {
            Some(alias) if alias.name.eq_ignore_ascii_case(name.as_str()) => alias.host.clone(),
            _ => name.as_str().to_owned(),
        };
        let rules = self.rules.clone();
        let lookup = self.lookup.clone();
        Box::pin(async move {
            let found = match host.parse() {
                Ok(ip) => vec![ip],
                Err(_) => lookup(host.clone()).await?,
            };
            Ok(Box::new(permitted(&rules, host, found)?.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

fn permitted(
    rules: &AddressRules,
    host: String,
    found: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, Box<dyn error::Error + Send + Sync>> {
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses").into());
    }
    let mut why = Vec::new();
    let permitted: Vec<IpAddr> =
        found.into_iter().filter(|ip| rules.permits(*ip).map_err(|reason| why.push(reason)).is_ok()).collect();
    if permitted.is_empty() { Err(NotAllowed { host, why }.into()) } else { Ok(permitted) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn only_permitted_addresses_of_a_name_are_tried() {
        let rules = AddressRules::default();
        let found = ips(&["169.254.169.254", "10.0.0.1", "::1", "2606:4700::1111"]);
        assert_eq!(permitted(&rules, "a".into(), found).unwrap(), ips(&["10.0.0.1", "2606:4700::1111"]));
    }

    #[test]
    fn a_name_with_no_permitted_address_is_refused_by_name_and_address() {
        let error = permitted(&AddressRules::default(), "id.example.com".into(), ips(&["127.0.0.1"])).unwrap_err();
        let error = error.downcast::<NotAllowed>().unwrap().to_string();
        assert!(error.contains("id.example.com") && error.contains("127.0.0.1"), "{error}");
    }

    #[test]
    fn a_name_without_addresses_is_no_refusal() {
        let error = permitted(&AddressRules::default(), "a".into(), vec![]).unwrap_err();
        assert!(error.is::<io::Error>());
    }
}
