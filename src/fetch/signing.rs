//! Signed JWTs: a private key in PEM, and what is signed with it (RFC 7515, RFC 7519).
//!
//! No error here holds any of the key.

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use secrecy::SecretString;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::pem;
use crate::api::oauth2::SigningAlgorithm;

/// A key that can sign. Does not print.
pub(super) struct SigningKey {
    key: EncodingKey,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    Ed25519,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Rsa => "an RSA key",
            Self::P256 => "an EC key of the curve P-256",
            Self::Ed25519 => "an Ed25519 key",
        }
    }

    fn algorithms(self) -> &'static str {
        match self {
            Self::Rsa => "RS256 or PS256",
            Self::P256 => "ES256",
            Self::Ed25519 => "EdDSA",
        }
    }
}

/// What is wrong with a key, to be said after "the value".
type Wrong = &'static str;

impl SigningKey {
    /// A private key in PEM: PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, Wrong> {
        let Ok(key) = PrivateKeyDer::from_pem_slice(&pem::tidy(pem)) else { return Err(pem::no_private_key(pem)) };
        match &key {
            PrivateKeyDer::Pkcs1(der) => rsa_key(der.secret_pkcs1_der()),
            PrivateKeyDer::Sec1(der) => ec(der.secret_sec1_der()).unwrap_or(Err(BROKEN)),
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                if Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).is_ok() {
                    return Ok(Self { key: EncodingKey::from_ed_der(der), kind: Kind::Ed25519 });
                }
                ec(der).unwrap_or_else(|| rsa_key(der))
            }
            _ => Err(BROKEN),
        }
    }

    /// The algorithm to sign with: the one that is wanted, or the one that fits the key.
    ///
    /// # Errors
    /// What is wrong where they do not go together.
    pub(super) fn algorithm(&self, wanted: Option<SigningAlgorithm>) -> Result<Algorithm, String> {
        let algorithm = match (wanted, self.kind) {
            (Some(SigningAlgorithm::RS256) | None, Kind::Rsa) => Algorithm::RS256,
            (Some(SigningAlgorithm::PS256), Kind::Rsa) => Algorithm::PS256,
            (Some(SigningAlgorithm::ES256) | None, Kind::P256) => Algorithm::ES256,
            (Some(SigningAlgorithm::EdDSA) | None, Kind::Ed25519) => Algorithm::EdDSA,
            (Some(wanted), kind) => {
                return Err(format!("is {}, which signs by {}, not by {wanted:?}", kind.name(), kind.algorithms()));
            }
        };
        Ok(algorithm)
    }

    /// A JWT with these claims.
    ///
    /// # Errors
    /// Only by a fault of the library.
    pub(super) fn sign(&self, header: &Header, claims: &Map<String, Value>) -> Result<SecretString, Wrong> {
        encode(header, claims, &self.key).map(SecretString::from).map_err(|_| "cannot be signed with")
    }

    /// A symmetric key, for HS256.
    pub(super) fn sign_with_secret(
        secret: &[u8],
        header: &Header,
        claims: &Map<String, Value>,
    ) -> Option<SecretString> {
        encode(header, claims, &EncodingKey::from_secret(secret)).map(SecretString::from).ok()
    }
}

/// The thumbprint of a certificate in PEM, as `x5t#S256` wants it (RFC 7515 §4.1.8).
///
/// # Errors
/// When it is none.
pub(super) fn thumbprint(pem: &[u8]) -> Result<String, Wrong> {
    let certificate = CertificateDer::from_pem_slice(&pem::tidy(pem)).map_err(|_| pem::no_certificate(pem))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&certificate)))
}

const BROKEN: Wrong = "is no private key that can be read: it is damaged, or of a kind that is not supported; RSA of at \
                       least 2048 bits, EC of the curve P-256 and Ed25519 are";

fn rsa_key(der: &[u8]) -> Result<SigningKey, Wrong> {
    // Both forms are tried by the library; jsonwebtoken wants PKCS#1, but takes PKCS#8 as PEM only.
    let pair = rsa::KeyPair::from_der(der).or_else(|_| rsa::KeyPair::from_pkcs8(der)).map_err(|_| BROKEN)?;
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| BROKEN)?;
    let pem = zeroize::Zeroizing::new(pem_of(pkcs8.as_ref()));
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| BROKEN)?;
    Ok(SigningKey { key, kind: Kind::Rsa })
}

fn pem_of(pkcs8: &[u8]) -> String {
    let base64 = zeroize::Zeroizing::new(base64::prelude::BASE64_STANDARD.encode(pkcs8));
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *base64)
}

