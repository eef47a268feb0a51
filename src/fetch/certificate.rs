//! What is wrong with a server's certificate, in words, and what to do about it.

use chrono::DateTime;
use rustls::{
    CertificateError, ExtendedKeyPurpose, OtherError,
    pki_types::{ServerName, UnixTime},
};

use super::redact::Redactor;
use crate::time::rfc3339;

/// What the verifier refused, by the types of its errors.
pub(super) fn words(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is not signed by a trusted CA. Set tls.caBundle or tls.caRef to the certificate of \
             the CA that signed it, with the intermediate certificates that the server does not send"
                .to_owned()
        }
        CertificateError::Expired => "the server's certificate has expired. Renew it".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the server's certificate expired at {}. Renew it", at(not_after))
        }
        CertificateError::NotValidYet => "the server's certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the server's certificate is not valid before {}", at(not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => {
            let kind = if matches!(expected, ServerName::IpAddress(_)) { "IP" } else { "DNS" };
            format!(
                "the server's certificate has no subjectAltName, so it is valid for no host; its common name does not \
                 count. Issue one with subjectAltName={kind}:{}",
                expected.to_str()
            )
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().take(5).map(|name| bare(name)).collect();
            format!(
                "the server's certificate is for {}, not for {}. Set tls.serverName to the name to expect, or correct \
                 the URL",
                Redactor::default().clean(&names.join(", ")),
                expected.to_str()
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            let presented = match error {
                CertificateError::InvalidPurposeContext { presented, .. } if !presented.is_empty() => {
                    format!(" is only for {}", purposes(presented))
                }
                _ => " is not for servers".to_owned(),
            };
            format!("the server's certificate{presented}. Issue one with extendedKeyUsage=serverAuth")
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate, or one of its chain, is signed by an algorithm that is not supported, such as \
             SHA-1. Issue it again with SHA-256"
                .to_owned()
        }
        CertificateError::BadEncoding => "the server's certificate is damaged".to_owned(),
        CertificateError::Revoked => "the server's certificate was revoked".to_owned(),
        CertificateError::Other(OtherError(other)) => match other.downcast_ref::<webpki::Error>() {
            Some(error) => rare(error),
            None => "the server's certificate is not accepted".to_owned(),
        },
        _ => format!("the server's certificate is not accepted ({error:?})"),
    }
}

/// Errors for which rustls has no variant.
fn rare(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CaUsedAsEndEntity => {
            "the server's certificate is a CA certificate, which must not be used by a server. Issue a server \
             certificate with basicConstraints=CA:FALSE"
        }
        webpki::Error::EndEntityUsedAsCa => {
            "the server's certificate is signed by a certificate that is not a CA. Issue that one with \
             basicConstraints=critical,CA:TRUE"
        }
        webpki::Error::UnsupportedCertVersion => {
            "the server's certificate, or one of its chain, is not of X.509 version 3. Issue it as version 3, with \
             extensions such as subjectAltName (openssl x509 -req -extfile ...)"
        }
        webpki::Error::NameConstraintViolation => {
            "the server's certificate has a name that the CA which signed it must not sign (nameConstraints)"
        }
        // The name of a variant, without anything of the certificate.
        other => return format!("the server's certificate is not accepted ({other})"),
    }
    .to_owned()
}

fn at(time: &UnixTime) -> String {
    let moment = i64::try_from(time.as_secs()).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    moment.map_or_else(|| "a time out of range".to_owned(), rfc3339)
}

fn purposes(presented: &[ExtendedKeyPurpose]) -> String {
    let names = presented.iter().map(|purpose| match purpose {
        ExtendedKeyPurpose::ClientAuth => "clients",
        ExtendedKeyPurpose::ServerAuth => "servers",
        _ => "other purposes",
    });
    names.collect::<Vec<_>>().join(", ")
}

/// `id.example.com` of `DnsName("id.example.com")`, as the verifier writes names.
fn bare(name: &str) -> &str {
    name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name).trim_matches('"')
}
