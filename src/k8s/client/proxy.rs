//! The proxy to the API server, and `NO_PROXY`.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;

/// The proxy by which the API server is reached, if any.
///
/// kube takes it from the kubeconfig (`proxy-url`) or from `HTTPS_PROXY`, and has no regard for `NO_PROXY`. As with
/// kubectl, that variable concerns the proxy of the environment only.
pub(super) fn proxy(config: &Config) -> Option<&Uri> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    config.proxy_url.as_ref().filter(|proxy| !is_bypassed(&config.cluster_url, proxy, variable))
}

fn is_bypassed(server: &Uri, proxy: &Uri, variable: impl Fn(&str) -> Option<String>) -> bool {
    let of_environment = variable("HTTPS_PROXY").or_else(|| variable("https_proxy"));
    if of_environment.and_then(|text| text.parse::<Uri>().ok()).as_ref() != Some(proxy) {
        return false;
    }
    variable("NO_PROXY").or_else(|| variable("no_proxy")).is_some_and(|list| is_listed(server, &list))
}

/// Whether a list in the form of `NO_PROXY` names this server: by `*`, host, domain, address or network, each of which
/// but `*` and a network may have a port.
fn is_listed(server: &Uri, list: &str) -> bool {
    let default = if server.scheme_str() == Some("http") { 80 } else { 443 };
    let port = server.port_u16().unwrap_or(default);
    let entries: Vec<&str> =
        list.split(|c: char| c == ',' || c.is_whitespace()).filter_map(|entry| without_port(entry, port)).collect();
    if entries.contains(&"*") {
        return true;
    }
    // A name may be fully qualified, which is not a part of the name.
    let Some(host) = server.host().map(|host| host.trim_end_matches('.')) else { return false };
    let Ok(server) = Uri::builder().scheme("https").authority(host).path_and_query("/").build() else { return false };
    Matcher::builder().all("http://proxy").no(entries.join(",")).build().intercept(&server).is_none()
}

/// An entry without its port and brackets; nothing where the port is another one.
fn without_port(entry: &str, port: u16) -> Option<&str> {
    let (host, of_entry) = match entry.strip_prefix('[') {
        Some(address) => {
            let (host, rest) = address.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match entry.split_once(':') {
            // With another colon it is an IPv6 address or network.
            Some((host, of_entry)) if !of_entry.contains(':') => (host, Some(of_entry)),
            _ => (entry, None),
        },
    };
    let host = host.strip_prefix('*').filter(|domain| domain.starts_with('.')).unwrap_or(host);
    (of_entry.is_none_or(|of_entry| of_entry.parse() == Ok(port)) && !host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_names_hosts_domains_addresses_networks_and_ports() {
        for (server, list, expected) in [
            ("https://api.example.com:6443", "", false),
            ("https://api.example.com:6443", "*", true),
            ("https://10.0.0.1:6443", "*", true),
            ("https://[fd00::1]:6443", "*", true),
            ("https://api.example.com:6443", "api.example.com", true),
            ("https://API.example.com:6443", "api.EXAMPLE.com", true),
            ("https://api.example.com.:6443", "api.example.com", true),
            ("https://api.example.com:6443", "example.com", true),
            ("https://api.example.com:6443", ".example.com", true),
            ("https://api.example.com:6443", "*.example.com", true),
            ("https://notexample.com:6443", "example.com", false),
            ("https://api.example.com:6443", "other.com, example.com", true),
            ("https://api.example.com:6443", "other.com example.com", true),
            ("https://api.example.com:6443", "api.example.com:6443", true),
            ("https://api.example.com:6443", "api.example.com:443", false),
            ("https://api.example.com", "api.example.com:443", true),
            ("http://api.example.com", "api.example.com:80", true),
            ("https://10.1.2.3:6443", "10.1.2.3", true),
            ("https://10.1.2.3:6443", "10.1.2.3:6443", true),
            ("https://10.1.2.3:6443", "10.1.2.3:1", false),
            ("https://10.1.2.3:6443", "10.0.0.0/8", true),
            ("https://10.1.2.3:6443", "192.168.0.0/16", false),
            ("https://[fd00::1]:6443", "fd00::1", true),
            ("https://[fd00::1]:6443", "[fd00::1]", true),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", true),
            ("https://[fd00::1]:6443", "[fd00::1]:443", false),
            ("https://[fd00::1]:6443", "fd00::/8", true),
            ("https://[fd00::1]:6443", "10.0.0.0/8,,[", false),
        ] {
            assert_eq!(is_listed(&server.parse().expect("a URL"), list), expected, "{server} in {list:?}");
        }
    }

    #[test]
    fn no_proxy_concerns_the_proxy_of_the_environment_only() {
        let (server, proxy) = (Uri::from_static("https://10.0.0.1"), Uri::from_static("http://proxy:3128"));
        let other = Uri::from_static("http://other:3128");
        for (variables, bypassed) in [
            (&[][..], false),
            (&[("NO_PROXY", "*")], false),
            (&[("HTTPS_PROXY", "http://proxy:3128")], false),
            (&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", "*")], true),
            (&[("https_proxy", "http://proxy:3128"), ("no_proxy", "10.0.0.0/8")], true),
            (&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", "10.0.0.2"), ("no_proxy", "*")], false),
        ] {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(is_bypassed(&server, &proxy, variable), bypassed, "{variables:?}");
            assert!(!is_bypassed(&server, &other, variable), "that of the kubeconfig, with {variables:?}");
        }
    }
}
