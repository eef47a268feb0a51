//! Secrets as they are read and written: k8s-openapi's type prints its data; these do not, and wipe it when dropped.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::{
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
};
use kube::Resource;
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use crate::k8s::metadata;

/// One value of a Secret: does not print, and is wiped when dropped.
pub struct SecretBytes(SecretSlice<u8>);

impl SecretBytes {
    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl ExposeSecret<[u8]> for SecretBytes {
    fn expose_secret(&self) -> &[u8] {
        self.expose()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl Clone for SecretBytes {
    fn clone(&self) -> Self {
        Self(self.0.expose_secret().to_vec().into())
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.0.expose_secret())))
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // `null` is an empty value, as in k8s-openapi's `ByteString`.
        let text = Zeroizing::new(Option::<String>::deserialize(deserializer)?.unwrap_or_default());
        let bytes = STANDARD.decode(text.as_bytes()).map_err(|_| D::Error::custom("a value is not base64"))?;
        Ok(Self(bytes.into()))
    }
}

/// A Secret as it is read to see which of its fields were written by whom.
#[derive(Clone, Debug, Resource, Deserialize)]
#[resource(inherit = Secret)]
pub struct SecretWithManagers {
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, SecretBytes>,
}

impl SecretWithManagers {
    /// The Secret, and its `managedFields`.
    #[must_use]
    pub fn split(self) -> (SealedSecret, Vec<ManagedFieldsEntry>) {
        let Self { mut metadata, data } = self;
        let managers = metadata.managed_fields.take().unwrap_or_default();
        (SealedSecret { metadata, type_: None, immutable: None, data }, managers)
    }
}

/// A Secret as it is written and read.
#[derive(Clone, Debug, Resource, Serialize, Deserialize)]
#[resource(inherit = Secret)]
pub struct SealedSecret {
    /// Metadata; of what is read without `managedFields`.
    #[serde(deserialize_with = "metadata::metadata")]
    pub metadata: ObjectMeta,
    /// `type`, immutable once written.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Whether Kubernetes refuses changes of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
    /// The values.
    #[serde(default)]
    pub data: BTreeMap<String, SecretBytes>,
}
