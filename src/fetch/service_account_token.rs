//! The source `serviceAccountToken`: the API server itself is the token server.

use super::{
    Attempt, Failure, Obtained, Reference,
    json::{Member, Members},
    token_request::TokenRequest,
};
use crate::{api::service_account_token::ServiceAccountToken, time};

/// Has a token issued.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, source: &ServiceAccountToken) -> Result<Obtained, Failure> {
    let ServiceAccountToken { service_account_name: account, audiences, expiration } = source;
    let sent = attempt.clock.now();
    let wanted = TokenRequest { account, audiences, expiration: *expiration };
    let issued = attempt.sources.service_account_token(&wanted).await?;
    let expires_at = Member::Text(time::rfc3339(issued.expires_at).into());
    Ok(Obtained {
        token: Some(issued.token),
        members: [("expires_at".to_owned(), expires_at)].into(),
        values: Some(Members::new()),
        sent,
        from: format!("ServiceAccount {account}"),
    })
}

/// The object that it reads.
pub(super) fn references(source: &ServiceAccountToken) -> impl Iterator<Item = Reference> {
    [Reference::service_account(&source.service_account_name)].into_iter()
}
