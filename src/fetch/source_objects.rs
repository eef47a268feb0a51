//! Reading the Secrets and ConfigMaps that a source refers to: live, in the TokenCache's namespace, and Secrets only
//! where their owner opened them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    str,
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Resource};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Failure, Phase, Reference, ReferenceKind, consent,
    hosts::Server,
    memory::SMALL,
    token_request::{Issued, TokenLimits, TokenRequest},
};
use crate::{
    api::{
        names::ANNOTATION_HOSTS,
        oauth2::{CaKind, CaRef, SecretKeyRef},
        reason::Reason,
    },
    k8s::secret::{SealedSecret, SecretBytes},
};

/// What one attempt reads. Each object is read once, so that an id and a secret of one Secret belong together even
/// while somebody changes it.
pub(super) struct Sources {
    settings: Settings,
    read: BTreeMap<Reference, Opened>,
    /// Bytes of what was read.
    size: usize,
}

/// From where is read, and under which conditions.
pub(super) struct Settings {
    pub(super) client: kube::Client,
    pub(super) namespace: String,
    pub(super) require_label: bool,
    pub(super) tokens: TokenLimits,
    pub(super) phase: Phase,
    /// The server that the request goes to, and the proxy, if there is one.
    pub(super) goes_to: [Option<Server>; 2],
}

/// Most bytes of the Secrets and ConfigMaps that one spec refers to.
const MAX_READ: usize = 2 << 20;

/// An object that may be used.
pub(super) struct Opened {
    /// `Secret b/s`.
    title: String,
    metadata: ObjectMeta,
    data: BTreeMap<String, SecretBytes>,
}

impl Sources {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, read: BTreeMap::new(), size: 0 }
    }

    /// Whether only what its owner opened may be used.
    pub(super) fn requires_label(&self) -> bool {
        self.settings.require_label
    }

    /// Text of a Secret's key, exactly as it is stored, and never empty.
    pub(super) async fn text(&mut self, key: &SecretKeyRef) -> Result<SecretString, Failure> {
        self.secret(&key.name).await?.text(&key.key)
    }

    /// A whole Secret, for a request to the server. What is sent passes through the proxy, which the spec chooses, and with
    /// it the certificates by which the server behind it is verified.
    pub(super) async fn secret(&mut self, name: &str) -> Result<&Opened, Failure> {
        let goes_to = self.settings.goes_to.clone();
        let secret = self.open(ReferenceKind::Secret, name).await?;
        goes_to.iter().flatten().try_for_each(|server| secret.check_host(server))?;
        Ok(secret)
    }

    /// A whole Secret that only the proxy gets.
    pub(super) async fn secret_of_proxy(&mut self, name: &str) -> Result<&Opened, Failure> {
        let [_, proxy] = self.settings.goes_to.clone();
        let secret = self.open(ReferenceKind::Secret, name).await?;
        proxy.iter().try_for_each(|proxy| secret.check_host(proxy))?;
        Ok(secret)
    }

    /// Certificates in PEM; the title is for messages.
    pub(super) async fn certificates(&mut self, ca: &CaRef) -> Result<(Vec<u8>, String), Failure> {
        let kind = match ca.kind {
            CaKind::Secret => ReferenceKind::Secret,
            CaKind::ConfigMap => ReferenceKind::ConfigMap,
        };
        let object = match kind {
            ReferenceKind::Secret => self.secret(&ca.name).await?,
            _ => self.open(kind, &ca.name).await?,
        };
        Ok((object.bytes(&ca.key)?.expose_secret().to_vec(), format!("{}, key {}", object.title, ca.key)))
    }

    async fn open(&mut self, kind: ReferenceKind, name: &str) -> Result<&Opened, Failure> {
        match self.read.entry(Reference { kind, name: name.to_owned() }) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                self.settings
                    .phase
                    .set(format!("reading {kind} {}/{name} from the Kubernetes API server", self.settings.namespace));
                let opened = match kind {
                    ReferenceKind::Secret => {
                        let secret =
                            get::<SealedSecret>(&self.settings.client, kind, &self.settings.namespace, name).await?;
                        open_secret(secret, &self.settings.namespace, name, self.settings.require_label)?
                    }
                    ReferenceKind::ConfigMap => {
                        let map = get::<ConfigMap>(&self.settings.client, kind, &self.settings.namespace, name).await?;
                        open_config_map(map, &self.settings.namespace, name)
                    }
                    ReferenceKind::ServiceAccount => {
                        let account =
                            get::<ServiceAccount>(&self.settings.client, kind, &self.settings.namespace, name).await?;
                        open_service_account(account, &self.settings.namespace, name, self.settings.require_label)?
                    }
                };
                let opened = entry.insert(opened);
                self.size += opened.size();
                if self.size > MAX_READ {
                    let message =
                        format!("{} and what else is read are larger than {MAX_READ} bytes together", opened.title);
                    return Err(Failure::new(Reason::InvalidSpec, message));
                }
                if self.size > SMALL {
                    self.settings.phase.need_memory(&opened.title).await;
                }
                Ok(opened)
            }
        }
    }

    /// Has a token issued by the API server, for an account whose owner opened it.
    pub(super) async fn service_account_token(&mut self, wanted: &TokenRequest<'_>) -> Result<Issued, Failure> {
        let (namespace, require_label) = (self.settings.namespace.clone(), self.settings.require_label);
        let opened = self.open(ReferenceKind::ServiceAccount, wanted.account).await?;
        if require_label {
            consent::check_audiences(&namespace, wanted.account, &opened.metadata, wanted.audiences)?;
        }
        let account = format!("{}/{}", self.settings.namespace, wanted.account);
        self.settings
            .phase
            .set(format!("requesting a token of ServiceAccount {account} from the Kubernetes API server"));
        wanted.send(&self.settings.client, &self.settings.namespace, &self.settings.tokens).await
    }
}

