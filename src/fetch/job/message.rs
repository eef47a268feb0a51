//! Text of Kubernetes' and of containers' making, before it may stand in a message.

use crate::fetch::redact::Redactor;

/// A word at least this long could be a token, and is not shown. A UUID is shorter.
const SECRETIVE: usize = 40;

/// One line, printable and short.
pub(super) fn brief(text: &str) -> String {
    Redactor::default().clean(text.trim())
}

/// How much of the beginning and of the end of a long text is shown, in characters.
const ENDS: (usize, usize) = (60, 130);

/// The same for a chain of causes, whose end says the most.
pub(super) fn ends(text: &str) -> String {
    let characters: Vec<char> = text.trim().chars().collect();
    let (head, tail) = ENDS;
    if characters.len() <= head + tail {
        return brief(text);
    }
    let (_, end) = characters.split_at(characters.len() - tail);
    let head: String = characters.iter().take(head).collect();
    brief(&format!("{head}…{}", end.iter().collect::<String>()))
}

/// The last line of a container's output that says anything, without words that could be tokens: a script that fails
/// may well print what it was working with.
pub(super) fn last_line(output: &str) -> String {
    let line = output.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    brief(&veil(&without_values(line)))
}

/// Keys whose values tell what went wrong.
const TELLING: [&str; 12] = [
    "code",
    "detail",
    "error",
    "error_code",
    "error_description",
    "level",
    "message",
    "msg",
    "reason",
    "status",
    "title",
    "type",
];
/// Headers, prompts and options after which a secret follows in a word of its own.
const ANNOUNCING: [&str; 14] = [
    "-p",
    "-u",
    "--pass",
    "--password",
    "--proxy-user",
    "--secret",
    "--token",
    "--user",
    "authorization",
    "cookie",
    "password",
    "private-token",
    "proxy-authorization",
    "x-api-key",
];
/// Schemes of the header Authorization.
const SCHEMES: [&str; 3] = ["basic", "bearer", "token"];

/// Where words are quoted, listed or joined.
fn is_delimiter(c: char) -> bool {
    matches!(c, '"' | '\'' | '`' | ',' | ';' | '&' | '?' | '(' | ')' | '[' | ']' | '{' | '}')
}

/// The line without what follows `-u` and the like, and without the values in `key=value` and `key:value`: a short secret
/// cannot be told from a word by itself.
fn without_values(line: &str) -> String {
    let mut shown: Vec<String> = Vec::new();
    let (mut announced, mut quoted) = (false, false);
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|c| is_delimiter(c) || c == ':').to_ascii_lowercase();
        if announced || quoted {
            let closes = |word: &str| word.trim_end_matches([',', '}', ']']).ends_with(['"', '\'']);
            quoted = (quoted || word.starts_with(['"', '\''])) && !closes(word.get(1..).unwrap_or_default());
            // The scheme is no secret.
            announced = SCHEMES.contains(&bare.as_str());
            shown.push(if announced { word.to_owned() } else { hidden(word) });
            continue;
        }
        let is_key = word.ends_with("\":") || word.ends_with("':");
        let is_name =
            !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let is_member = is_key && is_name && !TELLING.contains(&bare.as_str());
        let is_header = word.ends_with(':') || bare.starts_with('-');
        announced =
            SCHEMES[..2].contains(&bare.as_str()) || (is_header && ANNOUNCING.contains(&bare.as_str())) || is_member;
        shown.push(without_assigned(word));
    }
    shown.join(" ")
}

/// A word that is not shown, with the quotes around it.
fn hidden(word: &str) -> String {
    let inner = word.trim_matches(is_delimiter);
    let (Some(start), false) = (word.find(inner), inner.is_empty()) else { return "***".into() };
    format!("{}***{}", &word[..start], &word[start + inner.len()..])
}

/// A word without the values in it.
fn without_assigned(word: &str) -> String {
    let mut shown = String::new();
    let mut rest = word;
    while let Some(at) = rest.find([':', '=']) {
        let (before, after) = rest.split_at(at + 1);
        shown.push_str(before);
        if let Some(url) = after.strip_prefix("//").filter(|_| before.ends_with(':')) {
            // Of a URL, the host and the path are shown, and the names in its query.
            let end = url.find(|c| is_delimiter(c) || c == '#').unwrap_or(url.len());
            let (place, query) = url.split_at(end);
            let authority = place.split('/').next().unwrap_or_default();
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let user = if host.len() < authority.len() { "***@" } else { "" };
            shown.push_str(&format!("//{user}{host}{}", &place[authority.len()..]));
            rest = query;
            continue;
        }
        let value = after.trim_start_matches(['"', '\'', '=']);
        let opening = &after[..after.len() - value.len()];
        let value = &value[..value.find(is_delimiter).unwrap_or(value.len())];
        let key = before.trim_end_matches([':', '=']).trim_matches(is_delimiter);
        let key = key.rsplit(is_delimiter).next().unwrap_or_default().to_ascii_lowercase();
        shown.push_str(opening);
        let telling = TELLING.contains(&key.as_str()) || is_number(value);
        shown.push_str(if telling { value } else { "***" });
        rest = &after[opening.len() + value.len()..];
    }
    shown.push_str(rest);
    shown
}

/// A port, a version, a time of day, an address; or nothing.
fn is_number(value: &str) -> bool {
    value.split([':', '.']).all(|part| part.len() <= 5 && part.bytes().all(|byte| byte.is_ascii_digit()))
}

