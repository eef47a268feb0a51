//! What one run leaves for the next: the Secret `tokencache-NAME-state`.
//!
//! Its only key bears the name of the run that wrote it, and the next pod mounts that very key: a kubelet whose cache
//! is behind waits for it, where under a fixed name it would hand out an older state, such as a refresh token that is
//! void by now.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep};

use crate::{
    api::names::{FIELD_MANAGER, LABEL_MANAGED},
    fetch::Failure,
    lock::Owner,
    observe::{ApiError, limited},
    reason::Reason,
    sealed::SealedSecret,
};

/// How long a state is tried to be written.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// The state's Secret, as it was before the run.
#[derive(Debug)]
pub(super) struct Kept {
    metadata: ObjectMeta,
    /// The key that holds the state.
    pub(super) key: Option<String>,
}

/// Name of the Secret.
pub(super) fn secret_name(owner: &Owner) -> String {
    format!("{}-state", owner.lease_name())
}

/// Looks which state there is, without keeping it.
pub(super) async fn look(client: &Client, owner: &Owner) -> Result<Option<Kept>, Failure> {
    let name = secret_name(owner);
    let api = Api::<SealedSecret>::namespaced(client.clone(), &owner.namespace);
    let found = limited(api.get_opt(&name)).await.map_err(|error| {
        let message = format!("the state of the last run, Secret {}/{name}, cannot be read: {error}", owner.namespace);
        Failure::new(Reason::Unreachable, message)
    })?;
    let Some(found) = found else { return Ok(None) };
    let owned = found.metadata.owner_references.iter().flatten().any(|reference| reference.uid == owner.uid);
    if !owned {
        let message = format!(
            "Secret {}/{name}, which is to hold the job's state, does not belong to this TokenCache: delete it, or \
             rename the TokenCache",
            owner.namespace
        );
        return Err(Failure::new(Reason::JobFailed, message));
    }
    let key = found.data.keys().next().cloned();
    Ok(Some(Kept { metadata: found.metadata, key }))
}

/// Writes the state of a run over the one that was found before it. Tries for a while: the state may be a refresh
/// token that is worth more than the value.
pub(super) async fn write(
    client: Client,
    owner: Owner,
    found: Option<Kept>,
    run: String,
    state: SecretString,
) -> Result<(), Failure> {
    let name = secret_name(&owner);
    let mut metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(owner.namespace.clone()),
        labels: Some(BTreeMap::from([(LABEL_MANAGED.to_owned(), "true".to_owned())])),
        owner_references: Some(vec![owner.reference()]),
        ..ObjectMeta::default()
    };
    let exists = found.is_some();
    if let Some(Kept { metadata: found, .. }) = found {
        metadata = found;
        metadata.labels.get_or_insert_default().insert(LABEL_MANAGED.to_owned(), "true".to_owned());
    }
    let data = BTreeMap::from([(format!("state-{run}"), state.expose_secret().as_bytes().to_vec().into())]);
    let secret = SealedSecret { metadata, type_: Some("Opaque".into()), immutable: None, data };
    let api = Api::<SealedSecret>::namespaced(client, &owner.namespace);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let since = Instant::now();
    loop {
        let written = if exists {
            limited(api.replace(&name, &params, &secret)).await
        } else {
            limited(api.create(&params, &secret)).await
        };
        match written {
            Ok(_) => return Ok(()),
            Err(error) if error.is_of_server() && since.elapsed() < PATIENCE => sleep(PAUSE).await,
            Err(error) => return Err(not_written(&owner, &name, &error)),
        }
    }
}

fn not_written(owner: &Owner, name: &str, error: &ApiError) -> Failure {
    let message = match error.code() {
        // An answer that did not come may have been a success, but then the next run finds the state.
        Some(404 | 409) => format!(
            "the job's state was not kept, and its value not used, since another hand wrote to Secret {}/{name} \
             during the run",
            owner.namespace
        ),
        _ => format!("the job's state was not kept in Secret {}/{name}: {error}", owner.namespace),
    };
    Failure::new(Reason::WriteFailed, message)
}
