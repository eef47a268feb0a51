//! When a fetched value expires. Pure: the times are arguments.

mod read;

use chrono::{DateTime, Utc};

pub(super) use self::read::point;
use self::read::{Exp, Lifetime, exp, lifetime};
use super::{Failure, json::Member};
use crate::{
    api::{Duration, ExpiresAt, Expiry, reason::Reason},
    time,
};

/// What a result says of its own expiry.
#[derive(Default)]
pub(super) struct Stated<'a> {
    /// Seconds, counted from before the request was sent.
    pub(super) expires_in: Option<&'a Member>,
    /// A date or a Unix time, see [`point`].
    pub(super) expires_at: Option<&'a Member>,
    /// A token, which may be a JWT.
    pub(super) token: Option<&'a str>,
}

/// The end of the years that RFC 3339 can write.
const END: i64 = 253_402_300_799;

/// What a result's statements come to.
enum Said {
    /// A lifetime, counted from the request.
    Lifetime(DateTime<Utc>),
    /// A point in time.
    Point(DateTime<Utc>),
    /// More than a token lives: what is wrong with it.
    Implausible(&'static str),
    /// Nothing, and what there was instead.
    Nothing(Vec<&'static str>),
}

/// When a value expires that was asked for at `sent` and is looked at `now`.
///
/// # Errors
/// `InvalidResponse` when the result's own word cannot be read, `NoExpiry` when nothing says it, `NearlyExpired` when
/// too little is left.
pub(super) fn decide(
    stated: &Stated<'_>,
    expiry: &Expiry,
    min_remaining: Option<Duration>,
    sent: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<ExpiresAt, Failure> {
    if expiry.never {
        return Ok(ExpiresAt::Never);
    }
    let oldest = expiry.max_age.map(|age| time::later(sent, age.as_chrono()));
    let said = stated.said(sent)?;
    let moment = match &said {
        Said::Lifetime(moment) | Said::Point(moment) => *moment,
        Said::Implausible(what) => oldest.ok_or_else(|| {
            invalid(format!(
                "expires_in of the result {what}. Set spec.expiry.maxAge to refresh the value by its age, or \
                 spec.expiry.never: true if it does not expire"
            ))
        })?,
        Said::Nothing(instead) => match expiry.ttl {
            Some(ttl) => time::later(sent, ttl.as_chrono()),
            None => return Err(no_expiry(instead)),
        },
    };
    let moment = oldest.map_or(moment, |oldest| moment.min(oldest));
    let moment = moment.min(DateTime::from_timestamp(END, 0).unwrap_or(moment));
    enough_left(moment, matches!(said, Said::Lifetime(_)), min_remaining, sent, now)?;
    Ok(ExpiresAt::At(moment))
}

fn no_expiry(instead: &[&str]) -> Failure {
    let what = match instead {
        [] => "no expires_in, no expires_at, and the token is not a JWT with exp".to_owned(),
        instead => instead.join(", and "),
    };
    let message = format!(
        "The result has no expiry: {what}. Set spec.expiry.ttl to the lifetime of the value, or spec.expiry.never: true \
         if it does not expire"
    );
    Failure::new(Reason::NoExpiry, message)
}

fn enough_left(
    moment: DateTime<Utc>,
    by_lifetime: bool,
    wanted: Option<Duration>,
    sent: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    if moment <= now {
        let message = if by_lifetime && moment <= sent {
            "expires_in of the result is 0, so the value has expired already. Set spec.expiry.never: true if the server \
             means that the value does not expire"
                .to_owned()
        } else if by_lifetime {
            let lifetime = Duration::from_secs(time::until(moment, sent).as_secs());
            format!("expires_in of the result is {lifetime}, and the response took longer than that")
        } else {
            format!(
                "The fetched value expired at {}, and it is {} now. Check the clocks of the server and of this cluster. \
                 Set spec.expiry.never: true if the server means that the value does not expire",
                time::rfc3339(moment),
                time::rfc3339(now)
            )
        };
        return Err(Failure::new(Reason::NearlyExpired, message));
    }
    let left = time::until(moment, now);
    match wanted {
        Some(wanted) if left < wanted.as_std() => {
            let left = Duration::from_secs(left.as_secs());
            let message = format!("The fetched value is valid for {left}, and refresh.minRemaining requires {wanted}");
            Err(Failure::new(Reason::NearlyExpired, message))
        }
        _ => Ok(()),
    }
}

impl Stated<'_> {
    fn said(&self, sent: DateTime<Utc>) -> Result<Said, Failure> {
        let mut instead = Vec::new();
        if let Some(seconds) = self.expires_in.and_then(present) {
            match lifetime(seconds, sent) {
                Lifetime::For(lifetime) => return Ok(Said::Lifetime(time::later(sent, lifetime))),
                Lifetime::Implausible(what) => return Ok(Said::Implausible(what)),
                Lifetime::Unreadable(what) => {
                    return Err(invalid(format!("expires_in of the result {what}. {}", way_out("expires_in"))));
                }
                Lifetime::Unlimited => instead.push("expires_in is -1"),
            }
        }
        if let Some(moment) = self.expires_at.and_then(present) {
            return point(moment)
                .map(Said::Point)
                .map_err(|what| invalid(format!("expires_at of the result {what}. {}", way_out("expires_at"))));
        }
        match self.token.map_or(Exp::None, exp) {
            Exp::At(moment) => return Ok(Said::Point(moment)),
            Exp::Unreadable => instead.push("exp of the token is not a Unix time"),
            Exp::None => {}
        }
        Ok(Said::Nothing(instead))
    }
}

/// What to do about a member that the server writes in its own way.
fn way_out(member: &str) -> String {
    let read = match member {
        "expires_in" => "a number of seconds",
        _ => "RFC 3339, an HTTP date or a Unix time",
    };
    format!(
        "tokencache reads {read}. Use the source http, whose result.expiresAt can convert other forms, or set \
         spec.expiry.never: true if the value does not expire"
    )
}

fn invalid(message: String) -> Failure {
    Failure::new(Reason::InvalidResponse, message)
}

fn present(member: &Member) -> Option<&Member> {
    (!matches!(member, Member::Null)).then_some(member)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::fetch::json;

    fn at(text: &str) -> DateTime<Utc> {
        time::parse_rfc3339(text).unwrap()
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    const SENT: &str = "2026-01-02T03:00:00Z";

    /// Decides over a result in JSON, two seconds after it was asked for.
    fn decide_over(result: &str, expiry: &str, min_remaining: Option<&str>) -> Result<ExpiresAt, Failure> {
        let members = json::parse(result.as_bytes()).unwrap();
        let token = match members.get("access_token") {
            Some(Member::Text(token)) => Some(token.expose_secret()),
            _ => None,
        };
        let stated = Stated { expires_in: members.get("expires_in"), expires_at: members.get("expires_at"), token };
        let min_remaining = min_remaining.map(|text| text.parse().unwrap());
        let expiry = serde_json::from_str(expiry).unwrap();
        decide(&stated, &expiry, min_remaining, at(SENT), at("2026-01-02T03:00:02Z"))
    }

    #[test]
    fn the_expiry_is_the_first_that_is_named_and_counts_from_before_the_request() {
        let token = jwt(r#"{"exp":1767323400.9}"#);
        let with = |rest: &str| format!(r#"{{"access_token":"{token}"{rest}}}"#);
        for (result, expiry, expected) in [
            (r#"{"expires_in":3600}"#.to_owned(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_in":"3600"}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_in":" 3600 "}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_in":3600.5}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":"2026-01-02T06:00:00+02:00"}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":1767326400}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":"1767326400"}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":1767326400000}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":"1767326400000"}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (with(""), "{}", "2026-01-02T03:10:00Z"),
            (with(""), r#"{"ttl":"1h"}"#, "2026-01-02T03:10:00Z"),
            (with(r#","expires_in":60"#), "{}", "2026-01-02T03:01:00Z"),
            (with(r#","expires_at":"2026-01-02T03:02:00Z""#), "{}", "2026-01-02T03:02:00Z"),
            (with(r#","expires_in":60,"expires_at":"2026-01-02T03:02:00Z""#), "{}", "2026-01-02T03:01:00Z"),
            (with(r#","expires_in":null,"expires_at":null"#), "{}", "2026-01-02T03:10:00Z"),
            (r#"{"access_token":"opaque"}"#.into(), r#"{"ttl":"1h"}"#, "2026-01-02T04:00:00Z"),
            (r#"{"expires_in":3600}"#.into(), r#"{"maxAge":"10m"}"#, "2026-01-02T03:10:00Z"),
            (r#"{"expires_in":60}"#.into(), r#"{"maxAge":"10m"}"#, "2026-01-02T03:01:00Z"),
            (r#"{}"#.into(), r#"{"ttl":"1h","maxAge":"10m"}"#, "2026-01-02T03:10:00Z"),
            (r#"{"expires_in":18446744073709551615}"#.into(), r#"{"maxAge":"10m"}"#, "2026-01-02T03:10:00Z"),
            (r#"{"expires_in":1893456000}"#.into(), r#"{"maxAge":"10m"}"#, "2026-01-02T03:10:00Z"),
            (r#"{"expires_in":-1}"#.into(), r#"{"ttl":"1h"}"#, "2026-01-02T04:00:00Z"),
            (r#"{"expires_in":-1}"#.into(), r#"{"never":true}"#, "never"),
            (with(r#","expires_in":-1"#), r#"{"ttl":"1h"}"#, "2026-01-02T03:10:00Z"),
            (r#"{"expires_in":-1,"expires_at":1767326400}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":1767326400000000}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":1767326400000000000}"#.into(), "{}", "2026-01-02T04:00:00Z"),
            (r#"{"expires_at":"9999-12-31T23:59:59Z"}"#.into(), "{}", "9999-12-31T23:59:59Z"),
            (format!(r#"{{"access_token":"{}"}}"#, jwt(r#"{"exp":1767323400000}"#)), "{}", "2026-01-02T03:10:00Z"),
            (format!(r#"{{"access_token":"{}"}}"#, jwt(r#"{"exp":"1767323400"}"#)), "{}", "2026-01-02T03:10:00Z"),
            (format!(r#"{{"access_token":"{}"}}"#, jwt(r#"{"exp":true}"#)), r#"{"ttl":"1h"}"#, "2026-01-02T04:00:00Z"),
            (r#"{"expires_in":1e300}"#.into(), r#"{"maxAge":"10m"}"#, "2026-01-02T03:10:00Z"),
            (r#"{"expires_in":"nonsense"}"#.into(), r#"{"never":true}"#, "never"),
            (r#"{"expires_in":0}"#.into(), r#"{"never":true}"#, "never"),
        ] {
            let decided = decide_over(&result, expiry, None);
            assert_eq!(decided.map(|expiry| expiry.to_string()), Ok(expected.to_owned()), "{result} {expiry}");
        }
    }

    #[test]
    fn a_result_that_names_a_useless_expiry_is_told_apart_by_its_reason() {
        for (result, expiry, min_remaining, reason) in [
            (r#"{"expires_in":-5}"#, r#"{"ttl":"1h"}"#, None, Reason::InvalidResponse),
            (r#"{"expires_in":1e300}"#, r#"{"ttl":"1h"}"#, None, Reason::InvalidResponse),
            (r#"{"expires_in":1893456000}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_at":1e30}"#, r#"{"maxAge":"1h"}"#, None, Reason::InvalidResponse),
            (r#"{"expires_in":-1}"#, "{}", None, Reason::NoExpiry),
            (r#"{"expires_in":"soon"}"#, r#"{"ttl":"1h"}"#, None, Reason::InvalidResponse),
            (r#"{"expires_in":""}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_in":"inf"}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_in":"NaN"}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_in":true}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_in":[60]}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_at":"tomorrow"}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_at":-5}"#, "{}", None, Reason::InvalidResponse),
            (r#"{"expires_at":false}"#, "{}", None, Reason::InvalidResponse),
            (r#"{}"#, "{}", None, Reason::NoExpiry),
            (r#"{}"#, r#"{"maxAge":"1h"}"#, None, Reason::NoExpiry),
            (r#"{"expires_in":0}"#, "{}", None, Reason::NearlyExpired),
            (r#"{"expires_in":2}"#, "{}", None, Reason::NearlyExpired),
            (r#"{"expires_in":2}"#, "{}", Some("0s"), Reason::NearlyExpired),
            (r#"{"expires_at":0}"#, "{}", None, Reason::NearlyExpired),
            (r#"{"expires_in":61}"#, "{}", Some("1m"), Reason::NearlyExpired),
            (r#"{"expires_in":3600}"#, r#"{"maxAge":"30s"}"#, Some("1m"), Reason::NearlyExpired),
        ] {
            let failure = decide_over(result, expiry, min_remaining).expect_err(result);
            assert_eq!(failure.reason, reason, "{result}: {failure}");
        }
        assert!(decide_over(r#"{"expires_in":62}"#, "{}", Some("1m")).is_ok());
        let failure = decide_over(r#"{"expires_in":47}"#, "{}", Some("1m")).unwrap_err();
        assert!(failure.message.contains("is valid for 45s") && failure.message.contains("requires 1m"), "{failure}");
    }

    #[test]
    fn a_result_without_a_usable_expiry_is_told_with_the_setting_to_use() {
        let token = |claims: &str| format!(r#"{{"access_token":"{}"}}"#, jwt(claims));
        let [ttl, never] = ["spec.expiry.ttl", "spec.expiry.never: true"];
        for (result, words) in [
            ("{}".to_owned(), vec!["no expires_in", ttl, never]),
            (r#"{"expires_in":-1}"#.into(), vec!["expires_in is -1", ttl, never]),
            (token(r#"{"exp":"soon"}"#), vec!["exp of the token is not a Unix time", ttl, never]),
            (token(r#"{"exp":1e30}"#), vec!["exp of the token is not a Unix time", ttl, never]),
            (token(r#"{"exp":0}"#), vec!["expired at 1970-01-01T00:00:00Z", "clocks", never]),
            (r#"{"expires_in":0}"#.into(), vec!["expires_in of the result is 0", never]),
            (r#"{"expires_in":2}"#.into(), vec!["expires_in of the result is 2s", "took longer"]),
            (r#"{"expires_in":-5}"#.into(), vec!["expires_in of the result is negative", never]),
            (r#"{"expires_in":1e30}"#.into(), vec!["is longer than 100 years", "spec.expiry.maxAge", never]),
            (r#"{"expires_in":1893456000}"#.into(), vec!["is a Unix time and not a lifetime"]),
            (r#"{"expires_at":"2030-01-01 00:00:00.0"}"#.into(), vec!["has no time zone", "result.expiresAt", never]),
            (r#"{"expires_at":"soon"}"#.into(), vec!["is not a time", "RFC 3339", "result.expiresAt", never]),
        ] {
            let failure = decide_over(&result, "{}", None).expect_err(&result);
            for word in words {
                assert!(failure.message.contains(word), "{result}: {word:?} is not in: {failure}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_number_makes_it_panic_or_pass_the_end_of_rfc_3339(number: f64, text in "[-0-9.e]{0,30}") {
            for member in [
                serde_json::Number::from_f64(number).map_or(Member::Null, Member::Number),
                Member::Text(text.into()),
            ] {
                for stated in [
                    Stated { expires_in: Some(&member), ..Stated::default() },
                    Stated { expires_at: Some(&member), ..Stated::default() },
                ] {
                    if let Ok(ExpiresAt::At(moment)) = decide(&stated, &Expiry::default(), None, at(SENT), at(SENT)) {
                        prop_assert!(moment > at(SENT));
                        prop_assert_eq!(time::rfc3339(moment).len(), "2026-01-02T03:00:00Z".len());
                    }
                }
            }
        }

        #[test]
        fn max_age_is_never_passed(seconds in 1_u64..100_000, age in 1_u64..100_000) {
            let member = Member::Number(seconds.into());
            let expiry = Expiry { max_age: Some(Duration::from_secs(age)), ..Expiry::default() };
            let stated = Stated { expires_in: Some(&member), ..Stated::default() };
            let decided = decide(&stated, &expiry, None, at(SENT), at(SENT)).unwrap().moment().unwrap();
            prop_assert_eq!(decided, time::later(at(SENT), TimeDelta::seconds(seconds.min(age) as i64)));
        }
    }
}