fn veil(line: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '=' | '.' | '~' | '/');
    let mut shown = String::new();
    let mut word = String::new();
    for c in line.chars().map(Some).chain([None]) {
        match c {
            Some(c) if is_part(c) => word.push(c),
            other => {
                // In a path or a host's name, it is the parts that count.
                let long = word.split(['/', '.']).any(|part| part.len() >= SECRETIVE) || looks_like_jwt(&word);
                shown.push_str(if long { "***" } else { &word });
                word.clear();
                shown.extend(other);
            }
        }
    }
    shown
}

fn looks_like_jwt(word: &str) -> bool {
    word.starts_with("eyJ") && word.len() >= SECRETIVE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_line_that_says_anything_is_shown() {
        for (output, expected) in [
            ("", ""),
            ("\n \n", ""),
            ("one\ntwo\n\n", "two"),
            ("a\rb\u{1b}[31m\tc", "a b [31m c"),
            (
                "wget: can't open 'https://id.example.com/oauth2/v1/token': 401",
                "wget: can't open 'https://id.example.com/oauth2/v1/token': 401",
            ),
            (
                "request 123e4567-e89b-12d3-a456-426614174000 failed",
                "request 123e4567-e89b-12d3-a456-426614174000 failed",
            ),
        ] {
            assert_eq!(last_line(output), expected);
        }
        assert_eq!(last_line(&"ä ".repeat(300)).chars().count(), 201);
    }

    #[test]
    fn of_a_chain_of_causes_both_ends_are_shown() {
        let text = "failed to pull and unpack image \"127.0.0.1:5055/private/tokencache:0.1.0\": failed to resolve \
                    reference \"127.0.0.1:5055/private/tokencache:0.1.0\": pulling from host 127.0.0.1:5055 failed \
                    with status code [manifests 0.1.0]: 401 Unauthorized";
        let shown = ends(text);
        assert!(shown.starts_with("failed to pull") && shown.ends_with("401 Unauthorized"), "{shown}");
        for length in [0, 1, 189, 190, 191, 500] {
            let text = "ä".repeat(length);
            let shown = ends(&text).chars().count();
            assert!(shown <= 191 && (shown == length || length > 190), "{length}: {shown}");
        }
        assert_eq!(ends("short"), "short");
    }

    #[test]
    fn words_that_could_be_tokens_are_not_shown() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl";
        assert_eq!(last_line(&format!("bad answer: {{\"token\":\"{jwt}\"}}")), "bad answer: {\"token\":\"***\"}");
        assert_eq!(
            last_line(&format!("+ curl -H 'Authorization: Bearer {}'", "a1".repeat(20))),
            "+ curl -H 'Authorization: Bearer ***'"
        );
    }

    #[test]
    fn short_secrets_are_not_shown_where_a_key_or_an_option_tells_them() {
        for (line, expected) in [
            ("+ curl -u user:short https://id.example.com", "+ curl -u *** https://id.example.com"),
            ("+ curl -uuser:short", "+ curl -uuser:***"),
            ("+ curl --user 'me:pw' x", "+ curl --user '***' x"),
            ("+ mysql -p hunter2", "+ mysql -p ***"),
            ("+ login --password=hunter2 --user me", "+ login --password=*** --user ***"),
            ("PASSWORD=hunter2", "PASSWORD=***"),
            ("export A='hunter2'; B=x", "export A='***'; B=***"),
            ("user:hunter2 is wrong", "user:*** is wrong"),
            ("GET https://me:pw@id.example.com:8443/a?code=x&n=1", "GET https://***@id.example.com:8443/a?code=x&n=1"),
            ("https://id.example.com/?token=x", "https://id.example.com/?token=***"),
            ("https://id.example.com/#access_token=x", "https://id.example.com/#access_token=***"),
            (r#"{"token":"x","error":"invalid_client"}"#, r#"{"token":"***","error":"invalid_client"}"#),
            (r#"{"token": "x y", "error": "no"}"#, r#"{"token": "*** ***", "error": "no"}"#),
            ("-H 'Authorization: Bearer x' y", "-H 'Authorization: Bearer ***' y"),
            ("Authorization: Basic eA==", "Authorization: Basic ***"),
            ("X-API-Key: hunter2", "X-API-Key: ***"),
            ("password: hunter2", "password: ***"),
            ("error=invalid_client status=401", "error=invalid_client status=401"),
        ] {
            assert_eq!(last_line(line), expected, "{line}");
        }
    }

    #[test]
    fn what_tells_why_it_failed_is_shown() {
        for line in [
            "login failed: wrong password",
            "sh: line 3: aws: not found",
            "curl: (7) Failed to connect to id.example.com port 443 after 5 ms: Connection refused",
            "dial tcp 10.0.0.1:443: connect: connection refused",
            "2026-03-01T12:30:45 ERROR 401 Unauthorized",
            "Error: invalid token: expired",
            "Traceback: x.py:3",
            "pull busybox:1.36",
            "a == b",
        ] {
            assert_eq!(last_line(line), line);
        }
        assert_eq!(
            last_line("the bearer is unknown."),
            "the bearer *** unknown.",
            "a word too many rather than a token"
        );
    }

    proptest! {
        #[test]
        fn what_follows_a_key_is_never_shown(key in "[A-Z]{3,9}", sep in "[:=]", value in "[A-Za-z][A-Za-z0-9]{5,20}x9q") {
            let shown = last_line(&format!("a {key}{sep}{value} b"));
            prop_assert_eq!(shown, format!("a {}{}*** b", key, sep));
        }

        #[test]
        fn any_output_is_read(line in "\\PC{0,200}") {
            last_line(&line);
        }

        #[test]
        fn no_long_token_is_shown(before in "\\PC{0,20}", token in "[A-Za-z0-9_=+-]{40,120}", after in "\\PC{0,20}") {
            let shown = last_line(&format!("{before}{token}{after}"));
            prop_assert!(!shown.contains(&token), "{}", shown);
        }
    }
}
