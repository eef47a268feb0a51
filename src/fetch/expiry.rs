//! When a fetched value expires. Pure: the times are arguments.

use base64::{Engine as _, alphabet, engine::DecodePaddingMode, engine::GeneralPurpose, engine::GeneralPurposeConfig};
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::{
    Failure,
    json::{self, Member},
};
use crate::{
    api::{Duration, ExpiresAt, Expiry},
    reason::Reason,
    time,
};

/// What a result says of its own expiry.
#[derive(Default)]
pub(super) struct Stated<'a> {
    /// Seconds, counted from before the request was sent.
    pub(super) expires_in: Option<&'a Member>,
    /// RFC 3339, or Unix seconds or milliseconds.
    pub(super) expires_at: Option<&'a Member>,
    /// A token, which may be a JWT.
    pub(super) token: Option<&'a str>,
}

/// What is later is taken for this: the end of the years that RFC 3339 can write.
const END: i64 = 253_402_300_799;

/// Unix times above it are milliseconds: as seconds, it is the year 5138.
const MILLISECONDS_FROM: f64 = 1e11;

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
    let Some(moment) = stated.moment(sent)?.or_else(|| expiry.ttl.map(|ttl| time::later(sent, ttl.as_chrono()))) else {
        return Err(Failure::new(
            Reason::NoExpiry,
            "the result names no expiry (no expires_in, no expires_at, and the token is no JWT with exp): set spec.expiry.ttl",
        ));
    };
    let moment = expiry.max_age.map_or(moment, |age| moment.min(time::later(sent, age.as_chrono())));
    let moment = moment.min(DateTime::from_timestamp(END, 0).unwrap_or(moment));
    enough_left(moment, min_remaining, now)?;
    Ok(ExpiresAt::At(moment))
}

fn enough_left(moment: DateTime<Utc>, wanted: Option<Duration>, now: DateTime<Utc>) -> Result<(), Failure> {
    if moment <= now {
        let message = format!(
            "the value that was fetched expired already at {}; the clock here says {}: does one of the two go wrong?",
            time::rfc3339(moment),
            time::rfc3339(now)
        );
        return Err(Failure::new(Reason::NearlyExpired, message));
    }
    let left = time::until(moment, now);
    match wanted {
        Some(wanted) if left < wanted.as_std() => {
            let left = Duration::from_secs(left.as_secs());
            let message = format!("the value that was fetched has {left} left; refresh.minRemaining wants {wanted}");
            Err(Failure::new(Reason::NearlyExpired, message))
        }
        _ => Ok(()),
    }
}

impl Stated<'_> {
    fn moment(&self, sent: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Failure> {
        if let Some(seconds) = self.expires_in.and_then(present) {
            return lifetime(seconds)
                .map(|lifetime| Some(time::later(sent, lifetime)))
                .ok_or_else(|| unreadable("expires_in", "a number of seconds"));
        }
        if let Some(moment) = self.expires_at.and_then(present) {
            return point(moment)
                .map(Some)
                .ok_or_else(|| unreadable("expires_at", "a time in RFC 3339, or in Unix seconds or milliseconds"));
        }
        Ok(self.token.and_then(jwt_exp))
    }
}

fn unreadable(member: &str, wanted: &str) -> Failure {
    Failure::new(Reason::InvalidResponse, format!("{member} of the result is not {wanted}"))
}

fn present(member: &Member) -> Option<&Member> {
    (!matches!(member, Member::Null)).then_some(member)
}

fn lifetime(member: &Member) -> Option<TimeDelta> {
    delta(number(member)?)
}

pub(super) fn point(member: &Member) -> Option<DateTime<Utc>> {
    match (number(member), member) {
        (Some(number), _) => unix(number),
        (None, Member::Text(text)) => time::parse_rfc3339(text.expose_secret().trim()).ok(),
        _ => None,
    }
}

fn number(member: &Member) -> Option<f64> {
    match member {
        Member::Number(number) => number.as_f64(),
        // Rust would also read "inf", "nan" and "1e3"; nobody means those.
        Member::Text(text) => {
            let text = text.expose_secret().trim();
            let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
            numeric.then(|| text.parse().ok()).flatten()
        }
        _ => None,
    }
}

fn unix(number: f64) -> Option<DateTime<Utc>> {
    let seconds = if number > MILLISECONDS_FROM { number / 1000.0 } else { number };
    Some(time::later(DateTime::UNIX_EPOCH, delta(seconds)?))
}

/// To the millisecond; cut where it would pass the end of the calendar.
fn delta(seconds: f64) -> Option<TimeDelta> {
    if !seconds.is_finite() || seconds < 0.0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is at most END * 1000, which fits")]
    let millis = (seconds * 1000.0).min(END as f64 * 1000.0) as i64;
    TimeDelta::try_milliseconds(millis)
}

/// `exp` of a JWT (RFC 7519 §4.1.4), read without verifying it: it says when the token's own issuer stops taking it,
/// and whoever could forge it could as well send any `expires_in`. A token that is no JWT names no expiry.
fn jwt_exp(token: &str) -> Option<DateTime<Utc>> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let payload = Zeroizing::new(GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(payload).ok()?);
    match json::parse(&payload)?.get("exp")? {
        Member::Number(exp) => Some(time::later(DateTime::UNIX_EPOCH, delta(exp.as_f64()?)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::*;

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
            (r#"{"expires_in":1e300}"#.into(), "{}", "9999-12-31T23:59:59Z"),
            (r#"{"expires_in":18446744073709551615}"#.into(), "{}", "9999-12-31T23:59:59Z"),
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
            (r#"{"expires_in":-1}"#, "{}", None, Reason::InvalidResponse),
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
        assert!(failure.message.contains("has 45s left") && failure.message.contains("wants 1m"), "{failure}");
        let failure = decide_over("{}", "{}", None).unwrap_err();
        assert!(failure.message.contains("spec.expiry.ttl"), "{failure}");
    }

    #[test]
    fn a_token_that_is_no_jwt_with_a_readable_exp_names_no_expiry() {
        for token in [
            String::new(),
            "a.b.c".into(),
            "...".into(),
            jwt("{}"),
            jwt("[]"),
            jwt(r#"{"exp":"1767323400"}"#),
            jwt(r#"{"exp":-1}"#),
            jwt(r#"{"exp":null}"#),
            format!("{}.{}", jwt(r#"{"exp":1767323400}"#), "d"),
        ] {
            assert_eq!(jwt_exp(&token), None, "{token}");
        }
        assert_eq!(jwt_exp(&jwt(r#"{"exp":1767323400}"#)), Some(at("2026-01-02T03:10:00Z")));
        assert_eq!(jwt_exp("e30.eyJleHAiOjF9==.c"), None);
        assert_eq!(jwt_exp(&jwt(r#"{"exp":1e30}"#)).map(|end| end.timestamp()), Some(END));
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
        fn no_token_makes_it_panic(token in "\\PC{0,60}|[A-Za-z0-9._=-]{0,80}") {
            let _ = jwt_exp(&token);
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
