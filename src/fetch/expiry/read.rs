//! How results write times: lifetimes, Unix times, dates, and `exp` of a JWT. Pure.

use base64::{Engine as _, alphabet, engine::DecodePaddingMode, engine::GeneralPurpose, engine::GeneralPurposeConfig};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::{
    fetch::json::{self, Member},
    time,
};

/// Unix times are in seconds below this number: as seconds, it is the year 5138. In milliseconds it is 1973.
const SECONDS_BELOW: f64 = 1e11;

/// A lifetime is shorter than this many seconds, a century. A greater number means something else.
const LONGEST: f64 = 36_525.0 * 86_400.0;

/// A number that is this close to the Unix time of the request, in seconds, is a Unix time: ten years.
const CLOSE: f64 = LONGEST / 10.0;

/// The greatest number of 32 bits, by which some servers mean that a token does not expire.
const MAX_I32: f64 = 2_147_483_647.0;

/// What `expires_in` says (RFC 6749 §5.1).
#[derive(Debug, PartialEq)]
pub(super) enum Lifetime {
    /// The value lives for this long.
    For(TimeDelta),
    /// `-1`, by which servers mean that there is no limit.
    Unlimited,
    /// No lifetime that a token has: what it looks like, to be said after the name of the member.
    Implausible(&'static str),
    /// No number, or a negative one: what it is, to be said in the same way.
    Unreadable(&'static str),
}

/// Reads a lifetime in seconds of a value that was requested at `sent`.
pub(super) fn lifetime(member: &Member, sent: DateTime<Utc>) -> Lifetime {
    let Some(seconds) = number(member) else { return Lifetime::Unreadable("is not a number of seconds") };
    #[expect(clippy::cast_precision_loss, reason = "a Unix time in seconds fits")]
    let from_now = (seconds - sent.timestamp() as f64).abs();
    match seconds {
        -1.0 => Lifetime::Unlimited,
        _ if seconds < 0.0 => Lifetime::Unreadable("is negative"),
        _ if from_now < CLOSE && seconds != MAX_I32 => Lifetime::Implausible("is a Unix time and not a lifetime"),
        _ if seconds >= LONGEST => Lifetime::Implausible("is longer than 100 years"),
        _ => delta(seconds).map_or(Lifetime::Unreadable("is not a number of seconds"), Lifetime::For),
    }
}

/// Reads a time: in RFC 3339 or a form close to it, as HTTP and mail write dates, or as Unix time in seconds,
/// milliseconds, microseconds or nanoseconds.
///
/// # Errors
/// What it is instead, to be said after the name of the member.
pub(in crate::fetch) fn point(member: &Member) -> Result<DateTime<Utc>, &'static str> {
    match (number(member), member) {
        (Some(number), _) => unix(number).ok_or("is not a Unix time"),
        (None, Member::Text(text)) => date(text.expose_secret().trim()),
        _ => Err("is not a time"),
    }
}

/// Dates with an offset from UTC (ISO 8601, of which RFC 3339 is a part): without a colon, without minutes, with a
/// blank before it, without seconds.
const DATES: [&str; 3] = ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f %#z", "%Y-%m-%dT%H:%M%#z"];

/// The same without an offset, which are no points in time.
const LOCAL_DATES: [&str; 4] = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];

fn date(text: &str) -> Result<DateTime<Utc>, &'static str> {
    let in_utc = text.strip_suffix(" UTC").map(|rest| format!("{rest}Z"));
    let text = in_utc.as_deref().unwrap_or(text);
    let with_offset = time::parse_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc2822(text).map(|date| date.to_utc()))
        .ok()
        .or_else(|| httpdate::parse_http_date(text).ok().map(DateTime::from));
    let with_offset = with_offset.or_else(|| {
        let mut read = DATES.iter().filter_map(|format| DateTime::parse_from_str(text, format).ok());
        read.next().map(|date| date.to_utc())
    });
    with_offset.ok_or_else(|| {
        let local = LOCAL_DATES.iter().any(|format| NaiveDateTime::parse_from_str(text, format).is_ok());
        if local { "has no time zone" } else { "is not a time" }
    })
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

