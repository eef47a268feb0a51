//! Names of Kubernetes objects, which become parts of paths of the API server.

/// The form of a name: a DNS subdomain (RFC 1123 section 2.1) in lower case. It has at most 253 characters.
pub const PATTERN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// The form of a key in the data of a Secret or ConfigMap.
pub const KEY_PATTERN: &str = r"^[-._a-zA-Z0-9]+$";

/// Whether a text is a name of that form. Anything else, such as `a#` or `../b`, would lead to another path than that of an
/// object of this name.
#[must_use]
pub fn is_object_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    #[test]
    fn names_are_dns_subdomains() {
        for (text, expected) in [
            ("a", true),
            ("a-b.c9", true),
            ("9", true),
            ("", false),
            ("A", false),
            ("a.", false),
            (".a", false),
            ("a..b", false),
            ("-a", false),
            ("a-.b", false),
            ("rt#", false),
            ("rt?x=", false),
            ("rt/", false),
            ("..", false),
            ("../secrets/rt", false),
            ("%72t", false),
            ("a\n", false),
        ] {
            assert_eq!(is_object_name(text), expected, "{text:?}");
        }
        assert!(is_object_name(&"a".repeat(253)) && !is_object_name(&"a".repeat(254)));
    }

    proptest! {
        #[test]
        fn the_definition_says_the_same(text in r"[a-zA.\-9#/\n]{0,8}") {
            prop_assert_eq!(is_object_name(&text), Regex::new(PATTERN).expect("a pattern").is_match(&text));
        }
    }
}