async fn get<K>(client: &kube::Client, kind: ReferenceKind, namespace: &str, name: &str) -> Result<K, Failure>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    Api::<K>::namespaced(client.clone(), namespace)
        .get(name)
        .await
        .map_err(|error| refused(&error, kind, namespace, name))
}

/// What an answer of the API server means. Only its own status is told: other errors could quote what they met.
fn refused(error: &kube::Error, kind: ReferenceKind, namespace: &str, name: &str) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            let message =
                format!("{kind} {namespace}/{name} does not exist, and only the TokenCache's own namespace is read");
            Failure::new(Reason::SourceNotFound, message)
        }
        kube::Error::Api(status) if status.code == 403 => Failure::new(
            Reason::SourceNotAllowed,
            format!(
                "tokencache may not read {kind} {namespace}/{name}: its own role lacks get on {} in namespace {namespace}",
                kind.plural()
            ),
        ),
        kube::Error::Api(status) => Failure::new(
            Reason::Unreachable,
            format!(
                "the Kubernetes API server: {} {} when reading {kind} {namespace}/{name}",
                status.code, status.reason
            ),
        ),
        _ => Failure::new(
            Reason::Unreachable,
            format!("the Kubernetes API server: no usable answer when reading {kind} {namespace}/{name}"),
        ),
    }
}

/// Takes a Secret's data, unless its owner has not opened it.
fn open_secret(secret: SealedSecret, namespace: &str, name: &str, require_label: bool) -> Result<Opened, Failure> {
    if require_label {
        consent::check_label(ReferenceKind::Secret, namespace, name, &secret.metadata)?;
    }
    Ok(Opened { title: format!("Secret {namespace}/{name}"), metadata: secret.metadata, data: secret.data })
}

/// An account has no data of its own; it is opened all the same, since a token of it is as good as a secret.
fn open_service_account(
    account: ServiceAccount,
    namespace: &str,
    name: &str,
    require_label: bool,
) -> Result<Opened, Failure> {
    if require_label {
        consent::check_label(ReferenceKind::ServiceAccount, namespace, name, &account.metadata)?;
    }
    let title = format!("ServiceAccount {namespace}/{name}");
    Ok(Opened { title, metadata: account.metadata, data: BTreeMap::new() })
}

/// The hosts to which a Secret's owner lets its contents be sent; all, where that is nothing.
pub(super) fn hosts(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(ANNOTATION_HOSTS).map(String::as_str)
}

