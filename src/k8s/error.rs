//! Why a call of the API server failed.

use kube::runtime::watcher;

use super::CALL_LIMIT;

/// Why a call to the Kubernetes API gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It was refused, or the connection failed.
    #[error("{}", message(.0))]
    Kube(#[from] kube::Error),
    /// No answer came in time.
    #[error("the API server did not answer within {} s", CALL_LIMIT.as_secs())]
    Timeout,
}

impl ApiError {
    /// The HTTP status, where the API server gave one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Whether it may pass by itself: the API server is at fault, or was not reached in time.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Kube(error) => is_retryable(error),
            Self::Timeout => true,
        }
    }
}

/// What to say of a call that failed: the API server's own sentence where there is one, without the debug text that kube
/// puts around it, else all causes, of which only the last may tell.
#[must_use]
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        // A parser may quote what it could not read.
        kube::Error::SerdeError(_) => "its answer cannot be read".to_owned(),
        kube::Error::Service(error) => causes(error.as_ref()),
        other => causes(other),
    }
}

/// The same of a watch that broke.
#[must_use]
pub fn watch_message(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => message(error),
        other => other.to_string(),
    }
}

/// Whether the API server is at fault, or was not reached or not understood; not where it refused what was asked.
#[must_use]
pub fn is_retryable(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 429 | 500..),
        _ => true,
    }
}

fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn the_api_servers_own_sentence_is_told_and_nothing_of_an_answer_that_cannot_be_read() {
        let refused = kube::Error::Api(Status::failure("not you", "Forbidden").with_code(403).boxed());
        assert_eq!(message(&refused), "not you (403)");
        let unread = serde_json::from_str::<u8>("\"hunter2\"").expect_err("no number");
        assert!(unread.to_string().contains("hunter2"));
        let unread = kube::Error::SerdeError(unread);
        assert_eq!(message(&unread), "its answer cannot be read");
        assert_eq!(watch_message(&watcher::Error::WatchFailed(unread)), "its answer cannot be read");
    }

    #[test]
    fn the_api_server_is_at_fault_unless_it_understood_and_refused() {
        let answered = |code| kube::Error::Api(Status::failure("no", "").with_code(code).boxed());
        for code in [429, 500, 503, 504] {
            assert!(is_retryable(&answered(code)), "{code}");
        }
        for code in [400, 401, 403, 404, 409, 422] {
            assert!(!is_retryable(&answered(code)), "{code}");
        }
        let unread = serde_json::from_str::<u8>("").expect_err("no number");
        assert!(is_retryable(&kube::Error::SerdeError(unread)));
    }
}