/// A Unix time in the unit that its size tells; `None` for what is none in any.
fn unix(mut number: f64) -> Option<DateTime<Utc>> {
    for _ in ["milliseconds", "microseconds", "nanoseconds"] {
        if number >= SECONDS_BELOW {
            number /= 1000.0;
        }
    }
    (number < SECONDS_BELOW).then(|| delta(number)).flatten().map(|since| time::later(DateTime::UNIX_EPOCH, since))
}

/// To the millisecond.
fn delta(seconds: f64) -> Option<TimeDelta> {
    if !(0.0..=SECONDS_BELOW).contains(&seconds) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is at most SECONDS_BELOW * 1000, which fits")]
    TimeDelta::try_milliseconds((seconds * 1000.0) as i64)
}

/// What a token says of its own expiry.
#[derive(Debug, PartialEq)]
pub(super) enum Exp {
    /// It expires then.
    At(DateTime<Utc>),
    /// It is no JWT, or has no `exp`.
    None,
    /// Its `exp` is no Unix time.
    Unreadable,
}

/// `exp` of a JWT (RFC 7519 §4.1.4), read without verifying it: it says when the token's own issuer stops taking it,
/// and whoever could forge it could as well send any `expires_in`. A token that is no JWT names no expiry.
pub(super) fn exp(token: &str) -> Exp {
    let found = claims(token).and_then(|mut claims| claims.remove("exp"));
    match found {
        None | Some(Member::Null) => Exp::None,
        Some(exp) => number(&exp).and_then(unix).map_or(Exp::Unreadable, Exp::At),
    }
}