fn open_config_map(map: ConfigMap, namespace: &str, name: &str) -> Opened {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes().into()));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0.into()));
    Opened {
        title: format!("ConfigMap {namespace}/{name}"),
        metadata: map.metadata,
        data: text.chain(binary).collect(),
    }
}

/// A credential without the line breaks at its end.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

impl Opened {
    /// The object's kind, namespace and name.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// Whether its contents may be sent there.
    fn check_host(&self, server: &Server) -> Result<(), Failure> {
        if hosts(&self.metadata).is_none_or(|hosts| server.is_permitted(hosts)) {
            return Ok(());
        }
        let message = format!(
            "{} may not be used for requests to {server}: its annotation {ANNOTATION_HOSTS} does not list that host. To \
             allow it, the owner of the Secret adds it to the annotation",
            self.title
        );
        Err(Failure::new(Reason::SourceNotAllowed, message))
    }

    fn size(&self) -> usize {
        self.data.iter().map(|(key, value)| key.len() + value.expose_secret().len()).sum()
    }

    /// The value of a key.
    pub(super) fn bytes(&self, key: &str) -> Result<&SecretBytes, Failure> {
        self.data.get(key).ok_or_else(|| {
            let keys = self.data.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let keys = match keys.as_str() {
                // Whoever writes a TokenCache may not be allowed to read it.
                _ if !consent::is_labelled(&self.metadata) => String::new(),
                "" => ": it has none".to_owned(),
                keys => format!(": its keys are {keys}"),
            };
            Failure::new(Reason::SourceNotFound, format!("{} has no key {key}{keys}", self.title))
        })
    }

    /// The value of a key that is an identifier, a password or a token, without line breaks at its end: `echo` and
    /// editors add them, and no such value has one (RFC 6749 appendix A, RFC 7617 §2).
    pub(super) fn credential(&self, key: &str) -> Result<SecretString, Failure> {
        let text = self.text(key)?;
        match trimmed(text.expose_secret()) {
            "" => Err(self.unusable(key, "is an empty line")),
            credential => Ok(credential.into()),
        }
    }

    /// The value of a key, where text is wanted.
    pub(super) fn text(&self, key: &str) -> Result<SecretString, Failure> {
        let value = self.bytes(key)?.expose_secret();
        match str::from_utf8(value) {
            Ok("") => Err(self.unusable(key, "is empty")),
            Ok(text) => Ok(text.into()),
            Err(_) => Err(self.unusable(key, "is not text in UTF-8")),
        }
    }

