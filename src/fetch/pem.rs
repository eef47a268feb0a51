//! PEM as people paste it: joined files, indented lines, escaped line ends, byte order marks; and what to say of a text
//! that is something else. No message quotes any of it.

use zeroize::Zeroizing;

const BEGIN: &[u8] = b"-----BEGIN ";

/// The text with each line of its own, as parsers of PEM want it: without blanks around lines and byte order marks
/// before them, with `\n` as people copy it out of JSON as a line end, and with a line end between files that were
/// joined without one. Otherwise the second of two joined certificates would be passed over in silence.
pub(super) fn tidy(text: &[u8]) -> Zeroizing<Vec<u8>> {
    // Each line grows by one byte at most, and is longer than that. A buffer that grows would leave copies of a key.
    let mut tidy = Zeroizing::new(Vec::with_capacity(2 * text.len() + 2));
    let mut rest = text;
    while !rest.is_empty() {
        let end = line_end(rest);
        tidy.extend_from_slice(trimmed(&rest[..end.start]));
        tidy.push(b'\n');
        rest = &rest[end.end..];
    }
    tidy
}

/// Where the first line ends, and the next one begins.
fn line_end(text: &[u8]) -> std::ops::Range<usize> {
    for (at, byte) in text.iter().enumerate() {
        match (byte, text.get(at + 1)) {
            (b'\n' | b'\r', _) => return at..at + 1,
            (b'\\', Some(b'n' | b'r')) => return at..at + 2,
            (b'-', _) if at > 0 && text[at..].starts_with(BEGIN) => return at..at,
            _ => {}
        }
    }
    text.len()..text.len()
}

fn trimmed(line: &[u8]) -> &[u8] {
    let mut line = line.trim_ascii();
    while let Some(rest) = line.strip_prefix("\u{feff}".as_bytes()) {
        line = rest.trim_ascii_start();
    }
    line
}

fn has(text: &[u8], mark: &str) -> bool {
    text.windows(mark.len()).any(|window| window == mark.as_bytes())
}

/// What a text is that is no PEM at all, to be said after "the value".
fn no_pem(text: &[u8]) -> Option<&'static str> {
    match text {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is text in UTF-16. Save it in UTF-8"),
        // How a sequence of more than 127 bytes begins.
        [0x30, 0x81..=0x84, ..] => Some("is in DER, not in PEM"),
        _ => None,
    }
}

/// Why a text holds no private key that can be used, to be said after "the value".
pub(super) fn no_private_key(text: &[u8]) -> &'static str {
    if has(text, "BEGIN ENCRYPTED PRIVATE KEY") || has(text, "Proc-Type: 4,ENCRYPTED") {
        "is a private key that is encrypted with a passphrase. Decrypt it with: openssl pkey -in key.pem -out decrypted.pem"
    } else if has(text, "BEGIN OPENSSH PRIVATE KEY") {
        "is a key in OpenSSH's own format. Convert it with: ssh-keygen -p -m PKCS8 -f key"
    } else if has(text, "PRIVATE KEY-----") {
        "is a private key in PEM that is damaged. Store it with the lines that it had"
    } else if has(text, "BEGIN PUBLIC KEY") || has(text, "BEGIN RSA PUBLIC KEY") {
        "is a public key. Store the private key that belongs to it"
    } else if has(text, "BEGIN CERTIFICATE") {
        "is a certificate. Store the private key that belongs to it"
    } else {
        no_pem(text).unwrap_or("is not PEM. A private key begins with -----BEGIN PRIVATE KEY-----")
    }
}

/// Why a text holds no certificate, to be said after "the value".
pub(super) fn no_certificate(text: &[u8]) -> &'static str {
    if has(text, "BEGIN CERTIFICATE-----") {
        "is a certificate in PEM that is damaged. Store it with the lines that it had"
    } else if has(text, "BEGIN TRUSTED CERTIFICATE") {
        "is a certificate in OpenSSL's own format. Convert it with: openssl x509 -in ca.pem -out converted.pem"
    } else if has(text, "BEGIN PKCS7") {
        "is PKCS#7. Convert it with: openssl pkcs7 -print_certs -in certs.p7b -out certs.pem"
    } else {
        no_pem(text).unwrap_or("holds no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

    use super::*;
    use crate::fetch::test_keys as keys;

    #[test]
    fn pem_is_read_as_people_paste_it() {
        let certificate = CertificateDer::from_pem_slice(keys::CERTIFICATE.as_bytes()).unwrap();
        let pem = keys::CERTIFICATE.trim();
        for (text, number) in [
            (pem.to_owned(), 1),
            (format!("{pem}{pem}{pem}"), 3),
            (format!("{pem}\n\n{pem}\n"), 2),
            (format!("\u{feff}{pem}\n\u{feff}{pem}\n"), 2),
            (format!("# a comment\n{pem}"), 1),
            (format!("\"{pem}\\n\""), 1),
            (format!("{pem}\n{pem}").replace('\n', "\r\n"), 2),
            (format!("{pem}{pem}").replace('\n', "\\n"), 2),
            (format!("{pem}\n{pem}").replace('\n', "\\r\\n"), 2),
            (pem.lines().map(|line| format!("\t {line} \n")).collect(), 1),
        ] {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&tidy(text.as_bytes())).collect();
            assert_eq!(found.unwrap(), vec![certificate.clone(); number], "{text}");
        }
        let key = format!("{}{}", keys::CERTIFICATE.trim(), keys::RSA);
        assert!(PrivateKeyDer::from_pem_slice(&tidy(key.as_bytes())).is_ok());
    }

    #[test]
    fn what_holds_no_certificate_is_told_by_what_it_is() {
        let utf16: Vec<u8> =
            [0xff, 0xfe].into_iter().chain(keys::CERTIFICATE.bytes().flat_map(|byte| [byte, 0])).collect();
        let der = CertificateDer::from_pem_slice(keys::CERTIFICATE.as_bytes()).unwrap();
        for (text, words) in [
            (&utf16[..], "is text in UTF-16"),
            (&der, "is in DER"),
            (b"-----BEGIN PKCS7-----", "openssl pkcs7"),
            (b"-----BEGIN TRUSTED CERTIFICATE-----", "OpenSSL's own format"),
            (b"-----BEGIN CERTIFICATE-----\n!", "damaged"),
            (keys::RSA.as_bytes(), "holds no certificate"),
            (b"", "holds no certificate"),
        ] {
            assert!(no_certificate(text).contains(words), "{}", no_certificate(text));
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_grow(text in "([\\\\nr\n -]|-----BEGIN |\u{feff}|[a-z]){0,40}") {
            let tidied = tidy(text.as_bytes());
            prop_assert!(tidied.len() <= 2 * text.len() + 2);
            prop_assert_eq!(&*tidy(&tidied), &*tidied);
        }
    }
}