fn claims(token: &str) -> Option<json::Members> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    json::parse(&Zeroizing::new(GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(payload).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        time::parse_rfc3339(text).unwrap()
    }

    fn member(json: &str) -> Member {
        json::parse(format!(r#"{{"m":{json}}}"#).as_bytes()).unwrap().remove("m").unwrap()
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_time_is_read_in_each_form_that_names_a_point_in_time() {
        for text in [
            "1893456000",
            "1893456000.0",
            "1893456000000",
            "1893456000000000",
            "1893456000000000000",
            r#""1893456000""#,
            r#""1893456000000000""#,
            r#""2030-01-01T00:00:00Z""#,
            r#""2030-01-01t00:00:00z""#,
            r#""2030-01-01T01:30:00.000000+01:30""#,
            r#""2030-01-01T00:00:00+0000""#,
            r#""2029-12-31T23:00:00.123-0100""#,
            r#""2030-01-01T02:00:00+02""#,
            r#""2030-01-01 00:00:00Z""#,
            r#""2030-01-01 00:00:00 +0000""#,
            r#""2030-01-01 00:00:00.000000 UTC""#,
            r#""2030-01-01T00:00Z""#,
            r#"" Tue, 01 Jan 2030 00:00:00 GMT ""#,
            r#""Tue, 01 Jan 2030 01:00:00 +0100""#,
            r#""Tuesday, 01-Jan-30 00:00:00 GMT""#,
        ] {
            assert_eq!(point(&member(text)).map(time::floor), Ok(at("2030-01-01T00:00:00Z")), "{text}");
        }
        assert_eq!(point(&member(r#""9999-12-31T23:59:59Z""#)), Ok(at("9999-12-31T23:59:59Z")));
        for (text, words) in [
            (r#""2030-01-01 00:00:00.000000""#, "has no time zone"),
            (r#""2030-01-01T00:00:00""#, "has no time zone"),
            (r#""2030-01-01T00:00""#, "has no time zone"),
            (r#""tomorrow""#, "is not a time"),
            (r#""2030-01-01""#, "is not a time"),
            (r#""2030-13-01T00:00:00Z""#, "is not a time"),
            (r#""""#, "is not a time"),
            ("true", "is not a time"),
            ("[1893456000]", "is not a time"),
            ("-5", "is not a Unix time"),
            ("1e20", "is not a Unix time"),
            ("1e300", "is not a Unix time"),
        ] {
            assert_eq!(point(&member(text)), Err(words), "{text}");
        }
    }

    #[test]
    fn a_lifetime_is_a_number_of_seconds_that_a_token_can_live() {
        let sent = at("2026-01-02T03:00:00Z");
        let seconds = |seconds| Lifetime::For(TimeDelta::seconds(seconds));
        let unix_time = || Lifetime::Implausible("is a Unix time and not a lifetime");
        let too_long = || Lifetime::Implausible("is longer than 100 years");
        for (text, wanted) in [
            ("3600", seconds(3600)),
            (r#"" 3600 ""#, seconds(3600)),
            ("3600.5", Lifetime::For(TimeDelta::milliseconds(3_600_500))),
            ("0", seconds(0)),
            ("315360000", seconds(315_360_000)),
            ("2147483647", seconds(2_147_483_647)),
            ("-1", Lifetime::Unlimited),
            (r#""-1""#, Lifetime::Unlimited),
            ("-1.0", Lifetime::Unlimited),
            ("-5", Lifetime::Unreadable("is negative")),
            ("1767326400", unix_time()),
            (r#""1893456000""#, unix_time()),
            ("1767326400000", too_long()),
            ("9223372036854775807", too_long()),
            ("1e30", too_long()),
            (r#""soon""#, Lifetime::Unreadable("is not a number of seconds")),
            (r#""""#, Lifetime::Unreadable("is not a number of seconds")),
            (r#""1e3""#, Lifetime::Unreadable("is not a number of seconds")),
            ("true", Lifetime::Unreadable("is not a number of seconds")),
            ("[60]", Lifetime::Unreadable("is not a number of seconds")),
        ] {
            assert_eq!(lifetime(&member(text), sent), wanted, "{text}");
        }
    }

    #[test]
    fn exp_of_a_jwt_is_read_in_each_unit_and_as_text() {
        for exp in ["1767323400", "1767323400000", "1767323400000000", r#""1767323400""#, "1.7673234e9"] {
            assert_eq!(super::exp(&jwt(&format!(r#"{{"exp":{exp}}}"#))), Exp::At(at("2026-01-02T03:10:00Z")), "{exp}");
        }
        for token in [
            String::new(),
            "a.b.c".into(),
            "...".into(),
            jwt("{}"),
            jwt("[]"),
            jwt(r#"{"exp":null}"#),
            format!("{}.{}", jwt(r#"{"exp":1767323400}"#), "d"),
            "e30.eyJleHAiOjF9==.c".into(),
        ] {
            assert_eq!(exp(&token), Exp::None, "{token}");
        }
        for claim in ["-1", "1e30", r#""2026-01-02T03:10:00Z""#, "true", "{}"] {
            assert_eq!(exp(&jwt(&format!(r#"{{"exp":{claim}}}"#))), Exp::Unreadable, "{claim}");
        }
    }

    proptest! {
        #[test]
        fn no_unix_time_is_read_as_one_of_another_age(seconds in 978_307_200_i64..4_102_444_800, unit in 0_u32..4) {
            let number = seconds.checked_mul(1000_i64.pow(unit)).unwrap();
            let read = point(&Member::Number(number.into())).unwrap();
            prop_assert!((read.timestamp() - seconds).abs() <= 1);
        }

        #[test]
        fn no_token_makes_it_panic(token in "\\PC{0,60}|[A-Za-z0-9._=-]{0,80}") {
            let _ = exp(&token);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}|[-0-9TZ:. +]{0,30}") {
            let _ = point(&Member::Text(text.into()));
        }
    }
}