    /// A key whose value cannot be used. Trying again is in vain until someone edits the object.
    pub(super) fn unusable(&self, key: &str, what: &str) -> Failure {
        Failure::new(Reason::InvalidSpec, format!("{}, key {key}: the value {what}", self.title))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use kube::core::Status;
    use serde_json::json;

    use super::*;

    fn secret(labels: serde_json::Value) -> SealedSecret {
        let mut secret: SealedSecret = serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap();
        let data =
            [("id", &b"me"[..]), ("empty", b""), ("binary", b"\xff\xfe"), ("newline", b"hunter2\n"), ("line", b"\r\n")];
        secret.data = data.map(|(key, value)| (key.to_owned(), value.to_vec().into())).into();
        secret
    }

    #[test]
    fn a_secret_is_used_only_when_its_owner_opened_it() {
        for (labels, require, open) in [
            (json!({"tokencache.dev/source": "true"}), true, true),
            (json!({"tokencache.dev/source": "false"}), true, false),
            (json!({"tokencache.dev/source": "True"}), true, false),
            (json!({"tokencache.dev/managed": "true"}), true, false),
            (json!({}), true, false),
            (json!(null), true, false),
            (json!(null), false, true),
        ] {
            let opened = open_secret(secret(labels.clone()), "b", "s", require);
            assert_eq!(opened.is_ok(), open, "{labels} {require}");
            if let Err(failure) = opened {
                assert_eq!(failure.reason, Reason::SourceNotAllowed);
                let command = "kubectl label secret s -n b --overwrite tokencache.dev/source=true";
                assert!(failure.message.contains(command), "{failure}");
                assert!(!failure.message.contains("newline"), "no key of a closed Secret is told: {failure}");
            }
        }
    }

    #[test]
    fn a_key_is_found_or_told_by_name_and_its_value_never_is() {
        let labels = json!({"tokencache.dev/source": "true"});
        let opened = open_secret(secret(labels), "b", "s", true).map_err(|failure| failure.to_string()).unwrap();
        assert_eq!(opened.text("id").unwrap().expose_secret(), "me");
        assert_eq!(opened.text("newline").unwrap().expose_secret(), "hunter2\n");
        assert_eq!(opened.credential("newline").unwrap().expose_secret(), "hunter2");
        let failure = opened.credential("line").map(|_| ()).unwrap_err();
        assert_eq!(failure.message, "Secret b/s, key line: the value is an empty line");
        for (key, reason, wanted) in [
            (
                "missing",
                Reason::SourceNotFound,
                "Secret b/s has no key missing: its keys are binary, empty, id, line, newline",
            ),
            ("empty", Reason::InvalidSpec, "Secret b/s, key empty: the value is empty"),
            ("binary", Reason::InvalidSpec, "Secret b/s, key binary: the value is not text in UTF-8"),
        ] {
            let failure = opened.text(key).map(|_| ()).expect_err(key);
            assert_eq!((failure.reason, failure.message.as_str()), (reason, wanted));
        }
    }

    #[test]
    fn the_keys_of_an_object_without_the_label_are_not_listed() {
        let opened = open_secret(secret(json!(null)), "b", "s", false).map_err(|failure| failure.to_string()).unwrap();
        assert_eq!(opened.text("missing").unwrap_err().message, "Secret b/s has no key missing");
        for (labels, wanted) in [
            (json!({}), "ConfigMap b/m has no key b"),
            (json!({"tokencache.dev/source": "true"}), "ConfigMap b/m has no key b: its keys are a"),
        ] {
            let map = serde_json::from_value(json!({"metadata": {"labels": labels}, "data": {"a": "x"}})).unwrap();
            let failure = open_config_map(map, "b", "m").bytes("b").map(|_| ()).unwrap_err();
            assert_eq!(failure.message, wanted);
        }
    }

    #[test]
    fn a_value_that_is_null_is_an_empty_one() {
        let secret = serde_json::from_value(json!({"metadata": {}, "data": {"key": null}})).unwrap();
        let opened = open_secret(secret, "b", "s", false).map_err(|failure| failure.to_string()).unwrap();
        assert!(opened.text("key").unwrap_err().message.ends_with("the value is empty"));
    }

    #[test]
    fn a_config_map_gives_text_and_binary_data() {
        let map = serde_json::from_value(json!({"data": {"a": "x"}, "binaryData": {"b": "eQ=="}})).unwrap();
        let opened = open_config_map(map, "b", "m");
        assert_eq!(opened.bytes("a").unwrap().expose_secret(), b"x");
        assert_eq!(opened.bytes("b").unwrap().expose_secret(), b"y");
        let empty = open_config_map(ConfigMap::default(), "b", "m").bytes("a").map(|_| ()).unwrap_err();
        assert_eq!(empty.message, "ConfigMap b/m has no key a");
    }

    #[test]
    fn an_answer_of_the_api_server_is_told_by_what_it_means_and_not_by_its_words() {
        for (code, reason, wanted) in [
            (404, Reason::SourceNotFound, "Secret b/s does not exist"),
            (403, Reason::SourceNotAllowed, "lacks get on secrets in namespace b"),
            (500, Reason::Unreachable, "the Kubernetes API server: 500"),
            (429, Reason::Unreachable, "the Kubernetes API server: 429"),
        ] {
            let error = kube::Error::Api(Status::failure("hunter2", "Why").with_code(code).boxed());
            let failure = refused(&error, ReferenceKind::Secret, "b", "s");
            assert_eq!(failure.reason, reason);
            assert!(failure.message.contains(wanted) && !failure.message.contains("hunter2"), "{failure}");
        }
        let failure = refused(&kube::Error::TlsRequired, ReferenceKind::ConfigMap, "b", "m");
        assert_eq!(failure.reason, Reason::Unreachable);
    }
}
