//! Refresh tokens that are rotated (RFC 6749 §6), without detection of reuse.

use std::{collections::HashMap, time::Instant};

/// The refresh tokens of one cache.
#[derive(Clone, Default)]
pub struct Tokens {
    valid: Option<String>,
    /// When each was voided, until it is sent again.
    void: HashMap<String, Instant>,
    resent: Vec<(Instant, Instant)>,
}

impl Tokens {
    /// Another token, instead of the one that is valid.
    pub fn sign_in(&mut self) -> String {
        let token = format!("refresh-{:032x}", rand::random::<u128>());
        if let Some(old) = self.valid.replace(token.clone()) {
            self.void.insert(old, Instant::now());
        }
        token
    }

    /// The one that is valid.
    pub fn valid(&self) -> Option<&String> {
        self.valid.as_ref()
    }

    /// Voids a token that was sent, and gives the next one; nothing where it is not valid.
    pub fn redeem(&mut self, sent: &str) -> Option<String> {
        if self.valid.as_deref() == Some(sent) {
            return Some(self.sign_in());
        }
        self.resent.extend(self.void.remove(sent).map(|voided| (voided, Instant::now())));
        None
    }

    /// When each void token was sent first: since when it was void, and when it was sent.
    pub fn resent(&self) -> &[(Instant, Instant)] {
        &self.resent
    }
}
