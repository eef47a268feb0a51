//! What `target.data` says the Secret holds: CEL over a fetched value.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;

use super::{
    Failure, Fetched,
    cel::{self, MAX_OUTPUT, Place, Scope, Value},
};
use crate::{
    api::{ExpiresAt, Invalid, Target, reason::Reason},
    k8s::secret::SecretBytes,
};

/// Whether `target.data` has only expressions that compile and use only what there is.
///
/// # Errors
/// The first that does not, at its field.
pub(super) fn check(namespace: &str, data: &BTreeMap<String, String>) -> Result<(), Invalid> {
    let expressions: Vec<_> = data.iter().map(|(key, text)| (field(key), text.as_str())).collect();
    cel::check(namespace, Place::Data, &expressions)
}

fn field(key: &str) -> String {
    format!("spec.target.data[{key}]")
}

/// `target.data` over a fetched value, in turn with the expressions of other runs.
///
/// # Errors
/// `InvalidSpec` for an expression that never works, `InvalidResponse` for one that does not work on this value,
/// `ResponseTooLarge` for more than a Secret can hold. No message holds a value.
pub async fn render_in_turn(
    target: &Target,
    fetched: &Fetched,
    name: &str,
    namespace: &str,
) -> Result<BTreeMap<String, SecretBytes>, Failure> {
    let _turn = if target.data.is_empty() { None } else { Some(cel::computing(namespace).await) };
    render(target, fetched, name, namespace)
}

fn render(
    target: &Target,
    fetched: &Fetched,
    name: &str,
    namespace: &str,
) -> Result<BTreeMap<String, SecretBytes>, Failure> {
    let mut data = BTreeMap::new();
    let mut expressions = target.data();
    if let Some(token) = &fetched.token {
        // As by default. What passes through CEL is not wiped.
        expressions.retain(|key, text| {
            let other = text != "token";
            if !other {
                data.insert(key.clone(), SecretBytes::from(token.expose_secret().as_bytes().to_vec()));
            }
            other
        });
    }
    if !expressions.is_empty() {
        let texts: Vec<_> = expressions.iter().map(|(key, text)| (field(key), text.as_str())).collect();
        // An expression may compute for a while.
        let given = tokio::task::block_in_place(|| scope(fetched, name, namespace).evaluate(&texts))?;
        for (key, value) in expressions.keys().zip(given) {
            let bytes = value.into_bytes().map_err(|other| {
                let message = format!("{}: gives {}, not a string or bytes", field(key), cel::type_name(&other.0));
                Failure::new(Reason::InvalidResponse, message)
            })?;
            data.insert(key.clone(), bytes.into());
        }
    }
    if data.values().map(|value| value.expose_secret().len()).sum::<usize>() > MAX_OUTPUT {
        let message = format!("spec.target.data gives more than {MAX_OUTPUT} bytes, which a Secret cannot hold");
        return Err(Failure::new(Reason::ResponseTooLarge, message));
    }
    Ok(data)
}

fn scope(fetched: &Fetched, name: &str, namespace: &str) -> Scope {
    let values = fetched.values.iter().map(|(name, value)| (name.as_str(), cel::text(value.expose_secret())));
    let expires_at = match fetched.expires_at {
        ExpiresAt::At(moment) => Value::Timestamp(crate::time::floor(moment).fixed_offset()),
        ExpiresAt::Never => Value::Null,
    };
    let scope = Scope::new(namespace, Place::Data)
        .with("values", cel::map(values))
        .with("expiresAt", expires_at)
        .with("metadata", cel::map([("name", cel::text(name)), ("namespace", cel::text(namespace))]));
    match &fetched.token {
        Some(token) => scope.with("token", cel::text(token.expose_secret())),
        None => {
            let names = fetched.values.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            scope.noting("token", format!("this source gives no token; values has {names}"))
        }
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
