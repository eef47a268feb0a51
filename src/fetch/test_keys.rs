//! Keys of tests, in the forms in which people have them.

macro_rules! key {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/", $file))
    };
}

pub(super) const RSA: &str = key!("rsa.pem");
pub(super) const RSA_PKCS1: &str = key!("rsa-pkcs1.pem");
pub(super) const RSA_PUBLIC: &str = key!("rsa-public.pem");
pub(super) const RSA_1024: &str = key!("rsa-1024.pem");
pub(super) const P256: &str = key!("p256.pem");
pub(super) const P256_SEC1: &str = key!("p256-sec1.pem");
pub(super) const P256_PUBLIC: &str = key!("p256-public.pem");
pub(super) const P384: &str = key!("p384.pem");
pub(super) const ED25519: &str = key!("ed25519.pem");
pub(super) const ED25519_PUBLIC: &str = key!("ed25519-public.pem");
pub(super) const ENCRYPTED: &str = key!("encrypted.pem");
pub(super) const ENCRYPTED_PKCS1: &str = key!("encrypted-pkcs1.pem");
pub(super) const OPENSSH: &str = key!("openssh.pem");
pub(super) const CERTIFICATE: &str = key!("certificate.pem");
/// Of the certificate: `openssl x509 -outform DER | openssl dgst -sha256 -binary | basenc --base64url`.
pub(super) const THUMBPRINT: &str = "GkRuRB_yP3gawChw37npqx5T01WqB-8l1kvC0O01MCs";