/// `None` where it is no EC key.
fn ec(der: &[u8]) -> Option<Result<SigningKey, Wrong>> {
    let is = |curve: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::from_private_key_der(curve, der);
    if let Ok(pair) = is(&ECDSA_P256_SHA256_FIXED_SIGNING) {
        let key = pair.to_pkcs8v1().map(|pkcs8| EncodingKey::from_ec_der(pkcs8.as_ref()));
        return Some(key.map(|key| SigningKey { key, kind: Kind::P256 }).map_err(|_| BROKEN));
    }
    let other = is(&ECDSA_P384_SHA384_FIXED_SIGNING).is_ok() || is(&ECDSA_P521_SHA512_FIXED_SIGNING).is_ok();
    other.then_some(Err("is an EC key of another curve than P-256, which ES256 needs: make one by \
                         openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use jsonwebtoken::{DecodingKey, Validation, decode};
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;
    use crate::fetch::test_keys as keys;

    fn error(pem: &str) -> Wrong {
        SigningKey::from_pem(pem.as_bytes()).map(|_| ()).expect_err(pem)
    }

    #[test]
    fn each_form_of_key_signs_by_each_of_its_algorithms_what_its_public_key_verifies() {
        use SigningAlgorithm::{ES256, EdDSA, PS256, RS256};
        let claims = json!({"sub": "a", "exp": 9_999_999_999_u64});
        for (pem, public, algorithms) in [
            (keys::RSA, keys::RSA_PUBLIC, &[None, Some(RS256), Some(PS256)][..]),
            (keys::RSA_PKCS1, keys::RSA_PUBLIC, &[None, Some(RS256), Some(PS256)]),
            (keys::P256, keys::P256_PUBLIC, &[None, Some(ES256)]),
            (keys::P256_SEC1, keys::P256_PUBLIC, &[None, Some(ES256)]),
            (keys::ED25519, keys::ED25519_PUBLIC, &[None, Some(EdDSA)]),
        ] {
            let key = SigningKey::from_pem(pem.as_bytes()).expect(pem);
            for wanted in algorithms {
                let algorithm = key.algorithm(*wanted).unwrap();
                let jwt = key.sign(&Header::new(algorithm), claims.as_object().unwrap()).unwrap();
                let public = match key.kind {
                    Kind::Rsa => DecodingKey::from_rsa_pem(public.as_bytes()),
                    Kind::P256 => DecodingKey::from_ec_pem(public.as_bytes()),
                    Kind::Ed25519 => DecodingKey::from_ed_pem(public.as_bytes()),
                };
                let told = decode::<Value>(jwt.expose_secret(), &public.unwrap(), &Validation::new(algorithm)).unwrap();
                assert_eq!(told.claims, claims);
            }
        }
    }

    #[test]
    fn a_key_that_does_not_sign_by_the_wanted_algorithm_says_by_which_it_does() {
        use SigningAlgorithm::{ES256, EdDSA, PS256, RS256};
        for (pem, wanted, words) in [
            (keys::RSA, ES256, "is an RSA key, which signs by RS256 or PS256, not by ES256"),
            (keys::RSA, EdDSA, "not by EdDSA"),
            (keys::P256, RS256, "is an EC key of the curve P-256, which signs by ES256, not by RS256"),
            (keys::P256, EdDSA, "not by EdDSA"),
            (keys::ED25519, PS256, "is an Ed25519 key, which signs by EdDSA, not by PS256"),
        ] {
            let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
            let wrong = key.algorithm(Some(wanted)).unwrap_err();
            assert!(wrong.contains(words), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_usable_private_key_is_told_without_any_of_it() {
        let damaged = keys::RSA.replace("\nM", "\n!");
        let emptied = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (pem, words) in [
            (keys::ENCRYPTED, "encrypted with a passphrase. Decrypt it with: openssl pkey"),
            (keys::ENCRYPTED_PKCS1, "encrypted with a passphrase"),
            (keys::OPENSSH, "ssh-keygen -p -m PKCS8"),
            (keys::RSA_PUBLIC, "is a public key"),
            (keys::CERTIFICATE, "is a certificate"),
            (keys::P384, "another curve than P-256"),
            (keys::RSA_1024, "RSA of at least 2048 bits"),
            (damaged.as_str(), "damaged"),
            (emptied, "no private key that can be read"),
            ("hunter2", "is not PEM"),
            ("", "is not PEM"),
        ] {
            assert!(error(pem).contains(words), "{pem}: {}", error(pem));
        }
    }

    #[test]
    fn the_thumbprint_is_that_of_the_certificate() {
        assert_eq!(thumbprint(keys::CERTIFICATE.as_bytes()).unwrap(), keys::THUMBPRINT);
        assert!(thumbprint(keys::RSA.as_bytes()).is_err());
    }
}
