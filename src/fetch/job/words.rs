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
    brief(&veil(line))
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

    proptest! {
        #[test]
        fn no_long_token_is_shown(before in "\\PC{0,20}", token in "[A-Za-z0-9_=+-]{40,120}", after in "\\PC{0,20}") {
            let shown = last_line(&format!("{before}{token}{after}"));
            prop_assert!(!shown.contains(&token), "{}", shown);
        }
    }
}
