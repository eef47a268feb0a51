//! A body as text in UTF-8: content codings and character sets undone, and byte order marks dropped.
//!
//! Nothing of it was asked for: requests decline content codings, and JSON is UTF-8 (RFC 8259 §8.1). Servers and proxies
//! that send it all the same would be of no use otherwise.

use std::io::Read as _;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, header};
use zeroize::Zeroizing;

use super::{http_client::MAX_BODY, redact::Redactor};

/// How a gzip file begins (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why a body cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It has this content coding, which is not supported.
    Coding(String),
    /// It is no gzip, or breaks off.
    Damaged,
    /// Without its content coding it is longer than [`MAX_BODY`].
    TooLarge,
}

/// The body without its content coding, and in UTF-8 if that is possible.
pub(super) fn plain(headers: &HeaderMap, body: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    Ok(utf8(headers, decoded(headers, body)?))
}

fn decoded(headers: &HeaderMap, body: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let coding = headers.get(header::CONTENT_ENCODING).map(|coding| String::from_utf8_lossy(coding.as_bytes()));
    let coding = coding.unwrap_or_default().trim().to_ascii_lowercase();
    match coding.as_str() {
        "" | "identity" => Ok(body),
        _ if body.is_empty() => Ok(body),
        "gzip" | "x-gzip" if body.starts_with(&GZIP) => {
            // Its capacity is never exceeded: a buffer that grows would leave copies behind that nobody wipes.
            let mut plain = Zeroizing::new(Vec::with_capacity(MAX_BODY + 1));
            let limit = MAX_BODY as u64 + 1;
            let read = MultiGzDecoder::new(body.as_slice()).take(limit).read_to_end(&mut plain);
            match read {
                Ok(length) if length > MAX_BODY => Err(Unreadable::TooLarge),
                Ok(_) => Ok(plain),
                Err(_) => Err(Unreadable::Damaged),
            }
        }
        // A proxy undid it and left the header.
        "gzip" | "x-gzip" => Ok(body),
        other => Err(Unreadable::Coding(Redactor::default().clean(other))),
    }
}

/// A byte order mark decides, then what is UTF-8 already stays, then the declared charset decides. What is still not
/// text stays as it is: the message about it is another's.
fn utf8(headers: &HeaderMap, mut body: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    let declared = charset(headers).and_then(|label| Encoding::for_label(label.as_bytes()));
    let (encoding, begin) = match (Encoding::for_bom(&body), declared) {
        (Some(found), _) => found,
        // Latin text in UTF-16 is UTF-8 as well, with a NUL in each other place.
        (None, Some(declared)) if declared == UTF_16LE || declared == UTF_16BE => (declared, 0),
        (None, Some(declared)) if std::str::from_utf8(&body).is_err() => (declared, 0),
        (None, _) => (UTF_8, 0),
    };
    if encoding == UTF_8 {
        body.drain(..begin);
        return body;
    }
    match encoding.decode_without_bom_handling_and_without_replacement(&body[begin..]) {
        Some(text) => Zeroizing::new(text.into_owned().into_bytes()),
        None => body,
    }
}

/// The parameter `charset` of the content type (RFC 9110 §8.3.2).
fn charset(headers: &HeaderMap) -> Option<String> {
    let parameters = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').skip(1);
    let mut named = parameters.filter_map(|parameter| parameter.split_once('='));
    let (_, charset) = named.find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))?;
    Some(charset.trim().trim_matches('"').to_owned())
}

impl Unreadable {
    /// What to say of it after "the response of SERVER".
    pub(super) fn words(&self) -> String {
        match self {
            Self::Coding(coding) => {
                format!("has Content-Encoding {coding}, which was not requested. Turn compression off for this URL")
            }
            Self::Damaged => "has Content-Encoding gzip, but is damaged or cut off".to_owned(),
            Self::TooLarge => format!("is larger than {MAX_BODY} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(content_type: &str, coding: &str) -> HeaderMap {
        let pairs = [(header::CONTENT_TYPE, content_type), (header::CONTENT_ENCODING, coding)];
        let present = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        HeaderMap::from_iter(present.map(|(name, value)| (name, HeaderValue::from_str(value).unwrap())))
    }

    fn read(content_type: &str, coding: &str, body: &[u8]) -> Result<Vec<u8>, Unreadable> {
        plain(&headers(content_type, coding), body.to_vec().into()).map(|body| body.to_vec())
    }

    #[test]
    fn text_becomes_utf_8_by_its_mark_or_by_its_charset() {
        let e = "\u{e9}".as_bytes();
        for (content_type, body, wanted) in [
            ("", &b"a"[..], &b"a"[..]),
            ("", b"\xef\xbb\xbfa", b"a"),
            ("", b"\xff\xfe\xe9\x00", e),
            ("", b"\xfe\xff\x00\xe9", e),
            ("text/plain;charset=ISO-8859-1", b"\xef\xbb\xbfa", b"a"),
            ("text/plain;charset=ISO-8859-1", b"\xe9", e),
            ("text/plain; x=1; Charset = \"windows-1252\" ", b"\xe9", e),
            ("text/plain;charset=ISO-8859-1", e, e),
            ("text/plain;charset=utf-16", b"a\x00", b"a"),
            ("text/plain;charset=utf-16be", b"\x00a", b"a"),
            ("text/plain;charset=unknown", b"\xe9", b"\xe9"),
            ("text/plain;charset=shift_jis", b"\x82\xff", b"\x82\xff"),
            ("text/plain;charset", b"\xe9", b"\xe9"),
            ("", b"\xe9", b"\xe9"),
        ] {
            assert_eq!(read(content_type, "", body).unwrap(), wanted, "{content_type} {body:?}");
        }
    }

    #[test]
    fn a_coding_that_is_not_known_is_told_and_one_that_is_not_there_is_ignored() {
        assert_eq!(read("", "br", b"x"), Err(Unreadable::Coding("br".to_owned())));
        assert_eq!(read("", "gzip, br", b"x"), Err(Unreadable::Coding("gzip, br".to_owned())));
        assert_eq!(read("", "GZIP", b"\x1f\x8b\x08x"), Err(Unreadable::Damaged));
        for (coding, body) in [("br", &b""[..]), ("gzip", b"{}"), ("identity", b"{}"), ("", b"{}")] {
            assert_eq!(read("", coding, body).unwrap(), body);
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(content_type in "(text/plain;charset=(utf-16|big5|gbk|x))?", body: Vec<u8>) {
            let _ = read(&content_type, "", &body);
            let _ = read(&content_type, "gzip", &[&GZIP, body.as_slice()].concat());
        }
    }
}
