//! A result on its way through the pod's status: compressed, then sealed to a key made for one run, as text.
//!
//! HPKE in base mode (RFC 9180) with X25519: whoever reads the sealed text without the private key, which only the
//! controller's memory and the state's Secret hold, learns its length and nothing else.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec_with_limit};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A result is at most this long.
pub(crate) const MAX_RESULT: usize = 1024 * 1024;

/// What the sealed text is for, so that a text sealed for something else does not open.
const INFO: &[u8] = b"tokencache.dev/v1alpha1 result of a job";
/// Length of the sender's part of the key (RFC 9180 §7.1), which goes before the ciphertext.
const ENCAPSULATED: usize = 32;
/// Length of the ciphertext beyond that of the plaintext (§7.3).
const TAG: usize = 16;
/// A good compression: 0 is none, 10 the best.
const EFFORT: u8 = 9;

/// The key pair of one run. The private key is wiped when dropped.
pub(crate) struct KeyPair {
    public: HpkePublicKey,
    private: HpkePrivateKey,
}

/// Why something was not sealed or opened; without what it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// More than the text may hold.
    #[error(
        "the result has {length} bytes, {compressed} when compressed; a pod's termination message of {limit} bytes holds \
         at most {room} of these"
    )]
    TooLarge {
        /// Bytes of the result.
        length: usize,
        /// Bytes after compression.
        compressed: usize,
        /// Most bytes after compression.
        room: usize,
        /// Most bytes of the text.
        limit: usize,
    },
    /// No key, or no text of this kind.
    #[error("{0}")]
    Unusable(&'static str),
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.id())
    }
}

impl KeyPair {
    /// A new one.
    pub(crate) fn generate() -> Result<Self, SealError> {
        let (public, private) =
            SUITE.generate_key_pair().map_err(|_| SealError::Unusable("no key could be generated"))?;
        Ok(Self { public, private })
    }

    /// From the texts of both keys.
    pub(super) fn restore(public: &str, private: &str) -> Result<Self, SealError> {
        let decode = |text| BASE64.decode(text).map_err(|_| SealError::Unusable("a key is not base64"));
        Ok(Self { public: HpkePublicKey(decode(public)?), private: decode(private)?.into() })
    }

    /// The public key as text.
    pub(crate) fn public(&self) -> String {
        BASE64.encode(&self.public.0)
    }

    /// The private key as text.
    pub(super) fn private(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.private.secret_bytes()))
    }

    /// A short name of the key, different for each.
    pub(crate) fn id(&self) -> String {
        Sha256::digest(&self.public.0).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Opens what was sealed to this key.
    pub(crate) fn open(&self, text: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let foreign = SealError::Unusable("is not sealed to the key of this run");
        let Ok(bytes) = BASE64.decode(text) else { return Err(foreign) };
        let Some((encapsulated, sealed)) = bytes.split_at_checked(ENCAPSULATED) else { return Err(foreign) };
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let Ok(compressed) = SUITE.open(&encapsulated, INFO, &[], sealed, &self.private) else { return Err(foreign) };
        let compressed = Zeroizing::new(compressed);
        decompress_to_vec_with_limit(&compressed, MAX_RESULT)
            .map(Zeroizing::new)
            .map_err(|_| SealError::Unusable("cannot be decompressed"))
    }
}

/// Seals to a public key, as a text of at most `limit` bytes.
pub(crate) fn seal(result: &[u8], public: &str, limit: usize) -> Result<String, SealError> {
    let key = BASE64.decode(public).map_err(|_| SealError::Unusable("the public key is not base64"))?;
    let compressed = Zeroizing::new(compress_to_vec(result, EFFORT));
    let room = (limit * 3 / 4).saturating_sub(ENCAPSULATED + TAG);
    if compressed.len() > room {
        return Err(SealError::TooLarge { length: result.len(), compressed: compressed.len(), room, limit });
    }
    let (encapsulated, sealed) = SUITE
        .seal(INFO, &[], &compressed, &HpkePublicKey(key))
        .map_err(|_| SealError::Unusable("the public key cannot be used"))?;
    Ok(BASE64.encode([encapsulated.0, sealed].concat()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_no_other() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert_ne!(key.id(), other.id());
        let sealed = seal(b"hunter2", &key.public(), 4096).unwrap();
        assert_eq!(key.open(&sealed).unwrap().as_slice(), b"hunter2");
        assert!(other.open(&sealed).is_err());
        assert_ne!(sealed, seal(b"hunter2", &key.public(), 4096).unwrap(), "each sealing has a secret of its own");
        assert!(!format!("{key:?}").contains(&BASE64.encode(key.private.secret_bytes())));
    }

    #[test]
    fn a_text_that_was_changed_does_not_open() {
        let key = KeyPair::generate().unwrap();
        let sealed = seal(b"hunter2", &key.public(), 4096).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character may hold bits that stand for nothing; those the decoder refuses.
            assert!(key.open(&changed).is_err(), "{at}");
        }
        for text in ["", "A", "%", &sealed[..40]] {
            assert!(key.open(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_numbers() {
        let key = KeyPair::generate().unwrap();
        let noise: Vec<u8> = (0..5000).map(|_| rand::random()).collect();
        let error = seal(&noise, &key.public(), 4096).unwrap_err().to_string();
        assert!(error.contains("has 5000 bytes") && error.contains("4096") && error.contains("3024"), "{error}");
        let sealed = seal(&"a".repeat(100_000).into_bytes(), &key.public(), 4096).unwrap();
        assert_eq!(key.open(&sealed).unwrap().len(), 100_000, "what compresses well may be long");
        assert!(seal(b"x", "no key", 4096).is_err());
    }

    proptest! {
        #[test]
        fn every_result_that_fits_comes_back_within_the_limit(result: Vec<u8>, limit in 0_usize..300) {
            let key = KeyPair::generate().unwrap();
            match seal(&result, &key.public(), limit) {
                Ok(sealed) => {
                    prop_assert!(sealed.len() <= limit);
                    let opened = key.open(&sealed).unwrap();
                    prop_assert_eq!(opened.as_slice(), result.as_slice());
                }
                Err(error) => {
                    let too_large = matches!(error, SealError::TooLarge { .. });
                    prop_assert!(too_large, "{}", error);
                }
            }
        }
    }
}
